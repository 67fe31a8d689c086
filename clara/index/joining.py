"""Write and join the files of an index, and commit only those that are whole.

Lance 14 takes no notice of a write that fails while it joins files, or at the end of any file, as
on a full disk, and commits files that are cut off. So the files are compared with the sizes that
Lance believes they have before they are committed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
from lance.fragment import write_fragments
from lance.optimize import Compaction, CompactionMetrics

from clara.index.errors import MemoryIndexError


def joined(path: str, dataset: Any, batch_rows: int) -> CompactionMetrics:
    """Join small files of a dataset, and those that hold deleted rows, in one commit.

    Args:
        path: of the index.
        dataset: its last version, which is at the new one afterwards.
        batch_rows: that are read at once.

    Raises:
        MemoryIndexError: a file could not be written whole; nothing is committed.
        Exception: what Lance raises.
    """
    options: Any = {
        "materialize_deletions": True,
        "materialize_deletions_threshold": 0.0,
        "batch_size": batch_rows,
    }
    done: list[Any] = []
    try:
        for task in Compaction.plan(dataset, options).tasks:
            done.append(task.execute(dataset))
            require_whole(path, done[-1].new_fragments)
    except BaseException:  # before any commit that could name these files
        remove_files(path, (fragment for each in done for fragment in each.new_fragments))
        raise
    return Compaction.commit(dataset, done, options)


def written(path: str, dataset: Any, batch: pa.RecordBatch) -> list[Any]:
    """Write rows to files that a commit can append to a dataset.

    Args:
        path: of the index.

    Raises:
        MemoryIndexError: a file could not be written whole; it was removed.
        Exception: what Lance raises.
    """
    reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
    fragments: list[Any] = write_fragments(
        reader, dataset, mode="append", data_storage_version=dataset.data_storage_version
    )
    keep_whole(path, fragments)
    return fragments


def keep_whole(path: str, fragments: Sequence[Any]) -> None:
    """Remove files that no commit can name, if one of them was cut off.

    Raises:
        MemoryIndexError: see `require_whole`.
    """
    try:
        require_whole(path, fragments)
    except MemoryIndexError:
        remove_files(path, fragments)
        raise


def require_whole(path: str, fragments: Iterable[Any]) -> None:
    """Refuse files that are shorter than Lance believes.

    Raises:
        MemoryIndexError: names one.
    """
    for file in _files(fragments):
        size = os.path.getsize(_place(path, file))
        if file.file_size_bytes and size != file.file_size_bytes:
            raise MemoryIndexError(
                f"{path}: data/{file.path}: only {size} of {file.file_size_bytes} bytes could be "
                "written; is the disk full?"
            )


def holds(dataset: Any, fragments: Iterable[Any]) -> bool:
    """Whether a version has any of the files of parts that were written."""
    held = {file.path for file in _files(part.metadata for part in dataset.get_fragments())}
    return any(file.path in held for file in _files(fragments))


def remove_files(path: str, fragments: Iterable[Any]) -> None:
    """Remove the files of parts that no commit can name."""
    for file in _files(fragments):
        with suppress(OSError):
            os.remove(_place(path, file))


def _files(fragments: Iterable[Any]) -> Iterator[Any]:
    return (file for fragment in fragments for file in fragment.files)


def _place(path: str, file: Any) -> str:
    return os.path.join(path, "data", file.path)
