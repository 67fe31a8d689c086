"""The documents a question may be answered from, in any of the accepted forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clara.checks import is_integer
from clara.data.records import Document
from clara.memory.documents import CompressedDocuments
from clara.memory.space import check_readable
from clara_kernels import cosine_rerank, cosine_topk

if TYPE_CHECKING:
    from clara.model.clara import Clara
    from clara.model.modules import ClaraCore


@dataclass(frozen=True)
class Candidates:
    """Candidates of `B` questions.

    Attributes:
        memory: `[N_i, m, H]` for each question.
        documents: what each memory was made from; None when only tensors were given.
        shared: all questions have the same candidates.
    """

    memory: list[Tensor]
    documents: list[CompressedDocuments] | None
    shared: bool

    @classmethod
    def gather(cls, model: Clara, source: Any, questions: int) -> Candidates:
        """Candidates from tensors, compressed documents or raw documents.

        Args:
            source: shared by all questions: `CompressedDocuments`, a tensor `[N, m, H]`, or a
                list of raw documents. One for each question: a tensor `[B, N, m, H]`, or a list
                of any of these of length `B`.

        Raises:
            TypeError, ValueError: another form, another number of questions, no candidate,
                memory of another shape or of another model.
        """
        if isinstance(source, CompressedDocuments):
            return cls._of_documents(model, [source], questions, shared=True)
        if isinstance(source, Tensor):
            if source.ndim == 3:
                return cls._of_memory(model, [source], questions, shared=True)
            return cls._of_memory(model, list(source), questions, shared=False)
        if isinstance(source, str | Mapping | Document):
            raise TypeError("documents must be a list of documents, got a single one")
        source = list(source)
        if not source:
            raise ValueError("documents is empty: there is nothing to rank")
        if all(isinstance(each, CompressedDocuments) for each in source):
            return cls._of_documents(model, source, questions, shared=False)
        if all(isinstance(each, Tensor) for each in source):
            return cls._of_memory(model, source, questions, shared=False)
        if all(isinstance(each, list | tuple) for each in source):
            _check_count(len(source), questions)
            compressed = [model.compress(each) for each in source]
            return cls._of_documents(model, compressed, questions, shared=False)
        return cls._of_documents(model, [model.compress(source)], questions, shared=True)

    @classmethod
    def _of_documents(
        cls,
        model: Clara,
        documents: list[CompressedDocuments],
        questions: int,
        *,
        shared: bool,
    ) -> Candidates:
        for each in documents:
            _check_fingerprint(model, each)
        found = cls._of_memory(model, [d.memory for d in documents], questions, shared=shared)
        return cls(found.memory, documents * questions if shared else documents, shared)

    @classmethod
    def _of_memory(
        cls, model: Clara, memory: list[Tensor], questions: int, *, shared: bool
    ) -> Candidates:
        memory = memory * questions if shared else memory
        _check_count(len(memory), questions)
        for row, each in enumerate(memory):
            _check_shape(model, each, row)
            if not len(each):
                raise ValueError(f"question {row} has no candidate documents")
        return cls([each.to(model.device) for each in memory], None, shared)

    def rank(self, queries: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """The best `min(k, N_i)` candidates of each question, highest cosine first.

        Args:
            queries: `[B, m, H]`.

        Returns:
            For each question float32 scores and int64 positions; ties go to the lowest.
        """
        if not self.memory:
            return []
        flat = queries.flatten(1)
        if self.shared:
            scores, order = cosine_topk(flat, self.memory[0].flatten(1), k)
            return list(zip(scores, order, strict=True))
        counts = [len(each) for each in self.memory]
        starts = [0, *accumulate(counts)]
        offsets = torch.tensor(starts, dtype=torch.int32, device=flat.device)
        stacked = torch.cat([each.flatten(1) for each in self.memory])
        scores, rows = cosine_rerank(flat, stacked, min(k, max(counts)), offsets=offsets)
        return [
            (scores[i, : min(k, count)], rows[i, : min(k, count)] - starts[i])
            for i, count in enumerate(counts)
        ]


def _check_count(given: int, questions: int) -> None:
    if given != questions:
        raise ValueError(f"documents are given for {given} questions, there are {questions}")


def check_questions(questions: Sequence[str], given: int) -> None:
    """Refuse a single string, and documents given for another number of questions."""
    if isinstance(questions, str):
        raise TypeError("questions must be a list of strings, got a single string")
    _check_count(given, len(questions))


def _check_shape(model: ClaraCore, memory: Tensor, row: int) -> None:
    m, width = model.config.memory_tokens, model.hidden_size
    if memory.ndim != 3 or memory.shape[1:] != (m, width):
        raise ValueError(
            f"memory of question {row} must be [N, {m}, {width}], got {list(memory.shape)}"
        )


def _check_fingerprint(model: ClaraCore, documents: CompressedDocuments) -> None:
    check_readable(model, documents.fingerprint, "documents were compressed", "compress them again")


def check_top_k(top_k: int) -> int:
    """`top_k` as Python's own integer, if it is a positive one."""
    if not is_integer(top_k) or top_k < 1:
        raise ValueError(f"top_k must be a positive integer, got {top_k!r}")
    return int(top_k)


def per_question(
    model: ClaraCore, questions: Sequence[str], memory: Tensor | Sequence[Any]
) -> list[Tensor]:
    """Memory to answer from, `[k_i, m, H]` for each question; `k_i` may be 0.

    Raises:
        TypeError, ValueError: `questions` is a single string, memory for another number of
            questions, of another shape or of another model.
    """
    if isinstance(memory, CompressedDocuments):
        raise TypeError(
            "memory must be one CompressedDocuments for each question, got a single one"
        )
    check_questions(questions, len(memory))
    each = []
    for row, given in enumerate(memory):
        if isinstance(given, CompressedDocuments):
            _check_fingerprint(model, given)
            given = given.memory
        _check_shape(model, given, row)
        each.append(given)
    return each
