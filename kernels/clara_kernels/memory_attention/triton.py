"""Launchers of memory attention, and the block sizes they pick."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build, architecture_of
from ..segments import tile_count
from . import backward as backward_kernels
from . import forward as forward_kernels
from . import reference
from .blocks import Blocks, forward_blocks, key_blocks, query_blocks

_LOG2_E = 1.4426950408889634
_WIDEST_HEAD = 256
_LEAST_PACKED_ROWS = 64  # of a tile that is not of memory rows alone; there are seldom fewer


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def _splits(programs: int, mean_keys: int, block: int, device: torch.device) -> int:
    """Parts of the keys: one where there are programs enough, and none of less than two blocks."""
    wanted = triton.cdiv(2 * _multiprocessors(device), programs)
    return max(min(wanted, mean_keys // (2 * block)), 1)


class _Problem:
    """The sizes of a call, and the arguments that all its kernels share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor,
        n_memory: Tensor,
        memory_only: bool,
        window: int,
    ) -> None:
        self.q, self.k, self.v = q.contiguous(), _with_whole_rows(k), _with_whole_rows(v)
        self.q_rows, self.heads, self.head_dim = q.shape
        self.kv_heads = k.shape[1]
        self.documents = cu_seqlens.numel() - 1
        self.offsets = cu_seqlens.contiguous()
        self.uniform = memory_only and n_memory.dim() == 0
        self.rows_each = self.q_rows // self.documents if self.uniform else 0
        self.q_offsets = self.offsets
        if memory_only and not self.uniform:
            self.q_offsets = reference.query_offsets(cu_seqlens, n_memory, True)
        self.group = self.heads // self.kv_heads
        self.width = max(triton.next_power_of_2(self.head_dim), 16)
        self.mean_rows = triton.cdiv(self.q_rows * self.group, self.documents)
        if not self.uniform:
            self.mean_rows = max(self.mean_rows, _LEAST_PACKED_ROWS)
        # A window that no document is longer than cuts nothing: the kernel without one is faster.
        self.windowed = 0 < window < k.shape[0]
        self.window = window if self.windowed else 0
        self.device, self.dtype = q.device, q.dtype
        architecture = architecture_of(q.device)
        self.key = (q.dtype, self.width, self.mean_rows, architecture, self.windowed)

    def tiles(self, block: int) -> int:
        """Tiles of packed rows."""
        if self.uniform:
            return self.documents * triton.cdiv(self.rows_each * self.group, block)
        return tile_count(self.q_rows * self.group, self.documents, block)

    def splits(self, blocks: Blocks) -> int:
        """Parts of the keys; with unequal numbers of memory rows they are not split."""
        if not self.uniform:
            return 1
        programs = self.tiles(blocks.m) * self.kv_heads
        mean_keys = self.k.shape[0] // self.documents
        if self.windowed:
            mean_keys = min(mean_keys, self.window + self.rows_each)
        return _splits(programs, mean_keys, blocks.n, self.device)

    def sizes(self) -> tuple[int, ...]:
        return self.documents, self.rows_each, self.heads

    def strides(self) -> tuple[int, int]:
        """Strides of the rows of k and v, in heads: the compiler sees that they are aligned."""
        return self.k.stride(0) // self.head_dim, self.v.stride(0) // self.head_dim

    def constants(self, blocks: Blocks) -> dict[str, Any]:
        return {
            "GROUP": self.group,
            **_head_constants(self.head_dim),
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "UNIFORM": self.uniform,
            "WINDOWED": self.windowed,
            "num_warps": blocks.num_warps,
            "num_stages": blocks.num_stages,
            **OPTIONS,
        }


def _head_constants(head_dim: int) -> dict[str, int]:
    return {"HEAD_DIM": head_dim, "BLOCK_D": max(triton.next_power_of_2(head_dim), 16)}


def _with_whole_rows(x: Tensor) -> Tensor:
    """x as it is if only its rows are apart, by a number of heads, else a copy."""
    width = x.shape[2]
    whole = x.stride(2) == 1 and x.stride(1) == width and x.stride(0) % width == 0
    # Within a document the kernels count values in 32 bits.
    return x if whole and x.shape[0] * x.stride(0) < 2**31 else x.contiguous()


_ROW_OPTIONS = {"BLOCK_R": 32, "num_warps": 4}


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """The result and the log of its softmax's sums, as `reference.forward`."""
    if q.shape[2] > _WIDEST_HEAD:
        return reference.forward(q, k, v, cu_seqlens, n_memory, memory_only, scale, window)
    problem = _Problem(q, k, v, cu_seqlens, n_memory, memory_only, window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if q.numel() == 0:
        return out, lse
    blocks = forward_blocks(*problem.key)
    splits = problem.splits(blocks)
    part_out, part_lse = out, lse
    if splits > 1:
        part_out = torch.empty(splits, *q.shape, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(splits, *lse.shape, dtype=torch.float32, device=q.device)
    forward_kernels.forward[(problem.tiles(blocks.m), problem.kv_heads, splits)](
        problem.q,
        problem.k,
        problem.v,
        part_out,
        part_lse,
        problem.offsets,
        problem.q_offsets,
        *problem.sizes(),
        problem.q_rows,
        *problem.strides(),
        scale * _LOG2_E,
        splits,
        problem.window,
        **problem.constants(blocks),
    )
    if splits > 1:
        rows = lse.numel()
        forward_kernels.combine[(triton.cdiv(rows, _ROW_OPTIONS["BLOCK_R"]),)](
            part_out,
            part_lse,
            out,
            lse,
            rows,
            splits,
            **_head_constants(problem.head_dim),
            **_ROW_OPTIONS,
            **OPTIONS,
        )
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if q.shape[2] > _WIDEST_HEAD:
        arguments = (grad, q, k, v, out, lse, cu_seqlens, n_memory, memory_only, scale, window)
        return reference.backward(*arguments)
    if q.numel() == 0:
        return torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    problem = _Problem(q, k, v, cu_seqlens, n_memory, memory_only, window)
    grad, out, lse = (x.contiguous() for x in (grad.to(q.dtype), out, lse))
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    sums = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    backward_kernels.row_sums[(triton.cdiv(lse.numel(), _ROW_OPTIONS["BLOCK_R"]),)](
        out,
        grad,
        sums,
        lse.numel(),
        **_head_constants(problem.head_dim),
        **_ROW_OPTIONS,
        **OPTIONS,
    )
    blocks = key_blocks(*problem.key)
    tiles = tile_count(k.shape[0], problem.documents, blocks.n)
    backward_kernels.key_gradients[(tiles, problem.kv_heads)](
        problem.q,
        problem.k,
        problem.v,
        grad,
        lse,
        sums,
        dk,
        dv,
        problem.offsets,
        problem.q_offsets,
        *problem.sizes(),
        *problem.strides(),
        scale,
        problem.window,
        **problem.constants(blocks),
    )
    return _query_gradients(problem, grad, lse, sums, scale), dk, dv


def _query_gradients(
    problem: _Problem, grad: Tensor, lse: Tensor, sums: Tensor, scale: float
) -> Tensor:
    q = problem.q
    blocks = query_blocks(*problem.key)
    splits = problem.splits(blocks)
    shape = q.shape if splits == 1 else (splits, *q.shape)
    dtype = q.dtype if splits == 1 else torch.float32
    dq = torch.empty(shape, dtype=dtype, device=q.device)
    backward_kernels.query_gradients[(problem.tiles(blocks.m), problem.kv_heads, splits)](
        q,
        problem.k,
        problem.v,
        grad,
        lse,
        sums,
        dq,
        problem.offsets,
        problem.q_offsets,
        *problem.sizes(),
        problem.q_rows,
        *problem.strides(),
        scale,
        splits,
        problem.window,
        **problem.constants(blocks),
    )
    return dq if splits == 1 else dq.sum(0).to(q.dtype)


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Head width and query heads to a key head, of common models and at the ends of what is possible.
_HEADS = ((128, 4), (128, 1), (64, 4), (64, 3), (64, 1), (32, 1), (80, 1), (96, 1), (256, 4))
# Of models with sliding windows: Mistral, Qwen2 and Gemma 3. In the type they are run in: each
# build takes seconds to compile.
_WINDOWED_HEADS = ((128, 4), (64, 4), (256, 4))
_WINDOWED_DTYPES = (torch.bfloat16,)


def builds(architecture: int) -> Iterator[Build]:
    """What the launchers above compile, for usual heads; see `clara_kernels.builds`."""
    plain, windowed_ones = product(_DTYPES, _HEADS), product(_WINDOWED_DTYPES, _WINDOWED_HEADS)
    for each, windowed in ((plain, False), (windowed_ones, True)):
        for dtype, head in each:
            for mean_rows in (128, 64):
                yield from _builds(dtype, head, False, mean_rows, windowed, architecture)
            for mean_rows in (128, 64, 32, 16):
                yield from _builds(dtype, head, True, mean_rows, windowed, architecture)
    for dtype, head_dim in product(_DTYPES, dict(_HEADS)):
        yield from _row_builds(dtype, head_dim)


def _builds(
    dtype: torch.dtype,
    heads: tuple[int, int],
    uniform: bool,
    mean_rows: int,
    windowed: bool,
    architecture: int,
) -> Iterator[Build]:
    x = f"*{TYPE_NAMES[dtype]}"
    head_dim, group = heads
    head = _head_constants(head_dim)
    key = (dtype, head["BLOCK_D"], mean_rows, architecture, windowed)
    direct = [(forward_kernels.forward, forward_blocks, x)]
    direct += [(backward_kernels.key_gradients, key_blocks, x)]
    direct += [(backward_kernels.query_gradients, query_blocks, x)]
    in_parts = [(kernel, pick, "*fp32") for kernel, pick, _ in (direct[0], direct[2])]
    for kernel, pick, result in direct + in_parts if uniform and x != "*fp32" else direct:
        blocks = pick(*key)
        rows = f"to {mean_rows} {'memory' if uniform else 'packed'} rows"
        parts = ", in parts" if result != x else ""
        window = ", with a window" if windowed else ""
        yield Build(
            kernel,
            {name: _type(name, x, result) for name in kernel.arg_names if not name.isupper()},
            {
                "GROUP": group,
                **head,
                "BLOCK_M": blocks.m,
                "BLOCK_N": blocks.n,
                "UNIFORM": uniform,
                "WINDOWED": windowed,
            },
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
            note=f"{TYPE_NAMES[dtype]}, head_dim {head_dim}, {rows}{parts}{window}",
            tensor_cores=dtype != torch.float32,
        )


def _type(name: str, x: str, result: str) -> str:
    """The type of a parameter of the three large kernels."""
    if name in ("p_out", "p_dq"):
        return result
    if name in ("p_lse", "p_sums"):
        return "*fp32"
    if name in ("p_offsets", "p_q_offsets"):
        return "*i32"
    if name.startswith("p_"):
        return x
    return "fp32" if name == "scale" else "i32"


def _row_builds(dtype: torch.dtype, head_dim: int) -> Iterator[Build]:
    x = f"*{TYPE_NAMES[dtype]}"
    constants = {**_head_constants(head_dim), "BLOCK_R": _ROW_OPTIONS["BLOCK_R"]}
    note = f"{TYPE_NAMES[dtype]}, head_dim {head_dim}"
    parts = {"p_parts": "*fp32", "p_part_lse": "*fp32", "p_lse": "*fp32", "p_out": x}
    warps = _ROW_OPTIONS["num_warps"]
    sizes = {"rows": "i32", "splits": "i32"}
    yield Build(forward_kernels.combine, {**parts, **sizes}, constants, warps, note=note)
    sums = {"p_out": x, "p_grad": x, "p_sums": "*fp32", "rows": "i32"}
    yield Build(backward_kernels.row_sums, sums, constants, warps, note=note)
