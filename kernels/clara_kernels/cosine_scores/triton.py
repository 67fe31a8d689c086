"""Cosines in one read of the documents, and their gradients in one more.

Forward, a program takes a few documents of one question and walks along D, adding up dots and
squared norms side by side. Loads run several steps ahead of the sums (`STAGES`): what a program has
on its way is limited by shared memory alone. Backward, a program takes a block of columns of one
question and walks along its documents: what the question's gradient sums over lies within the
program.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build, architecture_of
from ..segments import question_rows, question_tile, tile_count

# Of norms, see `norms`.
_ORDINARY = tl.constexpr(2.0**40)
_SHIFT = tl.constexpr(2.0**32)


@triton.jit
def inverse_norm(squares):
    """1/√squares, and 0 for 0."""
    zero = squares == 0
    root = tl.math.sqrt_rn(tl.where(zero, 1.0, squares))
    return tl.where(zero, 0.0, tl.math.div_rn(1.0, root))


@triton.jit
def is_ordinary(squares):
    """Of squared norms, whether sums of products may be made as they are; not for 0 and NaN."""
    limit = _ORDINARY * _ORDINARY
    return (squares >= 1 / limit) & (squares <= limit)


@triton.jit
def power_of_two(largest):
    """As `norms.power_of_two`."""
    field = largest.to(tl.int32, bitcast=True) >> 23
    return ((254 - tl.minimum(field, 253)) << 23).to(tl.float32, bitcast=True)


@triton.jit
def keep(inverse, scale):
    """As `norms.keep`."""
    plain = inverse * scale
    shift = tl.where(scale < 1, _SHIFT, 1 / _SHIFT)
    ordinary = ((plain >= 1 / _ORDINARY) & (plain <= _ORDINARY)) | (inverse == 0)
    return tl.where(ordinary, plain, -inverse * (scale * shift))


@triton.jit
def inverse_parts(kept):
    """As `norms.parts`."""
    inverse = tl.abs(kept)
    shift = tl.where(inverse < 1, 1 / _SHIFT, _SHIFT)
    return tl.where(kept < 0, shift, 1.0), inverse


@triton.jit
def _scaled_scores(p_q, p_d, m_n, columns, BN: tl.constexpr, BD: tl.constexpr):
    """Scores of a tile with a norm that is not ordinary, and what is kept of the norms.

    Reads the vectors twice more: for their largest values, and for sums of them scaled by a power
    of two.
    """
    o_d = tl.arange(0, BD)[None, :]  # [1, BD]
    largest_q = tl.zeros([1, BD], tl.float32)
    largest_d = tl.zeros([BN, BD], tl.float32)
    for o in range(0, columns, BD):
        m_d = o + o_d < columns
        d = tl.load(p_d + o, mask=m_n[:, None] & m_d, other=0.0).to(tl.float32)  # [BN, BD]
        q = tl.load(p_q + o, mask=m_d, other=0.0).to(tl.float32)  # [1, BD]
        largest_q = tl.maximum(largest_q, tl.abs(q))
        largest_d = tl.maximum(largest_d, tl.abs(d))
    scale_q = power_of_two(tl.max(tl.max(largest_q, 1), 0))
    scale_d = power_of_two(tl.max(largest_d, 1))  # [BN]
    dots = tl.zeros([BN, BD], tl.float32)
    squares = tl.zeros([BN, BD], tl.float32)
    query_squares = tl.zeros([1, BD], tl.float32)
    for o in range(0, columns, BD):
        m_d = o + o_d < columns
        d = tl.load(p_d + o, mask=m_n[:, None] & m_d, other=0.0).to(tl.float32) * scale_d[:, None]
        q = tl.load(p_q + o, mask=m_d, other=0.0).to(tl.float32) * scale_q
        dots += d * q
        squares += d * d
        query_squares += q * q
    query_inverse = inverse_norm(tl.sum(tl.sum(query_squares, 1), 0))
    document_inverse = inverse_norm(tl.sum(squares, 1))  # [BN]
    scores = tl.sum(dots, 1) * query_inverse * document_inverse
    return scores, keep(query_inverse, scale_q), keep(document_inverse, scale_d)


@triton.jit(do_not_specialize=["questions", "rows", "count", "units"])
def _forward(
    p_queries,
    p_documents,
    p_offsets,  # None if all questions have `count` documents
    p_scores,
    p_query_inverse,
    p_document_inverse,
    questions,
    rows,
    count,
    units,
    UNIT: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """BN documents of one question; its first tile also writes 1/|q|, if it has none too."""
    question, i_n, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    if (row >= end) & (i_n > 0):
        return
    columns = units * UNIT
    o_n = row + tl.arange(0, BN)  # [BN]
    o_d = tl.arange(0, BD)[None, :]  # [1, BD]
    m_n = (o_n >= 0) & (o_n < end)
    p_q = p_queries + question.to(tl.int64) * columns + o_d
    p_d = p_documents + o_n.to(tl.int64)[:, None] * columns + o_d
    dots = tl.zeros([BN, BD], tl.float32)
    squares = tl.zeros([BN, BD], tl.float32)
    query_squares = tl.zeros([1, BD], tl.float32)
    for o in tl.range(0, columns, BD, num_stages=STAGES):
        m_d = o + o_d < columns
        d = tl.load(p_d + o, mask=m_n[:, None] & m_d, other=0.0).to(tl.float32)  # [BN, BD]
        q = tl.load(p_q + o, mask=m_d, other=0.0).to(tl.float32)  # [1, BD]
        dots += d * q
        squares += d * d
        query_squares += q * q

    query_square, document_squares = tl.sum(tl.sum(query_squares, 1), 0), tl.sum(squares, 1)
    query_inverse = inverse_norm(query_square)
    document_inverse = inverse_norm(document_squares)  # [BN]
    scores = tl.sum(dots, 1) * query_inverse * document_inverse
    far = (~is_ordinary(document_squares + tl.zeros_like(scores)) & m_n).to(tl.int32)
    if (tl.max(far, 0) > 0) | ~is_ordinary(query_square):
        scores, query_inverse, document_inverse = _scaled_scores(p_q, p_d, m_n, columns, BN, BD)
    tl.store(p_scores + o_n, scores, mask=m_n)
    tl.store(p_document_inverse + o_n, document_inverse, mask=m_n)
    if i_n == 0:
        tl.store(p_query_inverse + question, query_inverse)


@triton.jit(do_not_specialize=["rows", "count", "units", "blocks"])
def _backward(
    p_grad,
    p_queries,
    p_documents,
    p_offsets,
    p_scores,
    p_query_inverse,
    p_document_inverse,
    p_grad_queries,  # None if not asked for, as the next
    p_grad_documents,
    rows,
    count,
    units,
    blocks,
    UNIT: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """∂s/∂q = (d̂ - s q̂) / |q| and ∂s/∂d = (q̂ - s d̂) / |d|, with hats for unit vectors."""
    question = tl.program_id(0) // blocks
    columns = units * UNIT
    o_d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)[None, :]  # [1, BD]
    m_d = o_d < columns
    o_q = question.to(tl.int64) * columns + o_d
    query_shift, query_inverse = inverse_parts(tl.load(p_query_inverse + question))
    query = tl.load(p_queries + o_q, mask=m_d, other=0.0).to(tl.float32)  # [1, BD]
    query = query * query_shift * query_inverse
    first, end = question_rows(question, p_offsets, rows, count)

    along_documents = tl.zeros([BN, BD], tl.float32)
    along_query = tl.zeros([BN], tl.float32)
    for row in tl.range(first, end, BN, num_stages=STAGES):
        o_n = row + tl.arange(0, BN)  # [BN]
        m_n = o_n < end
        m = m_n[:, None] & m_d
        o_document = o_n.to(tl.int64)[:, None] * columns + o_d  # [BN, BD]
        document = tl.load(p_documents + o_document, mask=m, other=0.0).to(tl.float32)
        kept = tl.load(p_document_inverse + o_n, mask=m_n, other=0.0)
        shift, inverse = inverse_parts(kept)  # [BN]
        document *= shift[:, None]
        score = tl.load(p_scores + o_n, mask=m_n, other=0.0)
        grad = tl.load(p_grad + o_n, mask=m_n, other=0.0)
        grad = tl.where((inverse > 0) & (query_inverse + tl.zeros_like(inverse) > 0), grad, 0.0)
        weight = grad * inverse
        if p_grad_queries is not None:
            along_documents += weight[:, None] * document
            along_query += grad * score
        if p_grad_documents is not None:
            out = weight[:, None] * (query - (score * inverse)[:, None] * document) * shift[:, None]
            tl.store(p_grad_documents + o_document, out, mask=m)
    if p_grad_queries is not None:
        out = tl.sum(along_documents, 0)[None, :] - tl.sum(along_query) * query
        tl.store(p_grad_queries + o_q, out * query_inverse * query_shift, mask=m_d)


def _single_tile(dtype: torch.dtype, unit: int, architecture: int) -> dict[str, Any]:
    """One document, with as many loads on their way as let two programs share a multiprocessor."""
    stages = 7 if 90 <= architecture < 120 else 5
    columns = 8192 // dtype.itemsize
    return {"UNIT": unit, "BN": 1, "BD": columns, "STAGES": stages, "num_warps": 16}


def _shared_tile(dtype: torch.dtype, unit: int) -> dict[str, Any]:
    """Four documents on one read of the query, which else is as much as that of the documents."""
    return {"UNIT": unit, "BN": 4, "BD": 1024 // dtype.itemsize, "STAGES": 8, "num_warps": 4}


def _forward_tile(
    dtype: torch.dtype, unit: int, questions: int, rows: int, architecture: int
) -> dict[str, Any]:
    # From 1024 rows on, tiles of four are enough to fill a GPU; short questions leave them empty.
    if unit > 1 and rows >= 1024 and rows > 2 * questions:
        return _shared_tile(dtype, unit)
    return _single_tile(dtype, unit, architecture)


def _backward_tile(wide: bool, dtype: torch.dtype, unit: int) -> dict[str, Any]:
    """8 KB of documents a step: wide rows are read best, narrow ones make more programs."""
    width = 2048 if wide else 512  # bytes
    # Single values of 4 bytes take more registers, which more threads have.
    single = unit == 1 and dtype.itemsize == 4
    return {
        "UNIT": unit,
        "BN": 8192 // width,
        "BD": width // dtype.itemsize,
        "STAGES": 4 if wide else 3,
        "num_warps": 8 if wide or single else 4,
    }


def _unit(columns: int) -> int:
    """What the compiler may know to divide the columns: 16 of them allow 16-byte accesses."""
    return 16 if columns % 16 == 0 else 1


def _cdiv(rows: int, block: int) -> int:
    return -(-rows // block)  # triton.cdiv takes a microsecond


def _comparable(queries: Tensor, documents: Tensor) -> Tensor:
    """Queries in the dtype of the documents or else in float32: fewer kernels to compile."""
    same = queries.dtype == documents.dtype
    return (queries if same else queries.float()).contiguous()


def forward(
    queries: Tensor, documents: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and inverse norms, float32.

    Args:
        queries: `[B, D]`.
        documents: `[B, N, D]`, or `[ΣN, D]` with offsets.
        offsets: int32 `[B + 1]` or None.

    Returns:
        Scores `[B, N]` or `[ΣN]`, and 1/|q| `[B]` and 1/|d| like the scores as `norms` keeps them.
    """
    queries, documents = _comparable(queries, documents), documents.contiguous()
    questions, columns = queries.shape
    shape = documents.shape[:-1]
    rows = shape.numel()
    device = queries.device
    scores = torch.empty(shape, dtype=torch.float32, device=device)
    query_inverse = torch.empty(questions, dtype=torch.float32, device=device)
    document_inverse = torch.empty(shape, dtype=torch.float32, device=device)
    if questions == 0:
        return scores, query_inverse, document_inverse
    unit = _unit(columns)
    tile = _forward_tile(documents.dtype, unit, questions, rows, architecture_of(device))
    if offsets is None:
        count = shape[1]
        tiles = questions * max(_cdiv(count, tile["BN"]), 1)
    else:
        count = 0
        offsets = offsets.contiguous()
        tiles = tile_count(rows, questions, tile["BN"])
    _forward[(tiles,)](
        queries,
        documents,
        offsets,
        scores,
        query_inverse,
        document_inverse,
        questions,
        rows,
        count,
        columns // unit,
        **tile,
        **OPTIONS,
    )
    return scores, query_inverse, document_inverse


def backward(
    grad: Tensor,
    queries: Tensor,
    documents: Tensor,
    offsets: Tensor | None,
    scores: Tensor,
    query_inverse: Tensor,
    document_inverse: Tensor,
    need_queries: bool,
    need_documents: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients in the dtypes and shapes of queries and documents; `[0]` for one not needed."""
    dtype = queries.dtype
    queries, documents = _comparable(queries, documents), documents.contiguous()
    questions, columns = queries.shape
    grad_queries = torch.empty_like(queries) if need_queries else queries.new_empty(0)
    grad_documents = torch.empty_like(documents) if need_documents else documents.new_empty(0)
    if queries.numel() == 0 or not (need_queries or need_documents):
        return grad_queries.to(dtype), grad_documents
    unit = _unit(columns)
    wide = unit > 1 and questions * columns >= 2**19
    tile = _backward_tile(wide, documents.dtype, unit)
    blocks = _cdiv(columns, tile["BD"])
    _backward[(questions * blocks,)](
        grad.contiguous(),
        queries,
        documents,
        None if offsets is None else offsets.contiguous(),
        scores,
        query_inverse,
        document_inverse,
        grad_queries if need_queries else None,
        grad_documents if need_documents else None,
        scores.numel(),
        documents.shape[1] if offsets is None else 0,
        columns // unit,
        blocks,
        **tile,
        **OPTIONS,
    )
    return grad_queries.to(dtype), grad_documents


def _build(kernel: Any, types: dict[str, str], options: dict[str, Any], note: str) -> Build:
    sizes = dict.fromkeys(("questions", "rows", "count", "units", "blocks"), "i32")
    types = {name: kind for name, kind in (types | sizes).items() if name in kernel.arg_names}
    constants = {name: None for name in kernel.arg_names if name[:2] == "p_" and name not in types}
    constants |= {name: value for name, value in options.items() if name.isupper()}
    return Build(kernel, types, constants, options["num_warps"], note=note)


def builds(architecture: int) -> Iterator[Build]:
    """All that the launchers above compile; see `clara_kernels.builds`."""
    half, single = (torch.bfloat16, torch.float16), torch.float32
    pairs = [*((dtype, dtype) for dtype in half), (single, single)]
    pairs += [(dtype, single) for dtype in half]
    for ragged, (documents, queries), unit in product((False, True), pairs, (16, 1)):
        aligned = unit > 1
        d, q = f"*{TYPE_NAMES[documents]}", f"*{TYPE_NAMES[queries]}"
        types = {"p_documents": d, "p_queries": q}
        types |= dict.fromkeys(("p_scores", "p_query_inverse", "p_document_inverse"), "*fp32")
        types |= {"p_offsets": "*i32"} if ragged else {}
        note = f"{d[1:]} documents, {q[1:]} queries" + (", ragged" if ragged else "")
        note += "" if aligned else ", unaligned"
        if aligned:
            yield _build(_forward, types, _shared_tile(documents, unit), f"{note}, BN=4")
        tile = _single_tile(documents, unit, architecture)
        yield _build(_forward, types, tile, f"{note}, BN=1")
        for wide in (True, False) if aligned else (False,):
            tile = _backward_tile(wide, documents, unit)
            grads = {"p_grad_queries": q, "p_grad_documents": d}
            for wanted in (("p_grad_queries",), tuple(grads), ("p_grad_documents",)):
                given = {"p_grad": "*fp32", **types, **{name: grads[name] for name in wanted}}
                to = " and ".join(name.removeprefix("p_grad_") for name in wanted)
                size = "wide" if wide else "narrow"
                yield _build(_backward, given, tile, f"{note}, {size}, to {to}")
