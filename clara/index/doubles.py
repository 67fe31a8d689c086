"""Rows of one document that two processes have stored at the same time, and which of them stay."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa

from clara.index.errors import MemoryIndexError
from clara.index.header import Header
from clara.index.snapshot import Snapshot

PATIENCE: Final = timedelta(minutes=10)
"""With other writers, in all retries of a commit."""

RETRIES: Final = 1000

_TRIES = 30  # to look at what is stored, while others remove versions all the time
_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds


class UnseenError(MemoryIndexError):
    """Rows are stored, but not all is well with what is stored, or that could not be seen."""


def attempts(most: int = RETRIES) -> Iterator[int]:
    """Count attempts of a commit that others overtake, with a pause before each but the first."""
    begin = time.monotonic()
    for attempt in range(most):
        if attempt:
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _PAUSE * attempt)))
        yield attempt
        if time.monotonic() - begin > PATIENCE.total_seconds():
            return


def kept(
    snapshot: Snapshot, dataset: Any, batch: pa.RecordBatch, fields: Sequence[int] | None = None
) -> bool:
    """Whether rows that were inserted are the first ones of their documents; else delete them.

    Args:
        snapshot: none of the documents is in it.
        dataset: at the version that inserted the rows, or a later one afterwards.
        fields: of the columns when the rows were written; None if Lance compares them.

    Raises:
        UnseenError: that could not be found out. The rows are stored.
    """
    if dataset.version == snapshot.version + 1:  # nobody was in between
        return True
    why: BaseException | None = None
    for _ in attempts(_TRIES):
        try:
            dataset.checkout_latest()
            return _decided(snapshot, dataset, batch, fields)
        except Exception as error:  # others removed what was being read, or changed the same rows
            why = error
    raise UnseenError(
        f"{snapshot.path}: the documents were stored, but not whether another process has stored "
        f"some of them, too: {why}"
    ) from why


def _decided(
    snapshot: Snapshot, dataset: Any, batch: pa.RecordBatch, fields: Sequence[int] | None
) -> bool:
    """The decision of `kept`, by the last version.

    Of two processes that have appended the same document, the one whose rows lie behind deletes
    them. Rows of ours that are gone were replaced or deleted by others, after they were stored.
    """
    mine = of_documents(batch)
    first, last = (batch["sequence"][place].as_py() for place in (0, -1))
    there = dataset.to_table(
        columns=["sequence"],
        filter=f"{mine} OR id IN ({quoted(batch['id'].to_pylist())})",
        scan_in_order=True,
    )
    numbers = there["sequence"].to_pylist()
    own = [number is not None and first <= number <= last for number in numbers]
    same = Header.from_schema(dataset.schema, snapshot.path) == snapshot.header
    same = same and fields in (None, field_numbers(dataset))
    if same and own[: sum(own)] == [True] * sum(own):  # nobody else's lie before
        return True
    dataset.delete(f"{mine} AND sequence BETWEEN {first} AND {last}")
    return False


def remove_doubles(dataset: Any, ids: Sequence[str]) -> int:
    """Delete rows of ids that are there twice, but the first of each, which is the one that counts.

    A process that was killed before it could delete its own has left them.

    Returns:
        How many there were.
    """
    there = dataset.to_table(
        columns=["id"], filter=f"id IN ({quoted(ids)})", with_row_id=True, scan_in_order=True
    )
    behind: dict[str, list[int]] = {}
    for name, place in zip(there["id"].to_pylist(), there["_rowid"].to_pylist(), strict=True):
        behind.setdefault(name, []).append(place)
    # Others may move rows meanwhile. So each id stands beside its own places, of which there are
    # fewer than rows: one of them stays whatever happens.
    doubles = [
        f"(id = {quoted([name])} AND _rowid IN ({', '.join(map(str, places[1:]))}))"
        for name, places in behind.items()
        if places[1:]
    ]
    if doubles:
        dataset.delete(" OR ".join(doubles))
    return len(there) - len(behind)


def field_numbers(dataset: Any) -> list[int]:
    """How Lance knows the columns in files: a column that another program made anew has another."""
    return [field.id() for field in dataset.lance_schema.fields()]


def of_documents(batch: pa.RecordBatch) -> str:
    """A filter for all rows of the documents that rows are of."""
    return f"document_id IN ({quoted(dict.fromkeys(batch['document_id'].to_pylist()))})"


def quoted(values: Iterable[str]) -> str:
    """Strings as SQL has them, where a quote is doubled and nothing else has a meaning."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
