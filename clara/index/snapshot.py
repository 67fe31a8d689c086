"""Read one version of an index from Lance, and check every row."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import lance
import pyarrow as pa
from torch import Tensor

from clara.index.details import RowDetails
from clara.index.digests import DIGEST_BYTES
from clara.index.errors import MemoryIndexError, failures_in
from clara.index.header import Header
from clara.index.heads import Heads, damaged, decode_heads
from clara.index.layout import (
    RowEntry,
    StoredText,
    decode,
    decode_entries,
    decode_ranked,
    decode_texts,
    decode_with_details,
)
from clara.index.seals import HIGHEST, MANIFEST, VERSIONS, require_manifest, require_sealed
from clara.memory.documents import CompressedDocuments

_BATCH_BYTES = 1 << 23  # of memory, in a batch of rows that is read at a time
_PADDED_BYTES = 1 << 26  # of a batch in which one row is as long as the longest
_BATCH_ROWS = 1024
_HEAD_ROWS = 1 << 14
_PROBED_ROWS = 1 << 14  # rows that are tried one by one after a failure; Lance reads ahead


class Snapshot:
    """The rows of one commit, which later commits leave as they are.

    Every method raises MemoryIndexError where what it reads is not what was written.

    Args:
        stamp: of the folder, taken before the dataset was opened.
        pinned: the snapshot stands for its version, whatever comes after it.
    """

    def __init__(
        self, dataset: Any, header: Header, path: str, stamp: object, *, pinned: bool = False
    ) -> None:
        self.header = header
        self.path = path
        self.dataset = dataset
        self.pinned = pinned
        self._stamp = stamp
        self.identity = header.identity or _derived_identity(path)
        with failures_in(path, "counting the documents"):
            self.count: int = dataset.count_rows()

    @classmethod
    def latest(cls, path: str) -> Snapshot:
        """The last commit in the folder `path`.

        Raises:
            MemoryIndexError: there is no index, or one this release cannot read.
        """
        _require_index(path)
        with failures_in(path, "opening the index"):
            stamp = _stamp(path)
            require_manifest(path, max(version_numbers(path), default=0))
            dataset = lance.dataset(path)
            return cls(dataset, _checked_header(dataset, path), path, stamp)

    @classmethod
    def at(cls, path: str, version: int) -> Snapshot:
        """An earlier commit in the folder `path`, or the last one, which later ones do not change.

        Raises:
            MemoryIndexError: see `latest`, or there is no such version; names those that are.
        """
        _require_index(path)
        with failures_in(path, "opening the index"):
            # Lance reads the last version to list them, which may be damaged.
            there = sorted(version_numbers(path))
            if version not in there:
                present = f"versions {there[0]} to {there[-1]}, {len(there)} of them"
                raise MemoryIndexError(
                    f"{path}: version {version} is not there, or was removed; the index has "
                    + (present if len(there) > 1 else f"only version {there[0]}")
                )
            require_manifest(path, version)
            dataset = lance.dataset(path, version=version)
            return cls(dataset, _checked_header(dataset, path), path, None, pinned=True)

    @property
    def version(self) -> int:
        """The number of the commit."""
        return int(self.dataset.version)

    @property
    def is_latest(self) -> bool:
        """False once there is a later commit on disk, or another index."""
        if self.pinned:
            return True
        if _stamp(self.path) != self._stamp:
            return False
        with failures_in(self.path, "looking for a newer version"):
            return bool(self.dataset.latest_version == self.dataset.version)

    def continues(self, earlier: Snapshot) -> bool:
        """Whether this holds the rows of an earlier snapshot, and perhaps more behind them.

        That is so if the same fragments come first with the same deletions. The names of files
        are random, and one commit follows another: the last name stands for all. A version that
        was restored may be followed by as many deletions of other rows: they are in another file.
        """
        with failures_in(self.path, "reading"):
            before, after = earlier.fragments, self.fragments[: len(earlier.fragments)]
            return [(part.fragment_id, deletions_of(part)) for part in before] == [
                (part.fragment_id, deletions_of(part)) for part in after
            ] and (not before or file_of(before[-1]) == file_of(after[-1]))

    @cached_property
    def fragments(self) -> list[Any]:
        """The files of rows, in order, as Lance has them."""
        return list(self.dataset.get_fragments())

    @cached_property
    def state(self) -> str:
        """Tells the rows of this commit from those of any other, also of a copy changed apart.

        Names of files are random. They are taken from what was opened: by now there may be another
        index in the folder.
        """
        return next(reversed(self.beginnings), _hashed(b"[]").hexdigest())

    @cached_property
    def beginnings(self) -> dict[str, int]:
        """How many rows the first files have, for any number from 1 on, by the `state` of those.

        An earlier commit whose `state` is among them has these rows in these places.
        """
        with failures_in(self.path, "reading"):
            sizes = [int(part.metadata.num_rows) for part in self.fragments]
            parts = [json.dumps(_told_apart(part)) for part in self.fragments]
        hashed, found, rows = _hashed(b"["), {}, 0
        for number, (text, size) in enumerate(zip(parts, sizes, strict=True)):
            hashed.update(f"{', ' if number else ''}{text}".encode())
            whole = hashed.copy()
            whole.update(b"]")
            rows += size
            found[whole.hexdigest()] = rows
        return found

    def heads(self, start: int = 0) -> Iterator[Heads]:
        """Ids, titles and token counts in batches, without reading texts and memory."""
        for rows, batch in self._scan(self.header.head_columns, _HEAD_ROWS, start):
            with failures_in(self.path, "reading"):
                heads = decode_heads(self.header, batch, rows, self.path)
            yield heads

    def take_heads(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Ids of documents and of rows at the given positions, ascending, if they are intact."""
        with failures_in(self.path, "reading"):
            batch = self.take_columns(rows, self.header.head_columns)
            heads = decode_heads(self.header, batch, rows, self.path)
        return list(zip(heads.document_ids, heads.ids, strict=True))

    def texts(self) -> Iterator[list[StoredText]]:
        """All texts in the order they lie in, in batches, without reading memory."""
        for rows, batch in self._scan(self._text_columns, _BATCH_ROWS):
            with failures_in(self.path, "reading"):
                texts = decode_texts(self.header, batch, rows, self.path)
            yield texts

    def batches(self, batch_rows: int) -> Iterator[CompressedDocuments]:
        """All rows in the order they lie in, so many at a time."""
        for rows, batch in self._scan(self.header.all_columns, batch_rows):
            with failures_in(self.path, "reading"):
                documents = decode(self.header, batch, rows, self.path)
            yield documents

    def vectors(
        self, batch_rows: int, start: int = 0
    ) -> Iterator[tuple[range, Tensor, Tensor | None]]:
        """Positions, and the vectors and scales of `decode_ranked`, so many at a time."""
        for rows, batch in self._scan(self.header.vector_columns, batch_rows, start):
            with failures_in(self.path, "reading"):
                values, scales = decode_ranked(self.header, batch, rows, self.path)
            yield rows, values, scales

    def take(self, rows: Sequence[int]) -> CompressedDocuments:
        """The documents at the given positions, in that order; one may come twice."""
        distinct = sorted(set(rows))
        columns = self.header.all_columns
        with self._naming_unreadable(distinct, columns), failures_in(self.path, "reading"):
            batch = self.take_columns(distinct, columns)
        with failures_in(self.path, "reading"):
            documents = decode(self.header, batch, distinct, self.path)
        position = {row: place for place, row in enumerate(distinct)}
        return documents[[position[row] for row in rows]]

    def take_with_details(
        self, rows: Sequence[int]
    ) -> tuple[CompressedDocuments, list[RowDetails | None]]:
        """The documents at the given positions, in that order, and what is known beside them."""
        distinct = sorted(set(rows))
        columns = self.header.hit_columns
        with self._naming_unreadable(distinct, columns), failures_in(self.path, "reading"):
            batch = self.take_columns(distinct, columns)
            documents, details = decode_with_details(self.header, batch, distinct, self.path)
        position = {row: place for place, row in enumerate(distinct)}
        order = [position[row] for row in rows]
        return documents[order], [details[place] for place in order]

    def take_vectors(self, rows: Sequence[int]) -> Tensor:
        """The vectors of `decode_ranked` at the given positions, in that order."""
        distinct = sorted(set(rows))
        columns = self.header.vector_columns
        with self._naming_unreadable(distinct, columns), failures_in(self.path, "reading"):
            batch = self.take_columns(distinct, columns)
            values, _ = decode_ranked(self.header, batch, distinct, self.path)
        position = {row: place for place, row in enumerate(distinct)}
        return values[[position[row] for row in rows]]

    def take_texts(self, rows: Sequence[int]) -> list[StoredText]:
        """The texts at the given positions, without reading memory."""
        distinct = sorted(set(rows))
        columns = self._text_columns
        with self._naming_unreadable(distinct, columns), failures_in(self.path, "reading"):
            batch = self.take_columns(distinct, columns)
            texts = decode_texts(self.header, batch, distinct, self.path)
        found = dict(zip(distinct, texts))
        return [found[row] for row in rows]

    def entries(self) -> Iterator[list[RowEntry]]:
        """All rows without texts and memory, in the order they lie in, in batches."""
        for rows, batch in self._scan(self.header.entry_columns, _BATCH_ROWS):
            with failures_in(self.path, "reading"):
                entries = decode_entries(self.header, batch, rows, self.path)
            yield entries

    def take_entries(self, rows: Sequence[int]) -> list[RowEntry]:
        """The rows at the given positions, without texts and memory; one may come twice."""
        distinct = sorted(set(rows))
        columns = self.header.entry_columns
        with self._naming_unreadable(distinct, columns), failures_in(self.path, "reading"):
            batch = self.take_columns(distinct, columns)
            entries = decode_entries(self.header, batch, distinct, self.path)
        found = dict(zip(distinct, entries))
        return [found[row] for row in rows]

    @property
    def _text_columns(self) -> list[str]:
        return [*self.header.head_columns, "text"]

    def batch_rows(self, memory_tokens: float, longest: int) -> int:
        """How many rows take some megabytes, and not many times more once they are padded.

        Args:
            memory_tokens: of a row on average.
            longest: of the row that has most: a batch is padded to the longest of its rows.
        """
        if self.header.storage is None:  # every row has the most
            memory_tokens = longest = self.header.memory_tokens
        vector_bytes = self.header.hidden_size * self.header.dtype.itemsize
        together = _BATCH_BYTES / max(1, memory_tokens * vector_bytes)
        padded = _PADDED_BYTES / max(1, longest * vector_bytes)
        return max(1, int(min(_BATCH_ROWS, together, padded)))

    def _scan(
        self, columns: list[str], batch_rows: int, start: int = 0
    ) -> Iterator[tuple[range, pa.RecordBatch]]:
        """All rows from `start` on, in order, with where each batch is from."""
        with failures_in(self.path, "reading"):
            scanner = self.dataset.scanner(
                columns=columns,
                batch_size=batch_rows,
                scan_in_order=True,
                offset=start or None,
            )
            batches = iter(scanner.to_batches())
        while start <= self.count:
            ahead = range(start, min(self.count, start + _PROBED_ROWS))
            with self._naming_unreadable(ahead, columns), failures_in(self.path, "reading"):
                batch = next(batches, None)
            if batch is None:
                break
            rows = range(start, start + batch.num_rows)
            start = rows.stop
            if start <= self.count:
                yield rows, batch
        if start != self.count:
            raise MemoryIndexError(f"{self.path}: damaged, it should hold {self.count} documents")

    def take_columns(self, rows: Sequence[int], columns: list[str]) -> pa.RecordBatch:
        """Rows in ascending order, as one batch."""
        table = self.dataset.take(list(rows), columns=columns)
        if table.num_rows != len(rows):
            raise MemoryIndexError(
                f"{self.path}: damaged, {table.num_rows} of {len(rows)} documents were read"
            )
        arrays = [
            pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            for column in table.columns
        ]
        return pa.record_batch(arrays, schema=table.schema)

    @contextmanager
    def _naming_unreadable(self, rows: Sequence[int], columns: list[str]) -> Iterator[None]:
        """Where Lance itself cannot decode what it reads, say which of `rows` it is, or which file
        where the names of that row cannot be read either.
        """
        try:
            yield
        except MemoryIndexError as error:
            heads = self.header.head_columns
            row = next((row for row in rows if not self._readable(row, columns)), None)
            if row is None:
                raise
            if not self._readable(row, heads):
                why = str(error).removeprefix(f"{self.path}: ")
                raise MemoryIndexError(f"{self.path}: data/{self._file(row)}: {why}") from error
            name = self.take_columns([row], ["id"]).column("id")[0].as_py()
            raise damaged(self.path, name.encode(), row) from error

    def _file(self, row: int) -> str:
        """The name of the file in which a row lies."""
        for fragment in self.fragments:
            row -= fragment.physical_rows - fragment.num_deletions
            if row < 0:
                break
        return file_of(fragment)

    def _readable(self, row: int, columns: list[str]) -> bool:
        try:
            with failures_in(self.path, "reading"):
                self.take_columns([row], columns)
        except MemoryIndexError:
            return False
        return True


def _require_index(path: str) -> None:
    if not os.path.isdir(path):
        what = "is a file, not the folder of an index" if os.path.exists(path) else "not found"
        raise MemoryIndexError(f"{path}: {what}")
    if not os.path.isdir(os.path.join(path, VERSIONS)):
        raise MemoryIndexError(f"{path}: not an index: the folder holds no Lance dataset")


def _checked_header(dataset: Any, path: str) -> Header:
    """The header of a version, once its files were compared with their checksums.

    Raises:
        MemoryIndexError: the version is not of an index, or a file is damaged.
    """
    header = Header.from_schema(dataset.schema, path)
    require_sealed(path, int(dataset.version), dataset.get_fragments())
    return header


def _hashed(data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES)


def deletions_of(fragment: Any) -> object:
    """What tells the deleted rows of a fragment from those of the same one in another version."""
    file = fragment.metadata.deletion_file
    return None if file is None else (file.id, file.read_version, fragment.num_deletions)


def _told_apart(fragment: Any) -> tuple[object, ...]:
    """What tells a fragment from all others, and from the same one with other rows deleted."""
    files = [file.path for file in fragment.metadata.files]
    return fragment.fragment_id, files, deletions_of(fragment)


def file_of(fragment: Any) -> str:
    return str(fragment.metadata.files[0].path)


def _stamp(path: str) -> object:
    """What changes with every commit in a folder, and when another one takes its place.

    None when there is nothing. The time of a file system may be too coarse to show a commit: the
    version is compared too.
    """
    try:
        found = os.stat(os.path.join(path, VERSIONS))
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _derived_identity(path: str) -> str:
    """For an index without an identity: of its first manifest, which holds when it was made.

    Where Lance's cleanup has removed that one, the oldest manifest stands for it.
    """
    folder = os.path.join(path, VERSIONS)
    with failures_in(path, "reading the first version"):
        names = [name for name in os.listdir(folder) if name.endswith(MANIFEST)]
        oldest = min((name for name in names if _version(name)), key=_version)
        with open(os.path.join(folder, oldest), "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


def version_numbers(path: str) -> list[int]:
    """The numbers of all versions, in any order, without reading any."""
    return [n for n in map(_version, os.listdir(os.path.join(path, VERSIONS))) if n]


def _version(manifest: str) -> int:
    """The version that the name of a manifest says; 0 if it says none."""
    number = manifest.removesuffix(MANIFEST)
    if not number.isdecimal():
        return 0
    return min(int(number), HIGHEST - int(number)) if len(number) == 20 else int(number)
