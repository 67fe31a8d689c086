"""Batches of a curriculum, and the task of repeating a document from its memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from clara.data.examples import PretrainingExample
from clara.text.tokenizer import SafeTokenizer
from clara.training.curriculum import Curriculum, Lesson
from clara.training.moments import Moment
from clara.training.number_lists import number_list
from clara.training.prompts import RECONSTRUCTION_TASK


class CurriculumCollator:
    """Batches as a curriculum has them: some examples become the task of repeating a document, or
    a list of random numbers.

    The others are left as they are, with whole documents.

    Args:
        collate: makes a batch of the examples, such as a `CompressionCollator`.
        longest: limit of a document to repeat, in tokens, where the curriculum sets none.
    """

    asks_for_moment = True

    def __init__(
        self,
        collate: Callable[..., Any],
        curriculum: Curriculum,
        tokenizer: SafeTokenizer,
        longest: int,
    ) -> None:
        self._collate = collate
        self._curriculum = curriculum
        self._tokenizer = tokenizer
        self._longest = longest

    def __call__(self, examples: Sequence[Any], moment: Moment) -> Any:
        lesson = self._curriculum.at(moment)
        generator = moment.random("reconstruction")
        drawn = [self._drawn(example, lesson, generator) for example in examples]
        return self._collate(
            drawn, seed=moment.seed, rate=lesson.rate, averages_only=lesson.averages_only
        )

    def _drawn(self, example: Any, lesson: Lesson, generator: random.Random) -> Any:
        drawn = generator.random()
        longest = min(lesson.text_tokens or self._longest, self._longest)
        if drawn < lesson.reconstruction:
            document = generator.choice(example.documents)
        elif drawn < lesson.reconstruction + lesson.numbers:
            document = number_list(generator)
        else:
            return example
        text = window(self._tokenizer, document, longest, generator)
        return PretrainingExample("paraphrase", (RECONSTRUCTION_TASK,), (text,), (text,))


class DrawingCollator:
    """Batches whose questions are drawn anew in every step, see `Asking`.

    Args:
        collate: makes a batch of examples with a seed, such as a `TextCollator`.
    """

    asks_for_moment = True

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Any], moment: Moment) -> Any:
        return self._collate(examples, seed=moment.seed)


def window(tokenizer: SafeTokenizer, text: str, tokens: int, generator: random.Random) -> str:
    """A random piece of a text, of at most so many whole tokens; all of a text that is shorter.

    Args:
        tokens: of the piece when it is tokenised by itself.
        generator: what the place is drawn with.
    """
    whole = text.strip()
    (encoded,) = tokenizer.encode_texts([whole])
    total = len(encoded.ids)
    if total <= tokens:
        return whole
    begin = generator.randint(0, total - tokens)
    end = begin + tokens
    stop = encoded.starts[end] if end < total else len(whole)
    piece = whole[encoded.starts[begin] : stop].strip()
    # White space, or less than one character: the beginning of the text is neither.
    return _shortened(tokenizer, piece or whole, tokens, generator)


def _shortened(tokenizer: SafeTokenizer, text: str, tokens: int, generator: random.Random) -> str:
    """One end of a text: cut out of its context, a text may have more tokens than in it."""
    from_the_end = generator.random() < 0.5
    (encoded,) = tokenizer.encode_texts([text])
    while len(encoded.ids) > tokens and len(text) > 1:
        if from_the_end:
            text = text[max(encoded.starts[-tokens], 1) :].lstrip()
        else:
            text = text[: encoded.starts[tokens]].rstrip() or text[:1]
        (encoded,) = tokenizer.encode_texts([text])
    return text
