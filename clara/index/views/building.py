"""Write a view of one version of an index."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clara.files.writing import replacing
from clara.index.contents import Contents
from clara.index.views.earlier import Earlier
from clara.index.views.layout import (
    CHECKSUMS,
    Head,
    Section,
    Source,
    block_checksum,
    checksums_digest,
    sections_of,
    view_bytes,
)
from clara_kernels import Corpus
from clara_kernels.corpus import center_of, encode_rows

_SAMPLE = 4096  # rows that the center is the mean of
_STEP_BYTES = 1 << 22  # of rows that are coded at a time
_SPARE_BYTES = 1 << 24  # left free on the disk


def build_view(
    contents: Contents,
    source: Source,
    target: str,
    on_progress: Callable[[int], None] | None = None,
    *,
    mode: int = 0o400,
    earlier: Earlier | None = None,
) -> None:
    """Write the view `target`. A process that is killed leaves nothing of that name.

    All rows are read once, and what was written is read twice more from the page cache. Takes time
    in proportion to the rows, and some megabytes of memory beside 12 bytes a row. What a view of an
    earlier version has of its first rows is copied, and they are not read.

    Args:
        source: what the view is of, which `contents` are.
        target: in a folder that exists.
        on_progress: is told how many rows were just read.
        mode: of the file. Without a bit for writing, a copy over it is refused, which would end
            the processes that have it mapped.
        earlier: to take over.

    Raises:
        OSError: the file cannot be written, or there is no room for it on the disk.
        MemoryIndexError: a document is damaged.
        ViewError: the earlier view is.
    """
    if os.path.isdir(target) and not os.path.islink(target):
        raise IsADirectoryError(errno.EISDIR, f"{os.strerror(errno.EISDIR)}: {target}", target)
    needed = view_bytes(source)
    free = shutil.disk_usage(os.path.dirname(target)).free
    if free < needed + _SPARE_BYTES:
        missing = f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes are needed, {free:,} are free"
        raise OSError(errno.ENOSPC, missing, target)
    with (
        replacing(target, sync=True, private=True) as unfinished,
        unfinished.open("r+b", buffering=0) as file,
    ):
        _Writer(source, file, earlier).write(contents, on_progress)
        os.fchmod(file.fileno(), mode)


@dataclass
class _Writer:
    source: Source
    file: Any  # without a buffer of its own
    earlier: Earlier | None = None
    sections: dict[str, Section] = field(init=False)

    def __post_init__(self) -> None:
        self.sections = sections_of(self.source)

    def write(self, contents: Contents, on_progress: Callable[[int], None] | None) -> None:
        _take_room(self.file.fileno(), view_bytes(self.source))
        start = 0
        if self.earlier is not None:
            start = self.earlier.stored
            self._take_over("exact")
            if on_progress is not None:
                on_progress(len(self.earlier.view))
        for places, values, _ in contents.ranked(start):
            self._write_rows(places, values)
            if on_progress is not None:
                on_progress(len(places))
        along, reach = self._write_codes()
        if contents.positions is not None:
            self._write_at(self.sections["positions"].offset, contents.positions)
        digest = self._write_checksums()
        self._write_at(0, Head(self.source, along, reach, digest).encoded())

    def _write_rows(self, places: Tensor, values: Tensor) -> None:
        """Rows where they belong: those that follow one another at once."""
        data = values.contiguous().view(torch.uint8).numpy()
        begin = self.sections["exact"].offset
        numbers = places.numpy()
        ends = np.flatnonzero(np.diff(numbers) != 1) + 1
        for first, last in zip([0, *ends.tolist()], [*ends.tolist(), len(numbers)]):
            if first < last:
                at = begin + int(numbers[first]) * self.source.row_bytes
                self._write_at(at, data[first:last])

    def _take_over(self, *names: str) -> None:
        """Copy sections of the earlier view."""
        if self.earlier is not None:
            for name in names:
                at = self.sections[name].offset
                for piece in self.earlier.view.copied(name):
                    self._write_at(at, piece)
                    at += len(piece)

    def _write_codes(self) -> tuple[float, float]:
        """All that is computed from the rows; `along` and `reach` of it."""
        source, along, reach = self.source, 0.0, 0.0
        step = max(1, _STEP_BYTES // source.row_bytes)
        center = self._center() if source.is_coded else None
        small: dict[str, list[Tensor]] = {"norms": [], "factors": [], "errors": []}
        first = 0
        if self.earlier is not None and (center is None or self.earlier.fits(center)):
            first = len(self.earlier.view)
            self._take_over("norms")
            if center is not None:
                center = self.earlier.view.center()
                along, reach = self.earlier.view.head.along, self.earlier.view.head.reach
                self._take_over("codes", "factors", "errors")
        for start in range(first, source.rows, step):
            rows = self._rows(start, min(step, source.rows - start))
            small["norms"].append(Corpus(rows).inverse_norms)
            if center is not None:
                coded = encode_rows(rows, center)
                at = self.sections["codes"].offset + start * source.width
                self._write_at(at, coded.codes.numpy())
                small["factors"].append(coded.factors)
                small["errors"].append(coded.errors)
                along, reach = max(along, coded.along), max(reach, coded.reach)
        for name, parts in small.items():
            if parts:
                self._write_at(self.sections[name].offset + 4 * first, torch.cat(parts).numpy())
        if center is not None:
            self._write_at(self.sections["center"].offset, center.numpy())
        return along, reach

    def _center(self) -> Tensor:
        count = min(_SAMPLE, self.source.rows)
        chosen = torch.linspace(0, self.source.rows - 1, count).long().unique().tolist()
        nothing = torch.empty(0, self.source.width, dtype=self.source.torch_dtype)
        return center_of(torch.cat([nothing, *(self._rows(row, 1) for row in chosen)]))

    def _write_checksums(self) -> str:
        found = []
        for name, section in self.sections.items():
            if name == CHECKSUMS:
                break
            together = max(1, _STEP_BYTES // section.block) * section.block
            for start in range(section.offset, section.end, together):
                data = memoryview(self._read_at(start, min(together, section.end - start)))
                found += [
                    block_checksum(data[at : at + section.block])
                    for at in range(0, len(data), section.block)
                ]
        table = np.array(found, dtype="<u4").tobytes()
        self._write_at(self.sections[CHECKSUMS].offset, table)
        return checksums_digest(table)

    def _rows(self, start: int, count: int) -> Tensor:
        source = self.source
        at = self.sections["exact"].offset + start * source.row_bytes
        data = self._read_at(at, count * source.row_bytes)
        return torch.frombuffer(data, dtype=source.torch_dtype).view(count, source.width)

    def _read_at(self, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        left = memoryview(data)
        self.file.seek(offset)
        while left:
            got = self.file.readinto(left)
            if not got:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.file.name))
            left = left[got:]
        return data

    def _write_at(self, offset: int, data: Any) -> None:
        left = memoryview(data).cast("B")
        self.file.seek(offset)
        while left:
            left = left[self.file.write(left) :]


def _take_room(handle: int, size: int) -> None:
    """Give a file its size, on the disk as well where that can be done at once."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.truncate(handle, size)
