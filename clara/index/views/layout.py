"""The file of a view: a head, sections, and a checksum of each block of them.

The head is `HEAD_BYTES` long: `MAGIC`, the format and the length of the JSON that follows as
little-endian uint32, zeros, and in the last 16 bytes the blake2b of all before it. The JSON says
what the view is of and where its sections lie. Each section begins at a multiple of 4,096 bytes and
is filled up with zeros. It is cut into blocks, each with its CRC-32; the CRCs of all blocks, one
section after another, are the last section, whose blake2b is in the head. So no byte of the file
is without a checksum. Numbers are little-endian.

    exact    N rows of D values, as documents are ranked by them
    norms    float32 N, the inverse norm of each row
    codes    int8 N x D, see `clara_kernels.corpus.encode_rows`; this and what follows are left out
    factors  float32 N                                             where rows are int8 themselves
    errors   float32 N
    center   float32 D

    positions  int64 N, where Lance has each row; where that is not simply its number
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from clara.errors.checks import is_integer
from clara.index.digests import DIGEST_BYTES
from clara.index.errors import MemoryIndexError

MAGIC = b"CLARAVW\n"
FORMAT = 1
HEAD_BYTES = 1 << 14
CHECKSUMS = "checksums"
BLOCK_BYTES = 1 << 20
EXACT_BLOCK_BYTES = 1 << 14  # few rows of this section are read, here and there

_PREFIX = struct.Struct("<8sII")
_PAGE = 4096
_CRC_BYTES = 4
_LONGEST = 4.0  # that a row of norm 1 less a center is, with room to spare
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


class ViewError(MemoryIndexError):
    """A view is damaged, of another version or index, or of a newer format. Names the file."""


class Section(NamedTuple):
    """Where a part of the file lies.

    Attributes:
        size: bytes, without what fills up the last page.
        block: bytes that have one checksum.
    """

    offset: int
    size: int
    block: int

    @property
    def padded(self) -> int:
        """Bytes with what fills up the last page."""
        return -(-self.size // _PAGE) * _PAGE

    @property
    def end(self) -> int:
        return self.offset + self.padded

    @property
    def block_count(self) -> int:
        return -(-self.padded // self.block)


@dataclass(frozen=True)
class Source:
    """What a view is of: the head repeats it, and it has to be the same when the view is opened.

    Attributes:
        identity: of the index.
        version: of the index.
        manifest: `Snapshot.state`, which tells the version from that of the same number in a copy
            of the index that was changed apart.
        fingerprint: of the model.
        rows: N.
        width: D.
        dtype: of the rows, such as "bfloat16".
        moved: whether Lance has rows elsewhere than in the order of the documents.
    """

    identity: str
    version: int
    manifest: str
    fingerprint: str
    rows: int
    width: int
    dtype: str
    moved: bool

    def is_of(self, other: Source) -> bool:
        """Whether both are of the same version of the same index."""
        return replace(self, rows=0, moved=False) == replace(other, rows=0, moved=False)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return self.width * self.torch_dtype.itemsize

    @property
    def is_coded(self) -> bool:
        """Whether there are codes beside the rows."""
        return self.dtype != "int8"


@dataclass(frozen=True)
class Head:
    """What the head of a view says.

    Attributes:
        along, reach: see `clara_kernels.corpus.RowCodes`.
        checksums: blake2b of the section of that name.
    """

    source: Source
    along: float
    reach: float
    checksums: str

    @property
    def sections(self) -> dict[str, Section]:
        return sections_of(self.source)

    def encoded(self) -> bytes:
        text = json.dumps(asdict(self), sort_keys=True).encode()
        begin = _PREFIX.pack(MAGIC, FORMAT, len(text)) + text
        if len(begin) > HEAD_BYTES - DIGEST_BYTES:
            raise ViewError("the identity or fingerprint of the index is too long for a view")
        begin = begin.ljust(HEAD_BYTES - DIGEST_BYTES, b"\0")
        return begin + _blake2b(begin)


def sections_of(source: Source) -> dict[str, Section]:
    """Where each part of a view lies, in order. Follows from what it is of."""
    rows = source.rows
    sizes = {"exact": rows * source.row_bytes, "norms": 4 * rows}
    if source.is_coded:
        sizes |= {
            "codes": rows * source.width,
            "factors": 4 * rows,
            "errors": 4 * rows,
            "center": 4 * source.width,
        }
    if source.moved:
        sizes["positions"] = 8 * rows
    blocks = {"exact": max(1, EXACT_BLOCK_BYTES // source.row_bytes) * source.row_bytes}
    found: dict[str, Section] = {}
    offset = HEAD_BYTES
    for name, size in sizes.items():
        found[name] = Section(offset, size, blocks.get(name, BLOCK_BYTES))
        offset = found[name].end
    count = sum(each.block_count for each in found.values())
    found[CHECKSUMS] = Section(offset, count * _CRC_BYTES, BLOCK_BYTES)
    return found


def view_bytes(source: Source) -> int:
    """Size of the file."""
    return sections_of(source)[CHECKSUMS].end


def block_checksum(block: Any) -> int:
    """CRC-32, which shows every change of up to 32 bits in a row, and others but for 2^-32."""
    return zlib.crc32(block)


def checksums_digest(table: Any) -> str:
    return _blake2b(table).hex()


def decode_head(data: bytes, size: int, path: str) -> Head:
    """The head of a view.

    Args:
        data: the first `HEAD_BYTES` of the file, or all of it.
        size: of the file.

    Raises:
        ViewError: it is no view, of a newer format, truncated or damaged.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < HEAD_BYTES:
        raise ViewError(f"{path}: not a view of an index, or truncated")
    intact = _blake2b(data[:-DIGEST_BYTES]) == data[-DIGEST_BYTES:]
    _, number, length = _PREFIX.unpack_from(data)
    if not intact:
        raise ViewError(f"{path}: damaged, the head is not what was written, by its checksum")
    if number != FORMAT:
        raise ViewError(
            f"{path}: format {number} of views is not what this release reads ({FORMAT})"
        )
    try:
        fields = json.loads(data[_PREFIX.size :][:length])
        source = Source(**fields.pop("source"))
        head = Head(source, **fields)
        if not _in_range(head):
            raise ValueError("a field is out of range")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ViewError(f"{path}: the head cannot be read") from error
    expected = view_bytes(source)
    if size != expected:
        raise ViewError(f"{path}: has {size:,} bytes and should have {expected:,}")
    return head


def _in_range(head: Head) -> bool:
    """Whether sizes can be computed from a head, and proofs rest on its bounds."""
    source = head.source
    numbers, bounds = (source.version, source.rows, source.width), (head.along, head.reach)
    return (
        source.dtype in _DTYPES
        and isinstance(source.moved, bool)
        and isinstance(head.checksums, str)
        and all(isinstance(each, float) and 0 <= each <= _LONGEST for each in bounds)
        and all(is_integer(each) and 0 <= each < 1 << 63 for each in numbers)
        and source.width > 0
    )


def _blake2b(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
