"""Both means of every document in one read of the hidden states, and their gradient in one write.

Forward, a program takes a block of columns of up to `CHUNK` rows of one document and adds them up
with weights 1/n for token rows and -1/m for memory rows. A document of no more rows is done with
that; the sums over parts of a longer one are added up by `_combine`. Backward, tiles of rows are
laid over all of them whatever the documents, so that each row is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build
from ..segments import find_segment, tile_count
from .reference import share

_ROW_BYTES = 1024  # of a program's block of columns: 16 bytes for each thread of two warps
_CHUNKS = (64, 256, 1024)  # rows of a document for one program
_ENOUGH_PROGRAMS = 512  # some for each multiprocessor of a large GPU


@triton.jit
def _documents_before(row, p_offsets, documents):
    """How many documents end at `row` or before."""
    before = 0
    for o in range(0, documents, 1024):
        i = o + tl.arange(0, 1024)  # [1024]
        m = i < documents
        end = tl.load(p_offsets + 1 + i, mask=m, other=0)
        before += tl.sum((m & (end <= row)).to(tl.int32))
    return before


@triton.jit
def _bounds(document, p_offsets, rows):
    """First row of a document and the row after its last, in `rows` whatever the offsets say."""
    first = tl.maximum(tl.load(p_offsets + document), 0)
    return first, tl.minimum(tl.load(p_offsets + document + 1), rows)


@triton.jit
def _weights(n_rows, n_memory):
    """The weights of a token row and of a memory row; NaN where a document has none of them."""
    n_tokens = n_rows - n_memory
    complete = tl.minimum(n_tokens, n_memory) > 0
    for_tokens = tl.math.div_rn(1.0, tl.maximum(n_tokens, 1).to(tl.float32))
    for_memory = tl.math.div_rn(-1.0, tl.maximum(n_memory, 1).to(tl.float32))
    nan = float("nan")
    return tl.where(complete, for_tokens, nan), tl.where(complete, for_memory, nan)


@triton.jit
def _store_difference(
    difference,
    p_difference,
    p_squares,
    document,
    i_block,
    columns,
    scale,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """A block of a document's difference, and what each PART columns of it add to the loss."""
    o_d = i_block * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_difference + document.to(tl.int64) * columns + o_d, difference, mask=o_d < columns)
    squares = tl.sum(tl.reshape(difference * difference, [BLOCK // PART, PART]), 1) * scale
    parts = tl.cdiv(columns, PART)
    o_p = i_block * (BLOCK // PART) + tl.arange(0, BLOCK // PART)
    tl.store(p_squares + document.to(tl.int64) * parts + o_p, squares, mask=o_p < parts)


@triton.jit(do_not_specialize=["documents", "rows", "units", "count_stride", "scale"])
def _forward(
    p_hidden,
    p_offsets,
    p_counts,
    p_sums,
    p_difference,
    p_squares,
    documents,
    rows,
    units,
    count_stride,  # 0 if all documents have as many memory rows
    scale,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    columns = units * UNIT
    blocks = tl.cdiv(columns, BLOCK)
    i_tile, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    document, i_chunk = find_segment(i_tile, p_offsets, documents, 1, CHUNK)
    i_chunk = tl.maximum(i_chunk, 0)
    first, end = _bounds(document, p_offsets, rows)
    start = first + i_chunk * CHUNK
    if (start >= end) & (i_chunk > 0):
        return
    n_memory = tl.load(p_counts + document * count_stride)
    for_tokens, for_memory = _weights(end - first, n_memory)
    total = tl.minimum(end - start, CHUNK)
    n_tokens = end - n_memory - start  # rows from this one on are memory
    o_r = tl.arange(0, ROWS)
    o_d = i_block * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < columns
    p_row = p_hidden + start.to(tl.int64) * columns
    summed = tl.zeros([BLOCK], tl.float32)
    for o in range(0, total, ROWS):
        r = o + o_r  # [ROWS]
        o_x = r[:, None] * columns + o_d[None, :]
        m = (r < total)[:, None] & m_d[None, :]
        x = tl.load(p_row + o_x, mask=m, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
        weights = tl.where(r < n_tokens, for_tokens, for_memory)
        summed += tl.sum(x * weights[:, None], 0)
    summed += for_tokens * 0  # for NaN where there is no row at all

    if end - first > CHUNK:
        tl.store(p_sums + i_tile.to(tl.int64) * columns + o_d, summed, mask=m_d)
    else:
        _store_difference(
            summed, p_difference, p_squares, document, i_block, columns, scale, BLOCK, PART
        )


@triton.jit(do_not_specialize=["documents", "rows", "columns", "scale"])
def _combine(
    p_offsets,
    p_sums,
    p_difference,
    p_squares,
    documents,
    rows,
    columns,
    scale,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    PART: tl.constexpr,
):
    """The document of more than CHUNK rows, if any, whose first row that is a multiple of CHUNK is
    that of this program."""
    blocks = tl.cdiv(columns, PART)
    row, i_block = tl.program_id(0) // blocks * CHUNK, tl.program_id(0) % blocks
    document = tl.minimum(_documents_before(row, p_offsets, documents), documents - 1)
    first, end = _bounds(document, p_offsets, rows)
    if (end - first > CHUNK) & (first <= row) & (first > row - CHUNK):
        tiles = tl.cdiv(end - first, CHUNK)
        i_first = first // CHUNK + document
        o_d = i_block * PART + tl.arange(0, PART)
        m_d = o_d < columns
        p_tile = p_sums + i_first.to(tl.int64) * columns
        difference = tl.zeros([PART], tl.float32)
        for o in range(0, tiles, TILES):
            i = o + tl.arange(0, TILES)  # [TILES]
            m = (i < tiles)[:, None] & m_d[None, :]
            o_x = i.to(tl.int64)[:, None] * columns + o_d[None, :]
            difference += tl.sum(tl.load(p_tile + o_x, mask=m, other=0.0), 0)
        _store_difference(
            difference, p_difference, p_squares, document, i_block, columns, scale, PART, PART
        )


@triton.jit(do_not_specialize=["documents", "rows", "units", "count_stride", "scale"])
def _backward(
    p_grad,
    p_difference,
    p_offsets,
    p_counts,
    p_out,
    documents,
    rows,
    units,
    count_stride,
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """TILE rows, of one document after the other; zeros for those that belong to none."""
    columns = units * UNIT
    blocks = tl.cdiv(columns, BLOCK)
    i_block = tl.program_id(0) % blocks
    row = tl.program_id(0) // blocks * TILE
    stop = tl.minimum(row + TILE, rows)
    o_r = tl.arange(0, ROWS)
    o_d = i_block * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < columns
    factor = tl.load(p_grad).to(tl.float32) * scale
    document = _documents_before(row, p_offsets, documents)
    while row < stop:
        i = tl.minimum(document, documents - 1)
        first, last = tl.load(p_offsets + i), tl.load(p_offsets + i + 1)
        n_memory = tl.load(p_counts + i * count_stride)
        for_tokens, for_memory = _weights(last - first, n_memory)
        first = tl.where(document < documents, first, stop)  # there is none after the last
        inside = row >= first
        end = tl.minimum(tl.where(inside, last, first), stop)
        document += inside.to(tl.int32)

        # Nothing is read for rows in no document: they get 0 even next to a NaN.
        m_read = o_d < tl.where(inside, columns, 0)
        o_x = i.to(tl.int64) * columns + o_d
        difference = tl.load(p_difference + o_x, mask=m_read, other=0.0)  # [BLOCK]
        slope = difference * tl.where(inside, factor, 0.0)
        token = (slope * tl.where(inside, for_tokens, 0.0)).to(p_out.dtype.element_ty)
        memory = (slope * tl.where(inside, for_memory, 0.0)).to(p_out.dtype.element_ty)
        n_tokens = last - n_memory - row  # rows from this one on are memory
        total = end - row
        p_row = p_out + row.to(tl.int64) * columns
        for o in range(0, total, ROWS):
            r = o + o_r  # [ROWS]
            x = tl.where((r < n_tokens)[:, None], token[None, :], memory[None, :])
            m = (r < total)[:, None] & m_d[None, :]
            tl.store(p_row + r[:, None] * columns + o_d[None, :], x, mask=m)
        row = tl.maximum(row, end)


def _unit(columns: int) -> int:
    """16 if it divides the columns: all rows then allow accesses of 16 bytes; else 1."""
    return 16 if columns % 16 == 0 else 1


def _options(unit: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels over hidden states and their gradients are launched with."""
    rows = 16 if unit > 1 else 8
    return {"UNIT": unit, "ROWS": rows, "BLOCK": _ROW_BYTES // dtype.itemsize, "num_warps": 2}


_COMBINE = {"TILES": 32, "num_warps": 4}
_PART = 128  # columns whose squares are added up
_TILE = 64  # rows of a program of `_backward`


def _chunk(rows: int, documents: int, blocks: int) -> int:
    """The longest of _CHUNKS that leaves enough programs."""
    for chunk in reversed(_CHUNKS):
        if max(rows // chunk, documents) * blocks >= _ENOUGH_PROGRAMS:
            return chunk
    return _CHUNKS[0]


def forward(
    hidden: Tensor, cu_seqlens: Tensor, n_memory: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    """Loss, float32, of hidden `[T, H]`, and differences of means, float32 `[N, H]`."""
    rows, columns = hidden.shape
    documents, device = cu_seqlens.numel() - 1, hidden.device
    hidden, cu_seqlens = hidden.contiguous(), cu_seqlens.contiguous()
    n_memory = n_memory.contiguous()
    parts = triton.cdiv(columns, _PART)
    difference = torch.empty(documents, columns, dtype=torch.float32, device=device)
    squares = torch.empty(documents, parts, dtype=torch.float32, device=device)
    options = _options(_unit(columns), hidden.dtype)
    blocks = triton.cdiv(columns, options["BLOCK"])
    chunk = _chunk(rows, documents, blocks)
    tiles = tile_count(rows, documents, chunk)
    some_longer = rows > chunk
    sums = difference
    if some_longer:
        sums = torch.empty(tiles, columns, dtype=torch.float32, device=device)
    scale = share(difference, mean)
    _forward[(tiles * blocks,)](
        hidden,
        cu_seqlens,
        n_memory,
        sums,
        difference,
        squares,
        documents,
        rows,
        columns // options["UNIT"],
        n_memory.dim(),
        scale,
        CHUNK=chunk,
        PART=_PART,
        **options,
        **OPTIONS,
    )
    if some_longer:
        outputs = (sums, difference, squares)
        sizes = (documents, rows, columns)
        grid = (triton.cdiv(rows, chunk) * parts,)
        constants = {"CHUNK": chunk, "PART": _PART, **_COMBINE}
        _combine[grid](cu_seqlens, *outputs, *sizes, scale, **constants, **OPTIONS)
    return squares.sum(), difference


def backward(
    grad: Tensor,
    difference: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    rows: int,
    dtype: torch.dtype,
    mean: bool,
) -> Tensor:
    """∂L/∂hidden `[rows, H]` in `dtype`."""
    documents, columns = difference.shape
    out = torch.empty(rows, columns, dtype=dtype, device=difference.device)
    if rows:
        options = _options(_unit(columns), dtype)
        blocks = triton.cdiv(columns, options["BLOCK"])
        _backward[(triton.cdiv(rows, _TILE) * blocks,)](
            grad,
            difference.contiguous(),
            cu_seqlens.contiguous(),
            n_memory.contiguous(),
            out,
            documents,
            rows,
            columns // options["UNIT"],
            n_memory.dim(),
            2 * share(difference, mean),
            TILE=_TILE,
            **options,
            **OPTIONS,
        )
    return out


def builds(architecture: int) -> Iterator[Build]:
    """All that the launchers above compile; see `clara_kernels.builds`."""
    del architecture  # the same for all
    sizes = dict.fromkeys(("documents", "rows"), "i32") | {"scale": "fp32"}
    arrays = dict.fromkeys(("p_sums", "p_difference", "p_squares"), "*fp32") | {"p_offsets": "*i32"}
    counted = {"p_counts": "*i32", "count_stride": "i32", "units": "i32"}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = TYPE_NAMES[dtype]
        for unit in (16, 1):
            options = _options(unit, dtype)
            warps = options.pop("num_warps")
            aligned = f"{name}, width {'divisible by 16' if unit > 1 else 'any'}"
            types = {**sizes, **arrays, **counted}
            for chunk in reversed(_CHUNKS):
                note = f"{aligned}, {chunk} rows"
                constants = {**options, "CHUNK": chunk, "PART": _PART}
                at = {**types, "p_hidden": f"*{name}"}
                yield Build(_forward, at, constants, warps, note=note)
            del types["p_sums"], types["p_squares"]
            types |= {"p_grad": "*fp32", "p_out": f"*{name}"}
            yield Build(_backward, types, {**options, "TILE": _TILE}, warps, note=aligned)
    for chunk in reversed(_CHUNKS):
        constants = {"CHUNK": chunk, "PART": _PART, "TILES": _COMBINE["TILES"]}
        types = {**sizes, **arrays, "columns": "i32"}
        yield Build(_combine, types, constants, _COMBINE["num_warps"], note=f"{chunk} rows")
