"""The forward passes of a model, and the prompts with memory that go into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clara.backbone.packed_forward import check_positions, packed_states
from clara.model.connector import weighted_means
from clara.model.modules import ModelModules
from clara.text.packing import PackedBatch
from clara.text.prompts import Prompt, build_prompt, build_text_prompt, memory_slots


class Encoded(NamedTuple):
    """Encoded documents or questions of a packed batch.

    Attributes:
        states: `[T, H]`, final (normalised) hidden states.
        memory: `[M, H]`, the memory tokens in the order of the batch.
    """

    states: Tensor
    memory: Tensor


class ClaraCore(ModelModules):
    """The differentiable parts of a CLaRa model: hidden states and memory of packed inputs."""

    def embed(self, ids: Tensor, memory: Tensor) -> Tensor:
        """Input embeddings of ids with `Marker` values.

        Args:
            ids: int64 `[...]`.
            memory: `[number of Marker.MEMORY in ids, H]`.

        Returns:
            `[..., H]`, differentiable in `memory` and the rows of `memory_tokens`.
        """
        vocabulary = self.backbone.get_input_embeddings()(ids.clamp_min(0))
        return self.memory_tokens.splice(vocabulary, ids, memory)

    def encode(self, batch: PackedBatch, adapter: str, *, memory_only: bool = False) -> Tensor:
        """Final hidden states of packed compressor inputs: `[T, H]`.

        Args:
            adapter: "compressor" or "query_reasoner".
            memory_only: leave the rows that are not memory undefined; the last layer is then
                computed for memory rows alone.
        """
        return self.encode_memory(batch, adapter, memory_only=memory_only).states

    def encode_memory(
        self, batch: PackedBatch, adapter: str, *, memory_only: bool = True
    ) -> Encoded:
        """Final hidden states and memory tokens of packed compressor inputs.

        Memory is the states at the memory slots in memory form "learned", and in "spans" what the
        connector makes of them. Differentiable in the adapter, our rows and the connector.

        Args:
            adapter: "compressor" or "query_reasoner".
            memory_only: see `encode`.
        """
        if not self.connectors:
            rows = self.memory_tokens.slot_rows(len(batch.rows))
            states = self.forward_packed(batch, rows, adapter, memory_only=memory_only)
            return Encoded(states, states[batch.memory_rows])
        means = self.span_means(batch)
        rows = self.memory_tokens.slot_rows(len(means)) + means
        states = self.forward_packed(batch, rows, adapter, memory_only=memory_only)
        memory = self.connectors.of(adapter)(states[batch.memory_rows], means)
        return Encoded(states, memory.to(self.dtype))

    def span_means(self, batch: PackedBatch) -> Tensor:
        """The mean of the token embeddings that each memory slot stands for.

        Args:
            batch: with `span_rows`, as packed for memory form "spans".

        Returns:
            `[M, H]` in float32, or float64 for a model in float64.
        """
        if batch.span_rows is None:
            raise ValueError("the batch was packed without a rate: its slots stand for no spans")
        tokens = batch.ids[batch.span_rows.clamp_min(0)]
        embedded = self.backbone.get_input_embeddings()(tokens.clamp_min(0))
        embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
        return weighted_means(embedded, batch.span_rows >= 0, self.config.span_slope)

    def forward_packed(
        self,
        batch: PackedBatch,
        memory: Tensor,
        adapter: str | None,
        *,
        memory_only: bool = False,
    ) -> Tensor:
        """Final (normalised) hidden states `[T, H]` of packed sequences, no output head.

        Args:
            memory: `[number of Marker.MEMORY in the batch, H]`, the vectors for the memory slots.
            adapter: the adapter to use; None is the backbone alone.
            memory_only: see `encode`.

        Raises:
            ValueError: a sequence is longer than the backbone's positions.
        """
        check_positions(self.backbone, batch)
        embeddings = self.embed(batch.ids, memory)
        return packed_states(
            self.backbone, self.adapters, batch, embeddings, adapter, memory_only=memory_only
        )

    def prompt_tokens(self, question: str, documents: int | Sequence[int]) -> int:
        """Length of the prompt with the memory of documents.

        Args:
            documents: memory tokens of each document; in memory form "learned" their number will
                do.

        Raises:
            ValueError: a number of documents is given in memory form "spans".
        """
        return len(self.memory_prompts([question], [documents])[0].ids)

    def text_prompt_tokens(self, question: str, texts: Sequence[str]) -> int:
        """Length of the same prompt with texts instead of memory."""
        return len(build_text_prompt(self.tokenizer, self.config.prompt, texts, question).ids)

    def memory_prompts(
        self,
        questions: Sequence[str],
        documents: Sequence[int | Sequence[int]],
        answers: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """Prompts with slots for memory, one for each question.

        Args:
            documents: of each question, as `prompt_tokens` takes them.
            answers: put behind the prompts.
        """
        config = self.config
        return [
            build_prompt(
                self.tokenizer,
                config.prompt,
                memory_slots(self._counts(documents[row]), config.separator),
                question,
                None if answers is None else answers[row],
            )
            for row, question in enumerate(questions)
        ]

    def _counts(self, documents: int | Sequence[int]) -> Sequence[int]:
        """Memory tokens of each document, where their number may be given instead."""
        if not isinstance(documents, int):
            return documents
        m = self.config.memory_tokens
        if m is None:
            raise ValueError(
                f"documents must be the memory tokens of each document, got {documents}: in memory "
                'form "spans" they differ'
            )
        return [m] * documents
