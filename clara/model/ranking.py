"""The candidate documents of questions, in any of the accepted forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from clara.config import RankingRule
from clara.data.records import Document, DocumentLike
from clara.errors.checks import is_integer
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory
from clara_kernels import cosine_rerank, cosine_topk

Documents = (
    CompressedDocuments
    | Tensor
    | Iterable[DocumentLike]
    | Sequence[CompressedDocuments]
    | Sequence[Tensor]
    | Sequence[Sequence[DocumentLike]]
)
"""Shared by all questions: `CompressedDocuments`, memory `[N, m, H]`, or raw documents. One for
each of `B` questions: memory `[B, N, m, H]`, or a list of any of these of length `B`."""

Compress = Callable[[Iterable[DocumentLike]], CompressedDocuments]
"""Such as `Clara.compress`."""

MemoryOfQuestion = Tensor | CompressedDocuments | Sequence[Tensor]
"""Memory of the documents of a question: `[k, m, H]`, or `[m_i, H]` for each document."""

ReadMemory = Callable[[MemoryOfQuestion, str], PaddedMemory]
"""Takes memory from what a user passed and refuses that of another model; the text is what a
message calls it. Such as `Clara.read_memory`."""


@dataclass(frozen=True)
class Candidates:
    """Candidates of `B` questions.

    Attributes:
        memory: of the N_i candidates of each question.
        documents: what each memory was made from; None when only tensors were given.
        shared: all questions have the same candidates.
        rule: what is ranked by, see `ClaraConfig.ranking`.
    """

    memory: list[PaddedMemory]
    documents: list[CompressedDocuments] | None
    shared: bool
    rule: RankingRule = "flattened"

    @classmethod
    def gather(
        cls,
        source: Documents,
        questions: int,
        *,
        read: ReadMemory,
        compress: Compress,
        device: torch.device,
        rule: RankingRule = "flattened",
    ) -> Candidates:
        """Candidates from tensors, compressed documents or raw documents.

        Args:
            device: where they are ranked.

        Raises:
            TypeError, ValueError: another form, another number of questions, no candidate,
                memory of another shape or of another model.
        """
        given, shared = _forms(source, questions, compress)
        if not shared:
            _check_count(len(given), questions)
        memory = [
            read(each, f"memory of question {row}").to(device) for row, each in enumerate(given)
        ]
        documents = [each for each in given if isinstance(each, CompressedDocuments)]
        if shared:
            memory, documents = memory * questions, documents * questions
        for row, each in enumerate(memory):
            if not len(each):
                raise ValueError(f"question {row} has no candidate documents")
        return cls(memory, documents or None, shared, rule)

    def rank(self, queries: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """The best `min(k, N_i)` candidates of each question, highest cosine first.

        Args:
            queries: `[B, m, H]`; `[B, 1, H]` if they are ranked by the mean.

        Returns:
            For each question float32 scores and int64 positions; ties go to the lowest.
        """
        if not self.memory:
            return []
        flat = queries.flatten(1)
        if self.shared:
            scores, order = cosine_topk(flat, self.memory[0].vectors(self.rule), k)
            return list(zip(scores, order, strict=True))
        counts = [len(each) for each in self.memory]
        starts = [0, *accumulate(counts)]
        offsets = torch.tensor(starts, dtype=torch.int32, device=flat.device)
        stacked = torch.cat([each.vectors(self.rule) for each in self.memory])
        scores, rows = cosine_rerank(flat, stacked, min(k, max(counts)), offsets=offsets)
        return [
            (scores[i, : min(k, count)], rows[i, : min(k, count)] - starts[i])
            for i, count in enumerate(counts)
        ]


def _forms(
    source: Documents, questions: int, compress: Compress
) -> tuple[Sequence[Tensor | CompressedDocuments], bool]:
    """Memory or compressed documents of each question, or one for all questions and True."""
    if isinstance(source, CompressedDocuments):
        return [source], True
    if isinstance(source, Tensor):
        return ([source], True) if source.ndim == 3 else (list(source), False)
    if isinstance(source, str | Mapping | Document):
        raise TypeError("documents must be a list of documents, got a single one")
    listed: list[Any] = list(source)
    if not listed:
        raise ValueError("documents is empty: there is nothing to rank")
    for kind in (CompressedDocuments, Tensor):
        if all(isinstance(each, kind) for each in listed):
            return listed, False
    if all(isinstance(each, list | tuple) for each in listed):
        _check_count(len(listed), questions)
        return [compress(each) for each in listed], False
    return [compress(listed)], True


def _check_count(given: int, questions: int) -> None:
    if given != questions:
        raise ValueError(f"documents are given for {given} questions, there are {questions}")


def check_questions(questions: Sequence[str], given: int) -> None:
    """Refuse a single string, and documents given for another number of questions."""
    if isinstance(questions, str):
        raise TypeError("questions must be a list of strings, got a single string")
    _check_count(given, len(questions))


def check_top_k(top_k: int) -> int:
    """`top_k` as Python's own integer, if it is a positive one."""
    if not is_integer(top_k) or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, got {top_k!r}")
    return int(top_k)


def memory_of_each_question(
    questions: Sequence[str], memory: Tensor | Sequence[MemoryOfQuestion], read: ReadMemory
) -> list[list[Tensor]]:
    """Memory to answer from: for each question `[m_i, H]` of its documents, of which it may have
    none.

    Raises:
        TypeError, ValueError: `questions` is a single string, memory for another number of
            questions, of another shape or of another model.
    """
    if isinstance(memory, CompressedDocuments):
        raise TypeError(
            "memory must be one CompressedDocuments for each question, got a single one"
        )
    check_questions(questions, len(memory))
    return [
        read(given, f"memory of question {row}").documents() for row, given in enumerate(memory)
    ]


def counts_of(documents: Sequence[Tensor]) -> list[int]:
    """Memory tokens of each document of a question."""
    return [len(each) for each in documents]
