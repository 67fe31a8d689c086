"""Answers from memory vectors, and the controls that tell whether they come from there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.records import Document
from clara.evaluation.systems.digests import model_settings
from clara.evaluation.systems.generating import MAX_NEW_TOKENS, answers_to, text_prompts
from clara.evaluation.systems.protocol import Answered
from clara.evaluation.systems.store import DocumentMemory, KeptDocument
from clara.model.clara import Clara
from clara.model.ranking import counts_of


class MemorySystem:
    """CLaRa: the generator reads the memory of the documents in place of their text.

    Args:
        memory: of the documents, at one rate.
    """

    reads_documents = True
    kind = "clara"

    def __init__(self, memory: DocumentMemory, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.memory = memory
        self.rate = memory.rate
        self.name = f"{self.kind}@{memory.rate}"
        self._max_new_tokens = max_new_tokens

    @property
    def trained(self) -> bool:
        return self.memory.model.is_trained

    @property
    def settings(self) -> dict[str, Any]:
        model = self.memory.model
        return {
            **model_settings(model, (COMPRESSOR, GENERATOR)),
            "fingerprint": model.fingerprint,
            "memory": self.memory.settings,
            "max_new_tokens": self._max_new_tokens,
        }

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        begin, before = time.perf_counter(), self._seconds()
        kept = [self.memory.read(each) for each in documents]
        # Compressing is no part of an answer; fetching what was compressed is.
        seconds = time.perf_counter() - begin - (self._seconds() - before)
        parts = [[part for document in each for part in document.parts] for each in kept]
        read = {"read": 1000 * max(seconds, 0.0) / max(len(questions), 1)} if any(kept) else {}
        return self._answers(questions, documents, kept, parts, read)

    def _seconds(self) -> float:
        """What compressing has taken so far."""
        measures = self.memory.measures
        return 0.0 if measures is None else measures.seconds

    def _answers(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[Document]],
        kept: Sequence[Sequence[KeptDocument]],
        parts: Sequence[Sequence[Tensor]],
        timings_ms: Mapping[str, float] | None = None,
    ) -> list[Answered]:
        """Answers from memory.

        Args:
            kept: memory of the documents, which is counted.
            parts: memory that is read, as many vectors.
            timings_ms: of what was done before, for each question.
        """
        model = self.memory.model
        prompts = model.memory_prompts(questions, [counts_of(each) for each in parts])
        joined = [_joined(model, each) for each in parts]
        answers, milliseconds = answers_to(
            model, questions, prompts, joined, GENERATOR, self._max_new_tokens
        )
        texts = [[document.text for document in each] for each in documents]
        beside = text_prompts(model, questions, texts)
        return [
            Answered(
                text,
                len(prompt.ids),
                {**(timings_ms or {}), "generate": milliseconds},
                text_prompt_tokens=len(with_text.ids) if each else None,
                vectors=sum(document.vectors for document in each),
                document_tokens=sum(document.tokens for document in each),
                kept_bytes=sum(document.nbytes for document in each),
            )
            for text, prompt, with_text, each in zip(answers, prompts, beside, kept, strict=True)
        ]


class ShuffledMemory(MemorySystem):
    """Control: the memory of another question's documents, with as many vectors.

    The vectors of another document are repeated or cut to the number that the right document has.
    What this answers rightly does not come from the right documents' memory.
    """

    kind = "clara-shuffled"
    control = "shuffled"

    def answer_swapped(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[Document]],
        others: Sequence[Sequence[Document]],
    ) -> list[Answered]:
        kept = [self.memory.read(each) for each in documents]
        parts = []
        for own, other in zip(kept, others, strict=True):
            wanted = [len(part) for document in own for part in document.parts]
            found = [part for document in self.memory.read(other) for part in document.parts]
            parts.append(
                [_of_length(found[row % len(found)], count) for row, count in enumerate(wanted)]
            )
        return self._answers(questions, documents, kept, parts)


class NoMemory(MemorySystem):
    """Control: the generator without any memory."""

    reads_documents = False
    kind = "clara-none"
    control = "none"

    def __init__(self, memory: DocumentMemory, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        super().__init__(memory, max_new_tokens=max_new_tokens)
        self.name = self.kind

    @property
    def settings(self) -> dict[str, Any]:
        model = self.memory.model
        return {**model_settings(model, (GENERATOR,)), "max_new_tokens": self._max_new_tokens}

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        none: list[list[Document]] = [[] for _ in questions]
        answers = super().answer(questions, none)
        return [Answered(each.text, each.prompt_tokens, each.timings_ms) for each in answers]


def _joined(model: Clara, parts: Sequence[Tensor]) -> Tensor:
    """Memory `[slots, H]` of a prompt on the model's device and in its dtype."""
    if not parts:
        return torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
    return torch.cat([*parts]).to(model.device, model.dtype)


def _of_length(part: Tensor, count: int) -> Tensor:
    """The first `count` vectors of a part `[m, H]` that is repeated as often as that takes."""
    return part.repeat(-(-count // len(part)), 1)[:count]
