"""Which questions of a document are asked in a step, and which of them share its memory."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from clara.backbone.rotary import side
from clara.data.examples import DocumentQuestions
from clara.text.prompts import Prompt

P = TypeVar("P", bound=Prompt)


@dataclass(frozen=True)
class QuestionPrompt(Prompt):
    """The prompt of a question with its answer, and the texts that it is made of."""

    documents: tuple[str, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Asking:
    """How questions are taken from examples that have many.

    Attributes:
        most: how many questions of an example are asked.
        switching: lengths at which the backbone takes other rotary factors, see
            `clara.backbone.rotary.switching_lengths`; mostly none.
    """

    most: int = 16
    switching: Sequence[int] = ()

    def drawn(self, example: DocumentQuestions, *, seed: int = 0) -> list[tuple[str, str]]:
        """Questions with their answers, in the example's order.

        Args:
            seed: of the draw among more than are asked. The same seed draws differently for each
                example.
        """
        pairs = list(zip(example.questions, example.answers, strict=True))
        if len(pairs) <= self.most:
            return pairs
        # Seeded by a string, which gives the same numbers in every process, as `hash` does not.
        source = random.Random(f"{seed} {example.documents} {example.questions}")
        return [pairs[row] for row in sorted(source.sample(range(len(pairs)), self.most))]

    def groups(self, prompts: Sequence[P]) -> list[list[P]]:
        """Groups of prompts that can share their beginning, mostly one.

        Prompts on both sides of a switching length cannot: with other rotary factors the shared
        rows have other keys.
        """
        groups: dict[tuple[bool, ...], list[P]] = defaultdict(list)
        for prompt in prompts:
            groups[side(self.switching, len(prompt.ids))].append(prompt)
        return list(groups.values())
