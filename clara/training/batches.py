"""The packed tensors that a training step reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate

import torch
from torch import Tensor
from typing_extensions import Self

from clara.text.packing import (
    PackedBatch,
    PackedPrompts,
)

EVENTS = (
    "answer without a teacher",
    "candidate empty or too long",
    "candidate truncated",
    "document empty or too long",
    "document truncated",
    "no answer tokens",
    "no positives",
    "prompt over the budget",
    "question empty or too long",
    "question truncated",
)
"""What is counted of examples left out, texts cut and answers that are not distilled."""


@dataclass(frozen=True)
class PackedTexts:
    """Documents or questions as the compressor reads them, one after the other.

    Attributes:
        batch: the texts, longest first.
        text_tokens: tokens of the texts alone, without markers and memory slots.
    """

    batch: PackedBatch
    text_tokens: int

    def __len__(self) -> int:
        return len(self.batch.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTexts:
        return replace(self, batch=self.batch.to(device, non_blocking))

    def in_order(self, memory: Tensor) -> list[Tensor]:
        """`[m_i, H]` of each text in the caller's order, from the memory `[M, H]` of `batch`."""
        found: list[Tensor] = [memory] * len(self)
        for row, each in zip(self.batch.rows, memory.split(self.batch.n_memory), strict=True):
            found[row] = each
        return found


@dataclass(frozen=True)
class Batch:
    """What all stages' batches have.

    Attributes:
        counts: what a term of the loss is averaged over: "tokens" (of answers), "taught" (tokens
            with a teacher), "documents", "slots" (of their memory), "questions".
        events: examples left out and texts cut, by reason, of `EVENTS`.
    """

    counts: dict[str, int]
    events: Counter[str]

    @property
    def tokens_read(self) -> int:
        """Positions that go through the backbone."""
        return 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Prompts with answers; their memory slots are filled by the step."""

    prompts: PackedPrompts

    @property
    def tokens_read(self) -> int:
        return super().tokens_read + sum(self.prompts.batch.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        return replace(moved, prompts=self.prompts.to(device, non_blocking))


class EmptyBatch(Batch):
    """A batch of which no example is left; see `Objective.stand_in`."""

    def __init__(self, events: Counter[str]) -> None:
        super().__init__({}, events)


@dataclass(frozen=True)
class Taught:
    """A teacher's probabilities at tokens of answers, see `clara.backbone.divergence`.

    Attributes:
        rows: int64 `[R]`, the tokens among the targets of a batch's prompts.
        ids: int64 `[R, K]`, the tokens that the teacher finds most likely there.
        log_probs: float32 `[R, K + 1]`, the logarithms of their probabilities, and last that of
            all other tokens together.
    """

    rows: Tensor
    ids: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Taught:
        moved = (
            each.to(device, non_blocking=non_blocking)
            for each in (self.rows, self.ids, self.log_probs)
        )
        return Taught(*moved)


@dataclass(frozen=True)
class CompressionBatch(PromptBatch):
    """Documents, and prompts that are answered from the memory of consecutive ones of them.

    Attributes:
        averages_only: memory is the mean embedding of each span alone, as an untrained connector
            leaves it; the compressor makes no pass. For memory form "spans".
        taught: what a teacher says about the answers; None where it says nothing.
    """

    documents: PackedTexts
    averages_only: bool = False
    taught: Taught | None = None

    @property
    def tokens_read(self) -> int:
        compressed = 0 if self.averages_only else sum(self.documents.batch.lengths)
        return super().tokens_read + compressed

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        taught = None if self.taught is None else self.taught.to(device, non_blocking)
        documents = self.documents.to(device, non_blocking)
        return replace(moved, documents=documents, taught=taught)


@dataclass(frozen=True)
class RankingBatch(Batch):
    """Questions with candidates.

    Attributes:
        questions: as the query reasoner reads them.
        prompts: with slots for the k best candidates; None where nothing is generated.
        candidates: names of each question's candidates, see `candidate_id`.
        positives: positions among them of those that hold the answer.
        rate: compression rate of the candidates' memory.
    """

    questions: PackedTexts
    prompts: PackedPrompts | None
    candidates: list[list[str]]
    positives: list[tuple[int, ...]]
    rate: int

    @property
    def tokens_read(self) -> int:
        answered = 0 if self.prompts is None else sum(self.prompts.batch.lengths)
        return answered + sum(self.questions.batch.lengths)

    def with_candidates(self, candidates: list[list[str]]) -> RankingBatch:
        """The same questions with other candidates; positives keep their positions."""
        return replace(self, candidates=candidates)

    @property
    def offsets(self) -> list[int]:
        """Where each question's candidates begin when all lie one after the other."""
        return [0, *accumulate(len(names) for names in self.candidates)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        prompts = None if self.prompts is None else self.prompts.to(device, non_blocking)
        return replace(self, questions=self.questions.to(device, non_blocking), prompts=prompts)


def candidate_id(text: str) -> str:
    """The name under which a candidate's memory is kept: a digest of its text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()
