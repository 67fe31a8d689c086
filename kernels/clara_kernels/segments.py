"""Which of many segments of unequal length a program works on, found on the device.

Rows `offsets[i]` to `offsets[i + 1]` make up segment i; a grid of tiles of BLOCK rows has to cover
each segment from its first row on, though the host does not know the lengths. Giving segment i the
tiles from `offsets[i] // BLOCK + i` on always leaves enough of them: a segment of n rows gets at
least ⌈n / BLOCK⌉. So `tile_count(rows, segments, BLOCK)` programs do, and a program whose tile
starts past the end of its segment has nothing to do.
"""

from __future__ import annotations

import triton
import triton.language as tl


def tile_count(rows: int, segments: int, block: int) -> int:
    """Tiles of `block` rows that surely cover `segments` segments of `rows` rows in all."""
    return rows // block + segments


@triton.jit
def find_segment(i_tile, p_offsets, segments, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """Segment of tile `i_tile` and the tile's number within it.

    Segments are `SCALE` times as long as the offsets say. All first tiles are compared at once,
    1024 at a time: fewer dependent loads than a binary search has.
    """
    before = 0
    for o in range(0, segments, 1024):
        i = o + tl.arange(0, 1024)  # [1024]
        m = i < segments
        first = tl.load(p_offsets + i, mask=m, other=0) * SCALE // BLOCK + i
        before += tl.sum((m & (first <= i_tile)).to(tl.int32))
    segment = tl.maximum(before, 1) - 1  # there is a first one, unless the offsets are wrong
    return segment, i_tile - (tl.load(p_offsets + segment) * SCALE // BLOCK + segment)


@triton.jit
def question_rows(question, p_offsets, rows, count):
    """First and past-the-last document of a question, within `rows` whatever the offsets say."""
    if p_offsets is None:
        first, end = question * count, (question + 1) * count
    else:
        first = tl.maximum(tl.load(p_offsets + question), 0)
        end = tl.minimum(tl.load(p_offsets + question + 1), rows)
    return first, end


@triton.jit
def question_tile(i_tile, p_offsets, questions, rows, count, BN: tl.constexpr):
    """Question of a tile of BN documents, the tile's number in it, its first row, and their end."""
    if p_offsets is None:
        tiles = tl.maximum(tl.cdiv(count, BN), 1)
        question, i_n = i_tile // tiles, i_tile % tiles
    else:
        question, i_n = find_segment(i_tile, p_offsets, questions, 1, BN)
    first, end = question_rows(question, p_offsets, rows, count)
    return question, i_n, first + i_n * BN, end
