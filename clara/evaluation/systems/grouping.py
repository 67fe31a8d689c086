"""Which documents are computed together: always the same ones."""

from __future__ import annotations

from collections.abc import Iterable

from clara.data.records import Document

GROUP = 16


class Groups:
    """Documents in groups of `GROUP`, in the order in which they are first planned.

    Numbers differ in the last digits with what is computed together. A run that goes on after a
    kill must give the answers that it would have given, so a document is always computed with the
    others of its group, and whole groups are.
    """

    def __init__(self) -> None:
        self._groups: list[list[Document]] = []
        self._group_of: dict[str, int] = {}

    def plan(self, documents: Iterable[Document]) -> None:
        """Add documents that are in no group yet, behind those that are."""
        new = {each.id: each for each in documents if each.id not in self._group_of}
        ordered = list(new.values())
        for first in range(0, len(ordered), GROUP):
            group = ordered[first : first + GROUP]
            self._group_of.update(dict.fromkeys((each.id for each in group), len(self._groups)))
            self._groups.append(group)

    def of(self, name: str) -> list[Document]:
        """The group of a planned document."""
        return self._groups[self._group_of[name]]
