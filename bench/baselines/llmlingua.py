"""Text made shorter by LLMLingua-2 (MIT), which keeps the words that it deems necessary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

MODEL = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"


class LinguaUnavailable(Exception):
    """The package or its model is not here."""


def shortened(texts: Sequence[str], rate: int, device: torch.device) -> list[str]:
    """Each text with about one of `rate` tokens left, as its own tokenizer counts.

    Raises:
        LinguaUnavailable: says what is missing.
    """
    compressor = _compressor(str(device))
    return [
        compressor.compress_prompt(text, rate=1 / rate, force_tokens=["\n"])["compressed_prompt"]
        for text in texts
    ]


@cache
def _compressor(device: str) -> Any:
    try:
        from llmlingua import PromptCompressor
    except ImportError:
        raise LinguaUnavailable("llmlingua is not installed") from None
    try:
        return PromptCompressor(MODEL, use_llmlingua2=True, device_map=device)
    except Exception as error:  # whatever loading a model raises, the other ways go on
        reason = str(error).partition("\n")[0]
        raise LinguaUnavailable(f"cannot load {MODEL}: {reason}") from error
