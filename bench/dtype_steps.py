"""Pretraining steps in a dtype, and a plain pass over the same sequences beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bench.training_steps import (
    ALIGNMENT,
    model_to_train,
    optimizer_of,
    pretraining_examples,
    weighted_loss,
)
from clara.backbone.adapters import ADAPTERS
from clara.config import CpuDtypeName
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder

_MOST_POSITIONS = 1024
"""Of a padded batch: from some hundred on, more make a product no faster."""
_LEAST_FILLED = 0.9


class DtypeSteps:
    """A pretraining step as `clara train` computes it on a CPU: in bfloat16 under autocast, with
    adapters in float32.

    Attributes:
        lengths: positions of the sequences that go through the layers: documents with their memory
            slots, and prompts with answers, the parts that several share counted once.
    """

    def __init__(self, backbone: Path, rate: int, count: int, dtype: CpuDtypeName) -> None:
        model = model_to_train(backbone, rate, dtype)
        for name in ADAPTERS:
            for parameter in model.adapters.parameters(name).values():
                parameter.data = parameter.data.float()
        self.objective = CompressionObjective(model, alignment_weight=ALIGNMENT).train()
        encoder = Encoder(model.tokenizer, model.config, None)
        self.batch = CompressionCollator(encoder)(pretraining_examples(model, count))
        packed = self.batch.documents.batch, self.batch.prompts.batch
        self.lengths = [length for each in packed for length in each.lengths]
        self._dtype = getattr(torch, dtype)
        self._optimizer = optimizer_of(self.objective)

    def loss(self) -> Tensor:
        low = self._dtype != torch.float32
        with torch.autocast("cpu", dtype=self._dtype) if low else nullcontext():
            return weighted_loss(self.objective, self.batch)

    def __call__(self) -> float:
        self._optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self._optimizer.step()
        return loss.item()


class PlainPass:
    """Forward to the final states and gradients of the input embeddings, by transformers alone.

    No adapters, no output head, no loss: what has to be computed for any training of adapters.

    Args:
        lengths: of the sequences, whose embeddings are random. Those of like lengths are computed
            together, padded on the right, where attention needs no mask for it.
    """

    def __init__(self, backbone: Path, lengths: Sequence[int], dtype: CpuDtypeName) -> None:
        model = AutoModelForCausalLM.from_pretrained(backbone, dtype=getattr(torch, dtype))
        self._body: nn.Module = model.base_model.requires_grad_(False)
        width, generator = model.config.hidden_size, torch.Generator().manual_seed(0)
        self._inputs = []
        for group in like_lengths(lengths):
            shape = len(group), max(group), width
            embeddings = torch.randn(shape, generator=generator).to(model.dtype)
            upstream = torch.ones_like(embeddings)
            for row, length in enumerate(group):
                upstream[row, length:] = 0  # nothing is asked of padding
            self._inputs.append((embeddings.requires_grad_(), upstream))

    def __call__(self) -> list[Tensor]:
        """The gradients of all batches."""
        return [self._gradient(*each) for each in self._inputs]

    def _gradient(self, embeddings: Tensor, upstream: Tensor) -> Tensor:
        states = self._body(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        (found,) = torch.autograd.grad(states, embeddings, upstream)
        return found


def like_lengths(lengths: Iterable[int]) -> Iterator[list[int]]:
    """Lengths in batches, the longest first: little padding, and not too many positions."""
    group: list[int] = []
    for length in sorted(lengths, reverse=True):
        if group:
            positions = (len(group) + 1) * group[0]
            if length < _LEAST_FILLED * group[0] or positions > _MOST_POSITIONS:
                yield group
                group = []
        group.append(length)
    if group:
        yield group
