"""Results of ranking and answering, and the search for the documents of a question."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clara.config import PromptTemplate
from clara.data.marks import Scalar
from clara.memory.searching import SearchableIndex, SearchHit
from clara.model.ranking import Candidates, ReadMemory
from clara.text.prompts import build_text_prompt
from clara.text.tokenizer import SafeTokenizer


class Ranking(NamedTuple):
    """The ranked candidates of `B` questions.

    Attributes:
        scores: cosines, float32 `[B, k]`, descending; -inf if a question has fewer candidates.
        indices: int64 `[B, k]`, positions among the question's candidates; -1 in such slots.
    """

    scores: Tensor
    indices: Tensor


@dataclass(frozen=True)
class RankedDocument:
    """A document an answer was made from; `id` names the chunk if the document was split.

    Its score is the cosine that it was ranked by, or the similarity that it was reranked by.

    Attributes:
        place: the page or heading that the text begins in, such as "page 3"; None where that is
            not known.
        metadata: of the document; empty where there is none.
    """

    id: str
    document_id: str
    title: str | None
    score: float
    text: str
    place: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict, hash=False)


class _Stored:
    """The base of `Answer`, whose own `__dict__` is where an answer keeps its fields."""


_STORED: Any = vars(_Stored)["__dict__"]


class CountedWhenRead:
    """A field of a dataclass that may be given as a function, which is called at the first reading.

    After that the field is the number, and the function is forgotten.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> int | None:
        fields = {} if instance is None else _STORED.__get__(instance)
        if self._name not in fields:
            raise AttributeError(self._name)  # of the class too: the field has no default
        value: int | Callable[[], int] | None = fields[self._name]
        if callable(value):
            value = fields[self._name] = value()
        return value

    def __set__(self, instance: object, value: int | Callable[[], int] | None) -> None:
        _STORED.__get__(instance)[self._name] = value


@dataclass(frozen=True)
class Answer(_Stored):
    """An answer and the documents it was generated from.

    Attributes:
        text: the generated answer.
        documents: the documents it was generated from, best first; empty if only memory was given.
        prompt_tokens: length of the prompt, memory slots included.
        text_prompt_tokens: length of the same prompt with the documents' text instead of memory;
            None if the texts are not known. It is counted at the first access, which takes as long
            as tokenising the documents.
        timings_ms: wall time of "query", "rank" and "generate" for the whole batch.
    """

    text: str
    documents: list[RankedDocument]
    prompt_tokens: int
    text_prompt_tokens: int | None
    timings_ms: dict[str, float] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the number, not the function that counts."""
        return dict(vars(self))

    def _get_dict(self) -> dict[str, Any]:
        with suppress(AttributeError):  # nothing is stored yet
            self.text_prompt_tokens  # noqa: B018
        fields: dict[str, Any] = _STORED.__get__(self)
        return fields

    def _set_dict(self, fields: dict[str, Any]) -> None:
        _STORED.__set__(self, fields)

    # What looks at `vars(answer)` gets the number too.
    __dict__ = property(_get_dict, _set_dict)


# Below the class, because the decorator would take the descriptor for the default.
_counted = CountedWhenRead()
_counted.__set_name__(Answer, "text_prompt_tokens")
Answer.text_prompt_tokens = _counted  # type: ignore[assignment]


@dataclass(frozen=True)
class Found:
    """The documents selected for one question, best first, and memory `[m_i, H]` of each."""

    memory: list[Tensor]
    documents: list[RankedDocument]

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]


def counter_of_text_prompt(
    tokenizer: SafeTokenizer, template: PromptTemplate, question: str, texts: list[str]
) -> Callable[[], int]:
    """A function for `Answer.text_prompt_tokens`. It keeps the tokenizer, but not the model."""
    return lambda: len(build_text_prompt(tokenizer, template, texts, question).ids)


def found_in_index(
    index: SearchableIndex, queries: Tensor, k: int, read: ReadMemory
) -> list[Found]:
    """The best `k` documents of an index for each of the queries.

    Raises:
        ValueError: the index holds no documents.
    """
    found = []
    for row, hits in enumerate(index.search(queries, k)):
        if not hits:
            raise ValueError("the index is empty")
        ranked = [_ranked(hit) for hit in hits]
        memory = read([hit.memory for hit in hits], f"memory of question {row}")
        found.append(Found(memory.documents(), ranked))
    return found


def _ranked(hit: SearchHit) -> RankedDocument:
    """What is known of a hit; an index need not tell places and metadata."""
    return RankedDocument(
        hit.id,
        hit.document_id,
        hit.title,
        hit.score,
        hit.text,
        getattr(hit, "place", None),
        dict(getattr(hit, "metadata", {})),
    )


def found_among(candidates: Candidates, queries: Tensor, k: int) -> list[Found]:
    """The best `k` candidates for each of the queries."""
    return [
        _found(candidates, row, scores, order)
        for row, (scores, order) in enumerate(candidates.rank(queries, k))
    ]


def _found(candidates: Candidates, row: int, scores: Tensor, order: Tensor) -> Found:
    memory = candidates.memory[row].documents(order.tolist())
    if candidates.documents is None:
        return Found(memory, [])
    chosen = candidates.documents[row]
    ranked = [
        RankedDocument(
            chosen.ids[i],
            chosen.document_ids[i],
            chosen.titles[i],
            score,
            chosen.texts[i],
        )
        for i, score in zip(order.tolist(), scores.tolist(), strict=True)
    ]
    return Found(memory, ranked)


def padded_ranking(ranked: Sequence[tuple[Tensor, Tensor]]) -> Ranking:
    """Rankings of unequal length in one pair of tensors."""
    if not ranked:
        return Ranking(torch.empty(0, 0), torch.empty(0, 0, dtype=torch.long))
    width = max(len(order) for _, order in ranked)
    scores = ranked[0][0].new_full((len(ranked), width), -torch.inf)
    indices = ranked[0][1].new_full((len(ranked), width), -1)
    for row, (values, order) in enumerate(ranked):
        scores[row, : len(order)] = values
        indices[row, : len(order)] = order
    return Ranking(scores, indices)


class Clock:
    """Wall time of consecutive steps, in milliseconds; waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.laps[name] = 1000 * (now - self._last)
        self._last = now
