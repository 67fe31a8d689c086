"""Search a view: the file is mapped into memory, and each block checked before its first use."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from clara.index.catalog import Positions
from clara.index.views.layout import (
    CHECKSUMS,
    HEAD_BYTES,
    Head,
    Section,
    Source,
    ViewError,
    block_checksum,
    checksums_digest,
    decode_head,
)
from clara_kernels import Corpus, cosine_rerank, cosine_topk
from clara_kernels.corpus import CodedCorpus, RowCodes
from clara_kernels.cosine_topk.arrays import tensor_over

_TOGETHER = 64  # blocks that a thread checks at a time
_COPIED_BYTES = 1 << 22
_LISTED_DIRECTLY = 4096  # rows of a filter that are scored without a look at codes


class View:
    """A view that was opened. It stays readable when its file is removed.

    Nothing but the head and the checksums is read before the first search. Codes are checked then,
    rows as they are needed.
    """

    def __init__(self, path: str, head: Head, data: mmap.mmap) -> None:
        self.path = path
        self.source = head.source
        self._head = head
        self._sections = head.sections
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self._lock = threading.Lock()
        self._corpus: Corpus | CodedCorpus | None = None
        table = self._bytes_of(CHECKSUMS)
        if checksums_digest(table) != head.checksums:
            raise ViewError(f"{path}: damaged, checksums are not what was written")
        self._check_padding()
        sums = table.view("<u4")
        self._sums: dict[str, np.ndarray] = {}
        self._checked: dict[str, np.ndarray] = {}
        begin = 0
        for name, section in self._sections.items():
            if name != CHECKSUMS:
                count = section.block_count
                self._sums[name] = sums[begin : begin + count]
                self._checked[name] = np.zeros(count, dtype=bool)
                begin += count

    @classmethod
    def open(cls, path: str, source: Source, *, exactly: bool = True) -> View:
        """Map a file.

        Args:
            source: what it has to be a view of.
            exactly: False: how many rows there are, and where they lie, is not known.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be opened now, and may be whole: too many files are open, memory is
                short, or it is of another user.
            ViewError: it is not such a view, or damaged; or not a file of its own, but a folder or
                a link.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                raise
            raise ViewError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ViewError(f"{path}: not a file")
            head = decode_head(os.read(descriptor, HEAD_BYTES), found.st_size, path)
            if not head.source.is_of(source) or (exactly and head.source != source):
                raise ViewError(f"{path}: a view of another index or version")
            try:
                data = mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise ViewError(f"{path}: was cut off while it was opened") from error
        finally:
            os.close(descriptor)
        return cls(path, head, data)

    def __len__(self) -> int:
        return self.source.rows

    def nearest(
        self, queries: Tensor, k: int, rows: Tensor | None, *, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scores and rows `[B, min(k, n)]` of the nearest among n rows, see `CodedCorpus.search`.

        Args:
            rows: int64, ascending, those to search among; None for all.

        Raises:
            ViewError: what had to be read is damaged.
        """
        corpus = self._ready()
        if rows is not None:
            k = min(k, len(rows))
        mask = None
        if rows is not None and len(rows) * len(queries) <= _LISTED_DIRECTLY:
            if isinstance(corpus, CodedCorpus):
                return corpus.among(queries, k, rows)
            offsets = torch.arange(len(queries) + 1, dtype=torch.int32) * len(rows)
            listed = rows.repeat(len(queries))
            return cosine_rerank(queries, corpus, k, offsets=offsets, rows=listed)
        if rows is not None:
            mask = torch.zeros(len(self), dtype=torch.bool)
            mask[rows] = True
        if isinstance(corpus, CodedCorpus):
            return corpus.search(queries, k, mask=mask, approximate=approximate)
        return cosine_topk(queries, corpus, k, mask=mask)

    def positions(self) -> Positions | None:
        """Where Lance has each row, int64 `[N]`; None where that is its number.

        Raises:
            ViewError: they are damaged.
        """
        if not self.source.moved:
            return None
        self._require("positions", None)
        return self._bytes_of("positions").view("<i8")

    @property
    def head(self) -> Head:
        """What the file says of itself."""
        return self._head

    def copied(self, name: str) -> Iterator[bytes]:
        """The bytes of a section, some megabytes at a time.

        It is the copy that is compared with the checksums: a disk may give something else than when
        the file was checked.

        Raises:
            ViewError: a block is not what was written.
        """
        section, left = self._sections[name], self._sections[name].size
        step = max(1, _COPIED_BYTES // section.block) * section.block
        for begin in range(section.offset, section.end, step):
            piece = self._data[begin : min(begin + step, section.end)]
            first = (begin - section.offset) // section.block
            for number, at in enumerate(range(0, len(piece), section.block), first):
                if block_checksum(piece[at : at + section.block]) != self._sums[name][number]:
                    raise self._damage(name, number)
            self.let_go()
            yield piece[:left]  # without what lies between sections
            left = max(0, left - len(piece))

    def center(self) -> Tensor:
        """What all coded rows have in common, float32 `[D]`.

        Raises:
            ViewError: it is damaged.
        """
        return torch.frombuffer(bytearray().join(self.copied("center")), dtype=torch.float32)

    def let_go(self) -> None:
        """Give back the memory of what was read; it is read from the file again when needed."""
        self._data.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Compare all of the file with its checksums.

        Raises:
            ViewError: a block is not what was written.
        """
        for name in self._sums:
            self._require(name, None)

    def _ready(self) -> Corpus | CodedCorpus:
        with self._lock:
            if self._corpus is None:
                self._corpus = self._opened()
            return self._corpus

    def _opened(self) -> Corpus | CodedCorpus:
        source = self.source
        later = ("exact", "positions") if source.is_coded else ("positions",)
        small = [name for name in self._sums if name not in later]
        for name in small:
            self._require(name, None)
        exact = Corpus.with_norms(
            self._tensor("exact", source.torch_dtype).view(source.rows, source.width),
            self._tensor("norms", torch.float32),
        )
        if not source.is_coded:
            return exact
        coded = RowCodes(
            self._tensor("codes", torch.int8).view(source.rows, source.width),
            self._tensor("factors", torch.float32),
            self._tensor("errors", torch.float32),
            self._head.along,
            self._head.reach,
        )
        center = self._tensor("center", torch.float32)
        itself = weakref.proxy(self)  # no circle: the file is let go of with the last reference
        return CodedCorpus(exact, coded, center, lambda rows: itself._check_rows(rows))

    def _check_rows(self, rows: Tensor | None) -> None:
        """Before these rows are read, or all."""
        if rows is None:
            self._require("exact", None)
            return
        each = self._sections["exact"].block // self.source.row_bytes
        self._require("exact", np.unique(rows.numpy() // each))

    def _require(self, name: str, blocks: np.ndarray | None) -> None:
        """Check blocks of a section that were not checked yet; all if None."""
        checked = self._checked[name]
        blocks = np.flatnonzero(~checked) if blocks is None else blocks[~checked[blocks]]
        if not len(blocks):
            return
        groups = np.array_split(blocks, max(1, len(blocks) // _TOGETHER))
        threads = min(torch.get_num_threads(), len(groups))
        if threads == 1:
            wrong = [self._damaged(name, group) for group in groups]
        else:
            with ThreadPoolExecutor(threads) as pool:
                wrong = list(pool.map(lambda group: self._damaged(name, group), groups))
        for block in wrong:
            if block is not None:
                raise self._damage(name, block)
        checked[blocks] = True

    def _damage(self, name: str, block: int) -> ViewError:
        """What to say of a block that is not what was written."""
        at = self._sections[name].offset + block * self._sections[name].block
        return ViewError(
            f"{self.path}: damaged, {name} from byte {at:,} on are not what was written, "
            "by their checksum"
        )

    def _damaged(self, name: str, blocks: np.ndarray) -> int | None:
        """The first block that is not what was written."""
        section, sums = self._sections[name], self._sums[name]
        data = memoryview(self._data)
        for block in blocks.tolist():
            begin = section.offset + block * section.block
            if block_checksum(data[begin : min(begin + section.block, section.end)]) != sums[block]:
                return block
        return None

    def _check_padding(self) -> None:
        section = self._sections[CHECKSUMS]
        if self._bytes[section.offset + section.size : section.end].any():
            raise ViewError(f"{self.path}: damaged, its end is not what was written")

    def _bytes_of(self, name: str) -> np.ndarray:
        section: Section = self._sections[name]
        return self._bytes[section.offset : section.offset + section.size]

    def _tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return tensor_over(self._bytes_of(name), dtype)
