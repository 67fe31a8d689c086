"""Plain text whose keys and values are kept: exact, and large."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from clara.data.records import Document
from clara.evaluation.prefix_cache import MOST_BYTES, CachedAnswer, PrefixCache
from clara.evaluation.systems.digests import model_settings
from clara.evaluation.systems.generating import MAX_NEW_TOKENS, check_texts
from clara.evaluation.systems.protocol import Answered
from clara.evaluation.systems.store import Measures
from clara.model.clara import Clara


class KeptPrefixes:
    """The cache of a system, and what reading documents into it has taken.

    Args:
        model, most_bytes: see `PrefixCache`.

    Attributes:
        measures: seconds and bytes of all lists of documents that were read. A document has as many
            "vectors" as the prompt's beginning has tokens per document; each stands for its keys
            and values in all layers.
    """

    def __init__(self, model: Clara, most_bytes: int) -> None:
        self.cache = PrefixCache(model, most_bytes=most_bytes)
        self.measures = Measures()
        self._model = model
        self._warm = False

    def warm_up(self, documents: Sequence[Document]) -> None:
        """Read a list of documents without measuring or keeping it, but once."""
        if not self._warm:
            PrefixCache(self._model).read([document.text for document in documents])
            self._warm = True

    def read(self, texts: Sequence[str]) -> None:
        before = self.cache.reads
        kept = self.cache.read(texts)
        if self.cache.reads > before and kept.documents:
            self.measures.documents += kept.documents
            self.measures.seconds += kept.seconds
            self.measures.nbytes += kept.nbytes
            self.measures.tokens += kept.tokens
            self.measures.vectors += kept.tokens


class PrefixCacheSystem:
    """Answers as "text" gives them, from keys and values of the documents that were kept.

    The time of reading documents is no stage of an answer: it is spent beforehand, as compressing
    is, and is kept in `memory.measures`.

    Args:
        most_bytes: see `PrefixCache`.
    """

    reads_documents = True
    name = kind = "prefix-cache"

    def __init__(
        self,
        model: Clara,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.memory = KeptPrefixes(model, most_bytes)
        self._model = model
        self._max_new_tokens = max_new_tokens

    @property
    def settings(self) -> dict[str, Any]:
        return {**model_settings(self._model), "max_new_tokens": self._max_new_tokens}

    def check(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> None:
        """See `check_texts`."""
        check_texts(self._model, questions, documents, self._max_new_tokens)

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, each in enumerate(documents):
            rows[tuple(document.text for document in each)].append(row)
        answers: dict[int, CachedAnswer] = {}
        for texts, together in rows.items():
            self.memory.read(texts)
            found = self.memory.cache.answer(
                [questions[row] for row in together], texts, max_new_tokens=self._max_new_tokens
            )
            answers.update(zip(together, found, strict=True))
        return [
            Answered(
                text=answers[row].text,
                prompt_tokens=answers[row].prompt_tokens,
                timings_ms=answers[row].timings_ms,
                text_prompt_tokens=answers[row].prompt_tokens if each else None,
                kept_bytes=answers[row].nbytes if each else None,
            )
            for row, each in enumerate(documents)
        ]
