"""The entries of a run: a system, and the ranker that chooses its documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clara.evaluation.errors import EvaluationError
from clara.evaluation.rankers.protocol import Ranker
from clara.evaluation.systems.protocol import System


@dataclass(frozen=True)
class Entry:
    """A way to answer.

    Attributes:
        ranker: None for a system that reads no documents.
    """

    system: System
    ranker: Ranker | None = None

    @property
    def name(self) -> str:
        """The name, such as "text+bm25", "text+clara@4" or "closed-book".

        A ranker's rate is left out where it is that of the system: "clara@4+clara".
        """
        if self.ranker is None:
            return self.system.name
        kind = kind_of(self.ranker)
        own = self._has_rate and self.ranker.name == f"{kind}@{getattr(self.system, 'rate', None)}"
        return f"{self.system.name}+{kind if own else self.ranker.name}"

    @property
    def control(self) -> str | None:
        """ "shuffled" or "none" for a control."""
        return getattr(self.system, "control", None)

    def described(self) -> dict[str, Any]:
        return {
            "entry": self.name,
            "system": getattr(self.system, "kind", self.system.name),
            "rate": getattr(self.system, "rate", None) if self._has_rate else None,
            "ranker": None if self.ranker is None else self.ranker.name,
            "control": self.control,
            "trained": getattr(self.system, "trained", None),
        }

    @property
    def _has_rate(self) -> bool:
        return "@" in self.system.name


def kind_of(ranker: Ranker) -> str:
    """The name of a ranker without its compression rate, if it has one."""
    return str(getattr(ranker, "kind", ranker.name))


def crossed(systems: Sequence[System], rankers: Sequence[Ranker]) -> list[Entry]:
    """Every system that reads documents with every ranker, and the others alone.

    A system that has a method `rank` is its own ranker too.

    Raises:
        EvaluationError: a system reads documents and there is no ranker, or two entries have the
            same name.
    """
    entries = []
    for system in systems:
        if not system.reads_documents:
            entries.append(Entry(system))
            continue
        own: list[Any] = [system] if hasattr(system, "rank") else []
        if not (rankers or own):
            raise EvaluationError(
                f"system {system.name!r} reads documents and no ranker is given that chooses them"
            )
        entries += [Entry(system, ranker) for ranker in [*rankers, *own]]
    return checked(entries)


def checked(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, if there are any and each has a name of its own.

    Raises:
        EvaluationError: there is none, or two have the same name.
    """
    if not entries:
        raise EvaluationError("there is no system to evaluate")
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            raise EvaluationError(f"entry {name!r} is given {count} times")
    return list(entries)


def rankers_of(entries: Sequence[Entry]) -> list[Ranker]:
    """The rankers of entries, each once."""
    found = {entry.ranker.name: entry.ranker for entry in entries if entry.ranker is not None}
    return list(found.values())


def systems_of(entries: Sequence[Entry]) -> list[System]:
    """The systems of entries, each once."""
    return list({entry.system.name: entry.system for entry in entries}.values())
