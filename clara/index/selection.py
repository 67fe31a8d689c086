"""Some documents of an index in the place of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clara.index.errors import MemoryIndexError
from clara.index.hits import Hit
from clara.index.memory_index import MemoryIndex


class Selection:
    """The documents of an index that a filter keeps, or a list of them, for questions.

    It takes the place of the index where documents are found: `Clara.answer`, `retrieve` and
    `find`. What they find is exactly what they would among those documents alone.

    Args:
        filter: see `MemoryIndex.search`.
        ids: of documents; with a filter, those of them that it keeps.
        approximate: see `MemoryIndex.search`; the one thing for which the above need not hold.

    Example:
        >>> recent = Selection(index, "year >= 2020")  # doctest: +SKIP
        >>> model.answer(["Who repairs engines?"], recent)  # doctest: +SKIP
    """

    def __init__(
        self,
        index: MemoryIndex,
        filter: str | None = None,
        ids: Sequence[str] | None = None,
        *,
        approximate: bool = False,
    ) -> None:
        self._index, self._filter, self._ids = index, filter, ids
        self._approximate = approximate

    @property
    def fingerprint(self) -> str:
        """Of the model that wrote the index's memory."""
        return self._index.fingerprint

    def search(self, query_memory: Tensor, k: int) -> list[list[Hit]]:
        """See `MemoryIndex.search`.

        Raises:
            MemoryIndexError: also if no document is left.
        """
        found = self._index.search(
            query_memory, k, self._filter, self._ids, approximate=self._approximate
        )
        if any(not hits for hits in found) and len(self._index):
            kept = "the ids" if self._filter is None else f"the filter {self._filter!r}"
            raise MemoryIndexError(f"{self._index.path}: {kept} left no document to search")
        return found
