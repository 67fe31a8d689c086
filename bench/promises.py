"""What is promised, whether it was kept, and the table to read it from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Promise:
    """A number and its bound.

    Attributes:
        possible: the most that `limit`, measured in the same run, allows.
    """

    what: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    possible: float | None = None
    limit: str = "the limit allows"

    @property
    def kept(self) -> bool:
        if self.at_least is not None and self.measured < self.at_least:
            return False
        return self.at_most is None or self.measured <= self.at_most

    @property
    def reachable(self) -> bool:
        least, possible = self.at_least, self.possible
        return least is None or possible is None or possible >= least

    @property
    def missed(self) -> bool:
        return self.reachable and not self.kept

    @property
    def outcome(self) -> str:
        if self.kept:
            return "kept"
        return "missed" if self.reachable else "not reachable here"

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_least is None else f"{self.at_least:g}"
        outcome = "" if self.kept else ", MISSED"
        if not self.kept and not self.reachable:
            outcome = f", not reachable here: {self.limit} at most {self.possible:.3g}"
        return f"{self.what}: {self.measured:.3g} (promised {bound}){outcome}"


@dataclass
class Report:
    """Tables by title, further lines, and promises, in the order in which they were measured."""

    tables: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def row(self, title: str, head: Sequence[str], cells: Sequence[str]) -> None:
        self.tables.setdefault(title, [head]).append(cells)

    def lines(self, judged: bool) -> list[str]:
        lines = []
        for title, rows in self.tables.items():
            lines += [title, *aligned(rows), ""]
        lines += [*self.notes, ""]
        if judged:
            lines += map(str, self.promises)
        else:
            lines.append("Promises are not judged at this size.")
        return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
