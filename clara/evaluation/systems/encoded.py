"""Encodings of questions that rankers of one model share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clara.model.answers import Clock
from clara.model.clara import Clara

MOST_BYTES = 1 << 30


class EncodedQuestions:
    """Questions as a model encodes them for ranking, computed once for all compression rates.

    A question's encoding does not depend on the rate of the documents. Numbers differ in the last
    digits with what is computed together, so a batch is kept as a whole.

    Args:
        most_bytes: of encodings to keep, in RAM; what comes after is computed each time.
    """

    def __init__(self, model: Clara, *, most_bytes: int = MOST_BYTES) -> None:
        self.model = model
        self._most_bytes = most_bytes
        self._kept: dict[tuple[str, ...], tuple[Tensor, float]] = {}
        self._nbytes = 0
        self._warm = False

    def encode(self, questions: Sequence[str]) -> tuple[Tensor, float]:
        """Encodings of a batch of questions, and the seconds that keeping them has saved.

        Returns:
            `[B, m, H]` as `Clara.encode_queries` gives it, and 0.0 if it was computed now.
        """
        key = tuple(questions)
        if key in self._kept:
            queries, seconds = self._kept[key]
            return queries.to(self.model.device), seconds
        clock = Clock(self.model.device)
        queries = self.model.encode_queries(list(questions))
        clock.lap("encode")
        # The time of the first batch is also that of what is set up once, so it stands for nothing.
        if self._warm and self._nbytes + queries.nbytes <= self._most_bytes:
            self._kept[key] = queries.cpu(), clock.laps["encode"] / 1000
            self._nbytes += queries.nbytes
        self._warm = True
        return queries, 0.0
