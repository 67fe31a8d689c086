"""The base of all stages: which parts a stage trains, and the terms of its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clara.backbone.adapters import ADAPTERS, QUERY_REASONER
from clara.backbone.output_path import applies_head_alone
from clara.memory.padded import PaddedMemory
from clara.model.clara import Clara
from clara.training.batches import Batch, EmptyBatch, PackedTexts
from clara.training.encoder import Encoder


@dataclass(frozen=True)
class Term:
    """A part of the loss: the sum over a step of what an objective returns, divided by a count.

    Attributes:
        per: the entry of `Batch.counts` it is averaged over.
        weight: of the mean in the loss.
        logged_per: the entry it is averaged over in the log; default `per`.
    """

    per: str
    weight: float = 1.0
    logged_per: str | None = None

    @property
    def logged_over(self) -> str:
        return self.logged_per or self.per


class Objective(nn.Module, ABC):
    """A model under training in one stage.

    `forward` returns sums, so that a mean over any number of batches and processes weighs every
    token the same.

    Attributes:
        adapters: those that train.
        trains_memory_tokens: whether our embedding rows train.
        train_backbone: whether the backbone's own weights train too.
        terms: of the loss, by the names that `forward` returns.
        step, progress: steps done, and their share of all; set by the trainer.
        step_seed: changes with every batch; set by the trainer.
    """

    adapters: tuple[str, ...] = ()
    trains_memory_tokens = False
    terms: dict[str, Term]

    def __init__(self, model: Clara, *, train_backbone: bool = False) -> None:
        super().__init__()
        self.model = model
        self.train_backbone = train_backbone
        model.owns_backbone |= train_backbone
        self.step = 0
        self.progress = 0.0
        self.step_seed = 0
        self._stand_in: Batch | None = None
        applies_head_alone(model.backbone)  # which refuses a backbone without a loss
        if train_backbone and model.config.quantization is not None:
            raise ValueError("train_backbone needs a backbone that is not quantized")
        model.adapters.freeze(*self.adapters)
        model.memory_tokens.requires_grad_(self.trains_memory_tokens)
        for name, connector in model.connectors.items():
            connector.requires_grad_(name in self.adapters)
        lora = {id(p) for name in ADAPTERS for p in model.adapters.parameters(name).values()}
        for parameter in model.backbone.parameters():
            if id(parameter) not in lora and parameter.is_floating_point():
                parameter.requires_grad_(train_backbone)

    def groups(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """What trains, by name: adapters, "memory_tokens", "connector" and "backbone"."""
        named = {n: list(self.model.adapters.parameters(n).values()) for n in self.adapters}
        if self.trains_memory_tokens:
            named["memory_tokens"] = list(self.model.memory_tokens.parameters())
        connectors = [p for p in self.model.connectors.parameters() if p.requires_grad]
        if connectors:
            named["connector"] = connectors
        if self.train_backbone:
            known = {id(parameter) for group in named.values() for parameter in group}
            trained = (p for p in self.model.backbone.parameters() if p.requires_grad)
            named["backbone"] = [p for p in trained if id(p) not in known]
        yield from named.items()

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Sums for each of `terms`; for statistics other names, with a number each.

        Args:
            batch: what the stage's collator made.
        """
        if isinstance(batch, EmptyBatch):
            # Every process takes part in every step: the others wait for its parts of the weights.
            if self._stand_in is None:
                self._stand_in = self.stand_in()
            sums = self.sums(self._stand_in.to(self.model.device))
            return {name: sums[name] * 0 for name in self.terms}
        return self.sums(batch)

    @abstractmethod
    def sums(self, batch: Any) -> dict[str, Tensor]:
        """See `forward`."""

    @abstractmethod
    def stand_in(self) -> Batch:
        """A small batch that is computed, and not counted, where no example is left."""

    def encoded_questions(self, questions: PackedTexts) -> Tensor:
        """Questions as `Clara.encode_queries` returns them, differentiable."""
        memory = self.model.encode_memory(questions.batch, QUERY_REASONER).memory
        padded = PaddedMemory.of(questions.in_order(memory))
        return padded.queries(self.model.config.ranking_rule)

    @property
    def _plain_encoder(self) -> Encoder:
        return Encoder(self.model.tokenizer, self.model.config, None)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Called by the trainer, see `ClaraCore.enable_gradient_checkpointing`."""
        self.model.enable_gradient_checkpointing(
            **(activation_checkpointing_kwargs or {}), **options
        )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The same for transformers before 5.2."""
        self.model.enable_gradient_checkpointing(**(gradient_checkpointing_kwargs or {}), **options)
