"""BM25 by the package bm25s, the ranking by words that everybody has."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.errors import UnavailableError
from clara.evaluation.rankers.protocol import Ranked, best, candidates_of

STOPWORDS = "en"


class Bm25Ranker:
    """Okapi BM25 as bm25s has it by default (Lù, 2024, arXiv 2407.03618): Lucene's form.

    How rare a word is, is counted over all documents, and the candidates of a question are ordered
    by that. Words are lower-cased, English stop words dropped, and nothing is stemmed.

    Raises:
        UnavailableError: the package is not installed.
    """

    name = "bm25"

    def __init__(self) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise UnavailableError(
                "ranker 'bm25' needs the package bm25s, of the extra 'eval': pip install bm25s"
            ) from error
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._package: Any = bm25s
        self._documents: Mapping[str, Document] | None = None
        self._index: Any = None
        self._row: dict[str, int] = {}
        self.document_seconds = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        return {"bm25s": self._package.__version__, "stopwords": STOPWORDS}

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        if self._documents is not documents:
            self._read(documents)
        asked = self._words([question.question for question in questions])
        rankings = []
        for question, words in zip(questions, asked, strict=True):
            scores = self._index.get_scores(words) if words and self._index else None
            rankings.append(
                best(
                    (
                        (name, 0.0 if scores is None else float(scores[self._row[name]]))
                        for name in candidates_of(question, documents)
                    ),
                    k,
                )
            )
        return rankings

    def _read(self, documents: Mapping[str, Document]) -> None:
        begin = time.perf_counter()
        words = self._words([document.text for document in documents.values()])
        self._index = None  # where no document has a word in it
        if any(words):
            self._index = self._package.BM25()
            self._index.index(words, show_progress=False)
        self._row = {name: row for row, name in enumerate(documents)}
        self._documents = documents
        self.document_seconds += time.perf_counter() - begin

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = self._package.tokenize(
            list(texts), stopwords=STOPWORDS, return_ids=False, show_progress=False
        )
        return found
