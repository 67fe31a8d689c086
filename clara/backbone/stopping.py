"""Stop tokens and stop strings of an answer, and the text before them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from clara.text.tokenizer import SafeTokenizer

_WINDOW = 256
"""Tokens looked at for a stop text besides one for each of its bytes: speculative decoding adds
several tokens at a time."""


@dataclass(frozen=True)
class AnswerReader:
    """The text of generated tokens, up to where the answer ends.

    Attributes:
        tokenizer: of the backbone.
        ends: tokens that end an answer.
        left_out: those among them that are no part of the answer, whatever their text. Special
            tokens never are.
        stops: texts that end an answer and are no part of it. They may hold names of special
            tokens.
        blank: white space that the chat template writes between an answer and its end.
    """

    tokenizer: SafeTokenizer
    ends: Collection[int]
    left_out: Collection[int] = ()
    stops: tuple[str, ...] = ()
    blank: str = ""

    def text(self, ids: Sequence[int]) -> str:
        """The answer in `ids`, of which those after its end are padding."""
        return self._text(ids, complete=True)

    def length(self, ids: Sequence[int]) -> int:
        """Tokens of the answer and of what ends it."""
        count = next((i + 1 for i, token in enumerate(ids) if token in self.ends), len(ids))
        if not self.stops:
            return count
        return next((n for n in range(1, count) if self.stopped(ids[:n])), count)

    def stopped(self, ids: Sequence[int]) -> bool:
        """Whether the text of tokens holds one that ends an answer."""
        raw = self._raw(ids)
        return any(stop in raw for stop in self.stops)

    def begun(self, ids: Sequence[int]) -> str:
        """What of the answer stays as it is whatever tokens follow `ids`: whole words."""
        text = self._text(ids, complete=False)
        if text and text[-1] >= "\u2e80" and text[-1] != "\ufffd":  # no blanks between words there
            return text
        last = next((i for i in reversed(range(len(text))) if text[i].isspace()), 0)
        return text[:last].rstrip()

    def _text(self, ids: Sequence[int], *, complete: bool) -> str:
        position = next((i for i, token in enumerate(ids) if token in self.ends), None)
        ended = position is not None and ids[position] in self.left_out
        if position is not None:
            ids = ids[: position if ended else position + 1]
        if not self.stops:
            text = self.tokenizer.decode(ids)
            return text.removesuffix(self.blank) if ended else text
        raw = self._raw(ids)
        found = [place for stop in self.stops if (place := raw.find(stop)) >= 0]
        if found:
            cut, ended = min(found), True
        elif complete:
            cut = len(raw)
        else:
            cut = len(raw) - max(_overlap(raw, stop) for stop in self.stops)
        text = self._before(ids, raw, cut)
        return text.removesuffix(self.blank) if ended else text

    def _before(self, ids: Sequence[int], raw: str, cut: int) -> str:
        """The answer's part of the first `cut` characters of `raw`, which is all of `ids`."""
        if cut == len(raw):
            return self.tokenizer.decode(ids)
        for count in range(len(ids), -1, -1):
            part = self._raw(ids[:count])
            if len(part) <= cut and raw.startswith(part):
                return self.tokenizer.decode(ids[:count]) + raw[len(part) : cut]
        return raw[:cut]

    def _raw(self, ids: Sequence[int]) -> str:
        """The text of tokens with the names of special ones."""
        return str(self.tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False))


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` may begin with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class StopTexts(StoppingCriteria):
    """Ends a row of a batch, or a beam, whose generated text holds one of some texts.

    Args:
        reader: the one with the texts.
        prompt: tokens of the prompt in front of the generated ones; none for embeddings.
    """

    def __init__(self, reader: AnswerReader, prompt: int = 0) -> None:
        self._reader = reader
        self._prompt = prompt
        self._width = max(len(stop.encode()) for stop in reader.stops) + _WINDOW

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self._prompt :][:, -self._width :].tolist()
        found = [self._reader.stopped(row) for row in rows]
        return torch.tensor(found, device=input_ids.device, dtype=torch.bool)


class StopWhen(StoppingCriteria):
    """Ends every row as soon as a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition = condition

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._condition(), device=input_ids.device)


class TokenQueue(BaseStreamer):
    """Hands generated tokens to another thread.

    Iterating it gives the tokens of each step as a list, until generation ends.
    """

    def __init__(self) -> None:
        self._queue: Queue[list[int] | None] = Queue()

    def put(self, value: Tensor) -> None:
        self._queue.put(value.flatten().tolist())

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> TokenQueue:
        return self

    def __next__(self) -> list[int]:
        ids = self._queue.get()
        if ids is None:
            raise StopIteration
        return ids
