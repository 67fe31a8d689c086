"""Text made shorter by LLMLingua-2 (MIT), which keeps the words that it deems necessary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from clara.data.records import Document
from clara.errors import reason
from clara.evaluation.errors import UnavailableError
from clara.evaluation.systems.generating import MAX_NEW_TOKENS
from clara.evaluation.systems.protocol import Answered
from clara.evaluation.systems.text import TextSystem
from clara.model.clara import Clara

MODEL = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"


class LinguaSystem(TextSystem):
    """The backbone reads each document with about one of `rate` tokens left.

    Raises:
        UnavailableError: the package llmlingua or its model is not here.
    """

    def __init__(self, model: Clara, rate: int, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        super().__init__(model, name="llmlingua2", max_new_tokens=max_new_tokens)
        self.rate = rate
        self.name = f"{self.kind}@{rate}"
        self._device = str(model.device)
        _compressor(self._device)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "rate": self.rate, "shortened_by": MODEL}

    def check(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> None:
        """Nothing: whole documents need not fit."""

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        begin = time.perf_counter()
        texts = [
            shortened([document.text for document in each], self.rate, self._device)
            for each in documents
        ]
        cut = 1000 * (time.perf_counter() - begin) / max(len(questions), 1)
        return self.answer_texts(questions, texts, documents, {"cut": cut})


def shortened(texts: Sequence[str], rate: int, device: str | torch.device) -> list[str]:
    """Each text with about one of `rate` tokens left, as LLMLingua's own tokenizer counts.

    Nothing is left of a blank text, which the package cannot read.

    Raises:
        UnavailableError: says what is missing.
    """
    compressor = _compressor(str(device))
    return [
        compressor.compress_prompt(text, rate=1 / rate, force_tokens=["\n"])["compressed_prompt"]
        if text.strip()
        else ""
        for text in texts
    ]


@cache
def _compressor(device: str) -> Any:
    try:
        from llmlingua import PromptCompressor
    except ImportError:
        raise UnavailableError("the package llmlingua is not installed") from None
    try:
        return PromptCompressor(
            MODEL,
            use_llmlingua2=True,
            device_map=device,
            # The package trusts code of a repository unless it is told not to.
            model_config={"trust_remote_code": False},
        )
    except Exception as error:  # whatever loading a model raises, the other systems go on
        raise UnavailableError(f"cannot load {MODEL}: {reason(error)}") from error
