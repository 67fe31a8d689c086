"""The catalog of an index: its documents, their order, and where each lies in the dataset."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from clara.index.heads import Heads

Positions = npt.NDArray[np.int64]


class Catalog:
    """Ids and totals of all documents, in memory so that looking up an id reads nothing.

    A row of an index is a document in the order in which they were added. A position is where
    Lance has it. The two differ where Lance wrote the rows of a commit in another order, and
    behind an id that is stored twice: its first row is the document, later ones are left out.

    Attributes:
        rows: the row of each id, in order.
        documents: the row of each document, in order, or its rows if it has several.
        tokens: document tokens read, of all rows.
        memory_tokens: memory tokens written, of all rows.
        longest: memory tokens of the row that has most.
        string_bytes: of ids, titles and texts of all rows; None in formats that do not tell.
        duplicates: ids that are stored more than once.
        positions: int64, the position of each row; None while they are equal.
        stored: how many positions there are.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.documents: dict[str, int | list[int]] = {}
        self.tokens = 0
        self.memory_tokens = 0
        self.longest = 0
        self.string_bytes: int | None = 0
        self.duplicates: dict[str, None] = {}
        self.positions: Positions | None = None
        self.stored = 0

    def extend(self, batches: Iterable[Heads]) -> None:
        """Take in what is stored behind that which the catalog knows; all of a commit at once.

        `positions` becomes a new array, so that readers may keep the one they have.
        """
        ids: list[str] = []
        document_ids: list[str] = []
        tokens: list[int] = []
        counts: list[int] = []
        sizes: list[int | None] = []
        sequences: list[int | None] = []
        for heads in batches:
            ids += heads.ids
            document_ids += heads.document_ids
            tokens += heads.token_counts
            counts += heads.counts
            sizes += heads.string_bytes or [None] * len(heads.ids)
            sequences += heads.sequences
        order = added_order(sequences)
        chosen = []
        for place in range(len(ids)) if order is None else order.tolist():
            name = ids[place]
            if name in self.rows:
                self.duplicates[name] = None
                continue
            row = self.rows[name] = len(self.rows)
            others = self.documents.setdefault(document_ids[place], row)
            if isinstance(others, list):
                others.append(row)
            elif others != row:
                self.documents[document_ids[place]] = [others, row]
            self.tokens += tokens[place]
            self.memory_tokens += counts[place]
            self.longest = max(self.longest, counts[place])
            self.string_bytes = _total(self.string_bytes, sizes[place])
            chosen.append(place)
        begin, self.stored = self.stored, self.stored + len(ids)
        if self.positions is not None or order is not None or len(chosen) < len(ids):
            before = np.arange(begin) if self.positions is None else self.positions
            self.positions = np.concatenate([before, begin + np.array(chosen, dtype=np.int64)])

    def rows_of(self, document_id: str) -> list[int]:
        """The rows of a document, in order; empty if it is not there."""
        rows = self.documents.get(document_id, [])
        return rows if isinstance(rows, list) else [rows]


def _total(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else one + two


def added_order(sequences: list[int | None]) -> Positions | None:
    """Where the rows lie, in the order they were added; None if they lie in that order.

    Rows of one commit follow one another in the dataset; the sequence orders them among
    themselves, see `clara.index.heads`. Rows without a sequence stay where they are.
    """
    count = len(sequences)
    if all(number is None for number in sequences):
        return None
    values = np.array([-1 if number is None else number for number in sequences], dtype=np.int64)
    tags = values >> 32
    begins = np.ones(count, dtype=bool)
    begins[1:] = (tags[1:] != tags[:-1]) | (tags[1:] < 0)
    commit = np.cumsum(begins)
    order = np.lexsort((values, commit))
    return None if np.array_equal(order, np.arange(count)) else order.astype(np.int64)
