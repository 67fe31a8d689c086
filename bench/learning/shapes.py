"""What the memory of a sheet is: its form, and how many vectors it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import task

VECTORS = (5, 3)
_RATE = 8  # of form "learned"; its document length follows from the number of vectors


@dataclass(frozen=True)
class Shape:
    """A form of memory for sheets.

    Five vectors are one for the name and one for each fact. With three, a vector stands for up to
    four words, so that the mean of their embeddings does not tell which value goes with which key.

    Attributes:
        form: one of `bench.memory_forms.FORMS`.
        vectors: of a sheet, one of `VECTORS`.
    """

    form: str = "learned"
    vectors: int = 5

    @property
    def rate(self) -> int:
        """Tokens a vector in "spans": the lowest rate at which a sheet has so many vectors."""
        rates = range(1, task.WORDS + 1)
        return next(rate for rate in rates if -(-task.WORDS // rate) == self.vectors)

    def config(self) -> dict[str, Any]:
        """Fields of `ClaraConfig`."""
        if self.form == "learned":
            return {"document_length": _RATE * self.vectors, "compression_rate": _RATE}
        return {
            "memory_form": "spans",
            "compression_rate": self.rate,
            "rates": sorted({1, self.rate}),
        }

    def phase(self) -> dict[str, Any]:
        """What instruction tuning is told of its batches; nothing in "learned"."""
        if self.form == "learned":
            return {}
        return {"rates": [self.rate], "averages_only": self.form == "averages"}


USUAL = Shape()
