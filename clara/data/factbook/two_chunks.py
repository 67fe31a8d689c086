"""A question that needs two passages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TwoChunks:
    """A question whose answer follows from two passages together and from neither alone.

    Attributes:
        id: names the question.
        answer: literally in one of the passages, letter case aside.
        golds: ids of the two passages.
        wanted: the fields that have to be read, each as slug of the country and label.
        banned: a text that no other passage of these countries may hold, "" if there is none.
        decoys: ids of passages that answer a question much like this one.
    """

    id: str
    question: str
    answer: str
    golds: tuple[str, str]
    wanted: tuple[tuple[str, str], ...]
    banned: str = ""
    decoys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.id
