"""Answers from the documents' text, and from no documents at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clara.data.records import Document
from clara.evaluation.systems.digests import model_settings
from clara.evaluation.systems.generating import (
    MAX_NEW_TOKENS,
    answers_to,
    check_texts,
    text_prompts,
)
from clara.evaluation.systems.protocol import Answered
from clara.model.clara import Clara


class TextSystem:
    """Plain retrieval-augmented generation: the documents' text is in the prompt.

    Args:
        model: whose backbone, tokenizer and prompt are used.
        name: of the system.
        adapter: what reads the text; None is the backbone as it is.
    """

    reads_documents = True

    def __init__(
        self,
        model: Clara,
        *,
        name: str = "text",
        adapter: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.name = self.kind = name
        self._model = model
        self._adapter = adapter
        self._max_new_tokens = max_new_tokens

    @property
    def settings(self) -> dict[str, Any]:
        adapters = () if self._adapter is None else (self._adapter,)
        return {
            **model_settings(self._model, adapters),
            "max_new_tokens": self._max_new_tokens,
        }

    def check(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> None:
        """See `check_texts`."""
        check_texts(self._model, questions, documents, self._max_new_tokens)

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        texts = [[document.text for document in each] for each in documents]
        return self.answer_texts(questions, texts)

    def answer_texts(
        self,
        questions: Sequence[str],
        texts: Sequence[Sequence[str]],
        documents: Sequence[Sequence[Document]] | None = None,
        timings_ms: Mapping[str, float] | None = None,
    ) -> list[Answered]:
        """Answers from texts, for systems that make the text shorter.

        Args:
            texts: of each question, in the order in which they stand in the prompt.
            documents: those that the texts were made from; None where they are whole.
            timings_ms: of what was done before, for each question.
        """
        prompts = text_prompts(self._model, questions, texts)
        answers, milliseconds = answers_to(
            self._model, questions, prompts, None, self._adapter, self._max_new_tokens
        )
        whole = prompts
        if documents is not None:
            given = [[document.text for document in each] for each in documents]
            whole = text_prompts(self._model, questions, given)
        return [
            Answered(
                text,
                len(prompt.ids),
                {**(timings_ms or {}), "generate": milliseconds},
                text_prompt_tokens=len(full.ids) if each else None,
            )
            for text, prompt, full, each in zip(answers, prompts, whole, texts, strict=True)
        ]


class ClosedBook(TextSystem):
    """The backbone without any document; the background of the prompt is empty."""

    reads_documents = False

    def __init__(self, model: Clara, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        super().__init__(model, name="closed-book", max_new_tokens=max_new_tokens)

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        return super().answer(questions, [[] for _ in questions])
