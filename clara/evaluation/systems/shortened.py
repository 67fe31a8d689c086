"""Plain text with as many tokens as memory has vectors: what costs the same prompt."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

from clara.data.records import Document
from clara.evaluation.budget import lead, memory_vectors, sentences, token_count
from clara.evaluation.systems.generating import MAX_NEW_TOKENS
from clara.evaluation.systems.protocol import Answered
from clara.evaluation.systems.text import TextSystem
from clara.model.clara import Clara


class ShortenedText(TextSystem):
    """The backbone reads documents cut to the tokens that their memory takes, see `budget`.

    Args:
        kind: "lead", the beginning of each document, or "sentences", those that BM25 ranks first
            for the question.
        rate: compression rate of the memory that it stands beside.
        has_adapters: False for a bare backbone, which has no memory; documents of n tokens then
            have a budget of n / rate.
    """

    def __init__(
        self,
        model: Clara,
        kind: Literal["lead", "sentences"],
        rate: int,
        *,
        has_adapters: bool = True,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        super().__init__(model, name=kind, max_new_tokens=max_new_tokens)
        self.rate = rate
        self.name = f"{kind}@{rate}"
        self._has_adapters = has_adapters

    @property
    def settings(self) -> dict[str, Any]:
        own = self._has_adapters and self.rate == self._model.config.compression_rate
        vectors = self._model.config.memory_tokens if own else None
        return {
            **super().settings,
            "rate": self.rate,
            "document_length": self._model.config.document_length,
            "budget": "by length" if vectors is None else vectors,
        }

    def check(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> None:
        """Nothing: whole documents need not fit."""

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        """Answers from the cut text.

        Of an answer, `vectors` are the tokens that were left and `document_tokens` those there
        were. The time of cutting is the stage "cut".
        """
        begin = time.perf_counter()
        cut = [
            self.shortened(question, each)
            for question, each in zip(questions, documents, strict=True)
        ]
        milliseconds = 1000 * (time.perf_counter() - begin) / max(len(questions), 1)
        answers = self.answer_texts(questions, cut, documents, {"cut": milliseconds})
        return [
            dataclasses.replace(
                answered,
                vectors=self._tokens(texts) if each else None,
                document_tokens=self._tokens([document.text for document in each]),
            )
            for answered, texts, each in zip(answers, cut, documents, strict=True)
        ]

    def shortened(self, question: str, documents: Sequence[Document]) -> list[str]:
        """What is left of the documents of a question, best first."""
        texts = [document.text for document in documents]
        budgets = memory_vectors(
            self._model, documents, self.rate, by_length=not self._has_adapters
        )
        if self.kind == "lead":
            return lead(self._model.tokenizer, texts, budgets)
        return sentences(self._model.tokenizer, texts, question, sum(budgets))

    def _tokens(self, texts: Sequence[str]) -> int:
        return sum(token_count(self._model.tokenizer, text) for text in texts)
