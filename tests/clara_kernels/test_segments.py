"""Every row of every segment is in exactly one tile, and tiles do not cross segments."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clara_kernels.segments import find_segment, tile_count


@triton.jit
def _write(p_offsets, p_out, segments, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    segment, tile = find_segment(tl.program_id(0), p_offsets, segments, SCALE, BLOCK)
    tl.store(p_out + 2 * tl.program_id(0), segment)
    tl.store(p_out + 2 * tl.program_id(0) + 1, tile)


@triton.jit
def _write_one(p_offsets, p_out, tile, segments):
    segment, number = find_segment(tile, p_offsets, segments, 1, 4)
    tl.store(p_out, segment)
    tl.store(p_out + 1, number)


def tiles_of(lengths, scale, block, device):
    offsets = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    count = tile_count(int(offsets[-1]) * scale, len(lengths), block)
    out = torch.full((count, 2), -1, dtype=torch.int32, device=device)
    _write[(count,)](offsets, out, len(lengths), SCALE=scale, BLOCK=block)
    return [tuple(pair) for pair in out.tolist()]


def check(lengths, scale, block, device="cpu"):
    tiles = tiles_of(lengths, scale, block, device)
    assert len(set(tiles)) == len(tiles)
    assert all(0 <= segment < len(lengths) and tile >= 0 for segment, tile in tiles)
    for segment, length in enumerate(lengths):
        wanted = -(-length * scale // block)
        assert {(segment, tile) for tile in range(wanted)} <= set(tiles)


@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    scale=st.sampled_from([1, 3, 4]),
    block=st.sampled_from([3, 16, 32]),
)
@example([0], 1, 16)
@example([0, 0, 0], 1, 1)
@example([16, 32, 16], 1, 16)
@example([1] * 8, 4, 32)
def test_every_row_is_in_a_tile(lengths, scale, block):
    check(lengths, scale, block)


@pytest.mark.parametrize("count", [1023, 1024, 1025])
def test_more_segments_than_are_compared_at_once(count):
    offsets = torch.arange(count + 1, dtype=torch.int32) * 3
    firsts = offsets[:-1] // 4 + torch.arange(count)
    for tile in (0, count - 1, tile_count(3 * count, count, 4) - 1):
        out = torch.zeros(2, dtype=torch.int32)
        _write_one[(1,)](offsets, out, tile, count)
        segment, number = out.tolist()
        expected = int((firsts <= tile).sum()) - 1
        assert (segment, number) == (expected, tile - int(firsts[expected]))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 300, 2500])
def test_on_the_gpu(count):
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(0, 70, (count,), generator=generator).tolist()
    for scale, block in ((1, 16), (4, 64)):
        check(lengths, scale, block, "cuda")
