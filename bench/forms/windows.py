"""Pieces of passages that all have the same number of tokens.

A text of exactly n tokens has n / rate memory tokens in every form of memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from clara.data import write_jsonl
from clara.data.examples import ExampleFile, answers_example, pretraining_example
from clara.data.values import DataError
from clara.text.tokenizer import SafeTokenizer
from clara.training.prompts import RECONSTRUCTION_TASK
from clara.training.reconstruction import window


def passages(file: Path) -> list[str]:
    """The documents of a file of training or held-out records, each of them once."""
    examples = ExampleFile(file, answers_example)
    return list(dict.fromkeys(text for example in examples for text in example.documents))


def windows(
    tokenizer: SafeTokenizer, texts: Sequence[str], tokens: int, source: random.Random
) -> Iterator[str]:
    """Pieces of `tokens` tokens, for ever: one of each text in random order, then again.

    Raises:
        DataError: no text is that long.
    """
    while True:
        found = 0
        for text in source.sample(texts, len(texts)):
            piece = window(tokenizer, text, tokens, source)
            (encoded,) = tokenizer.encode_texts([piece])
            if len(encoded.ids) == tokens:
                found += 1
                yield piece
        if not found:
            raise DataError(f"no passage has {tokens} tokens, the length of a window")


def write_windows(
    file: Path, tokenizer: SafeTokenizer, texts: Sequence[str], tokens: int, count: int, seed: int
) -> None:
    """Records of pretraining whose task is to repeat a piece, in the order they are read."""
    drawn = islice(windows(tokenizer, texts, tokens, random.Random(seed)), count)
    write_jsonl(
        file,
        (
            {
                "data_type": "paraphrase",
                "question": [RECONSTRUCTION_TASK],
                "answers": [text],
                "docs": [text],
            }
            for text in drawn
        ),
    )


def read_windows(file: Path) -> list[str]:
    """The pieces that `write_windows` wrote."""
    return [example.documents[0] for example in ExampleFile(file, pretraining_example)]
