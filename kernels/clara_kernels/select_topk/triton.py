"""Straight-through top-k: order and gather in one launch, and a backward that reads memory once.

Forward, a program finds the candidate of its slot by itself, which is cheap, and copies one block
of its columns. Backward, tiles of candidates are multiplied with the gradients of all slots,
`a_jl = ⟨G_j, memory_l⟩`, with the columns split over programs where there are few tiles; a second
kernel adds the parts up and applies the Jacobians of all slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from ..builds import OPTIONS, TYPE_NAMES, Build
from ..segments import tile_count
from . import noise_kernels, relaxation_kernels, selection_kernels
from .options import Options

_PROGRAMS = 512  # enough to fill a large GPU several times over
_LEAST_COLUMNS = 1024  # in one part: then the parts take less than 1% of memory for k = 5


class _Problem:
    """The sizes and tensors that all launches of one call share."""

    def __init__(self, scores: Tensor, offsets: Tensor | None, options: Options) -> None:
        self.offsets = None if offsets is None else offsets.contiguous()
        self.options = options
        self.rows = scores.numel()
        self.questions = scores.shape[0] if offsets is None else offsets.numel() - 1
        self.count = scores.shape[1] if offsets is None else 0
        # The mean of a ragged batch: only the device knows the longest.
        self.usual = self.rows // max(self.questions, 1)
        self.keys = scores.contiguous()  # candidates are ordered by these
        if options.seed is not None:
            self.keys = self._noisy(options.seed)

    def _noisy(self, seed: Tensor) -> Tensor:
        out = torch.empty_like(self.keys)
        if out.numel():
            arrays = (self.keys, self.offsets, self.options.temperature, seed, out)
            sizes = (self.questions, self.rows, self.count)
            noise_kernels.noisy[(self.tiles(_NOISY["BN"]),)](*arrays, *sizes, **_NOISY, **OPTIONS)
        return out

    def tiles(self, block: int) -> int:
        if self.offsets is not None:
            return tile_count(self.rows, self.questions, block)
        return self.questions * triton.cdiv(self.count, block)


_NOISY = {"BN": 128, "num_warps": 4}


def _unit(columns: int) -> int:
    """16 for a multiple of 16 columns: it tells the compiler that 16-byte accesses are aligned."""
    return 16 if columns % 16 == 0 else 1


def _order_config(usual: int) -> dict[str, Any]:
    return {"BN": 32, "num_warps": 1} if usual <= 32 else {"BN": 512, "num_warps": 4}


def _gather_config(usual: int, k: int, columns: int) -> dict[str, Any]:
    # With more, each block of columns would take too long to find the order again.
    order = usual <= 2048 and k <= 32
    block = 32 if usual <= 32 or not order else 512
    return {"UNIT": _unit(columns), "ORDER": order, "BN": block, "BD": 2048, "num_warps": 4}


def _weights_config(usual: int, k: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    slots = 16 if k <= 16 else 64
    block = 32 if usual <= 32 and slots == 16 else 64
    return {
        "UNIT": _unit(columns),
        "BJ": slots,
        "BN": block,
        "BD": 16 if slots == 64 and dtype.itemsize == 4 else 8192 // (block * dtype.itemsize),
        "STAGES": 4,
        "num_warps": 8,
        "maxnreg": 255 if slots == 16 else None,
    }


def _slot_config(usual: int) -> dict[str, Any]:
    config = {"BN": 32, "num_warps": 2} if usual <= 32 else {"BN": 128, "num_warps": 4}
    return {"BJ": 8, "maxnreg": 255, **config}


def _scatter_config(columns: int) -> dict[str, Any]:
    return {"UNIT": _unit(columns), "BD": 2048, "num_warps": 4}


def forward(
    scores: Tensor,
    memory: Tensor,
    offsets: Tensor | None,
    k: int,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """See `reference.forward`."""
    problem = _Problem(scores, offsets, options)
    memory, columns = memory.contiguous(), memory.shape[1]
    selected = memory.new_empty(problem.questions, k, columns)
    indices = torch.empty(problem.questions, k, dtype=torch.int64, device=scores.device)
    if problem.questions == 0:
        return selected, indices
    config = _gather_config(problem.usual, k, columns)
    if not config["ORDER"] or columns == 0:
        selection_kernels.order[(problem.questions,)](
            problem.keys,
            problem.offsets,
            indices,
            problem.rows,
            problem.count,
            k,
            **_order_config(problem.usual),
            **OPTIONS,
        )
    if columns:
        selection_kernels.gather[(problem.questions * k, triton.cdiv(columns, config["BD"]))](
            problem.keys,
            memory,
            problem.offsets,
            selected,
            indices,
            problem.rows,
            problem.count,
            columns // config["UNIT"],
            k,
            **config,
            **OPTIONS,
        )
    return selected, indices


def backward(
    grad: Tensor,
    scores: Tensor,
    memory: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    options: Options,
    need_scores: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    """See `reference.backward`."""
    problem = _Problem(scores, offsets, options)
    grad, memory = grad.contiguous(), memory.contiguous()
    grad_scores, grad_memory = scores.new_empty(0), memory.new_empty(0)
    if need_scores:
        parts = _inner_products(problem, grad, memory)
        grad_scores = _apply_jacobian(problem, parts, indices)
    if need_memory:
        grad_memory = torch.zeros_like(memory)
        add_taken(grad_memory, grad, indices, problem.offsets)
    return grad_scores, grad_memory


def _inner_products(problem: _Problem, grad: Tensor, memory: Tensor) -> Tensor:
    """Parts of ⟨G_j, memory_l⟩ that add up to it, float32 `[parts, k, R]`."""
    rows, columns = memory.shape
    k = grad.shape[1]
    if memory.numel() == 0:
        return torch.zeros(1, k, rows, dtype=torch.float32, device=memory.device)
    config = _weights_config(problem.usual, k, columns, memory.dtype)
    tiles, slot_tiles = problem.tiles(config["BN"]), triton.cdiv(k, config["BJ"])
    parts = max(min(_PROGRAMS // (tiles * slot_tiles), columns // _LEAST_COLUMNS), 1)
    blocks = triton.cdiv(columns, config["BD"])
    part_blocks = triton.cdiv(blocks, parts)
    parts = triton.cdiv(blocks, part_blocks)
    out = torch.empty(parts, k, rows, dtype=torch.float32, device=memory.device)
    relaxation_kernels.weights[(tiles, parts, slot_tiles)](
        grad,
        memory,
        problem.offsets,
        out,
        problem.questions,
        rows,
        problem.count,
        columns // config["UNIT"],
        k,
        part_blocks,
        **config,
        **OPTIONS,
    )
    return out


def _apply_jacobian(problem: _Problem, parts: Tensor, indices: Tensor) -> Tensor:
    """Gradient of the scores from parts of ∂L/∂p, `[parts, k, R]`."""
    out = torch.empty_like(problem.keys)
    if out.numel() == 0:
        return out
    config = _slot_config(problem.usual)
    relaxation_kernels.jacobian[(problem.tiles(config["BN"]),)](
        parts,
        problem.keys,
        indices,
        problem.offsets,
        problem.options.temperature,
        out,
        problem.questions,
        problem.rows,
        problem.count,
        indices.shape[1],
        parts.shape[0],
        int(problem.options.noisy),
        problem.options.penalty,
        SPARSE=problem.options.sparse,
        **config,
        **OPTIONS,
    )
    return out


def add_taken(total: Tensor, grad: Tensor, indices: Tensor, offsets: Tensor | None) -> None:
    """See `reference.add_taken`."""
    questions, k, columns = grad.shape
    if grad.numel() == 0 or total.numel() == 0:
        return
    grad = grad.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    count = total.shape[0] // questions  # used without offsets
    config = _scatter_config(columns)
    selection_kernels.scatter[(questions * k, triton.cdiv(columns, config["BD"]))](
        grad,
        indices,
        offsets,
        total,
        total.shape[0],
        count,
        columns // config["UNIT"],
        k,
        **config,
        **OPTIONS,
    )


def probabilities(
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    options: Options,
) -> Tensor:
    """See `reference.probabilities`."""
    problem = _Problem(scores, offsets, options)
    k = indices.shape[1]
    out = torch.empty(k, problem.rows, dtype=torch.float32, device=scores.device)
    if out.numel() == 0:
        return out
    config = _slot_config(problem.usual)
    relaxation_kernels.probabilities[(problem.tiles(config["BN"]), triton.cdiv(k, config["BJ"]))](
        problem.keys,
        indices,
        problem.offsets,
        options.temperature,
        out,
        problem.questions,
        problem.rows,
        problem.count,
        k,
        int(problem.options.noisy),
        problem.options.penalty,
        SPARSE=problem.options.sparse,
        **config,
        **OPTIONS,
    )
    return out


def probabilities_backward(
    grad: Tensor,
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    options: Options,
) -> Tensor:
    """See `reference.probabilities_backward`."""
    problem = _Problem(scores, offsets, options)
    return _apply_jacobian(problem, grad.float().contiguous()[None], indices)


def builds(architecture: int) -> Iterator[Build]:
    """What the launchers above compile; see `clara_kernels.builds`."""
    del architecture  # the same for all
    for dtype, columns, ragged in product(_DTYPES, (32768, 33), (False, True)):
        yield from _memory_builds(dtype, columns, ragged)
    for ragged in (False, True):
        note = "ragged" if ragged else "dense"
        keys = {"p_keys": "*fp32", "p_temperature": "*fp32", "p_indices": "*i64", "p_out": "*fp32"}
        keys |= {"p_parts": "*fp32", "p_scores": "*fp32", "p_seed": "*i64", "penalty": "fp32"}
        yield _build(noise_kernels.noisy, keys, ragged, _NOISY, note)
        for usual in (20, 1000):
            yield _build(selection_kernels.order, keys, ragged, _order_config(usual), note)
            for sparse in (False, True):
                config = {"SPARSE": sparse, **_slot_config(usual)}
                yield _build(relaxation_kernels.jacobian, keys, ragged, config, note)
                yield _build(relaxation_kernels.probabilities, keys, ragged, config, note)


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _memory_builds(dtype: torch.dtype, columns: int, ragged: bool) -> Iterator[Build]:
    note = f"{TYPE_NAMES[dtype]}, {'ragged' if ragged else 'dense'}"
    types = dict.fromkeys(("p_memory", "p_grad", "p_selected", "p_out"), f"*{TYPE_NAMES[dtype]}")
    types |= {"p_keys": "*fp32", "p_parts": "*fp32", "p_indices": "*i64"}
    for usual in (20, 1000, 3000):
        config = _gather_config(usual, 5, columns)
        yield _build(selection_kernels.gather, types, ragged, config, note)
    for usual, k in ((20, 5), (1000, 5), (1000, 100)):
        config = _weights_config(usual, k, columns, dtype)
        cores = dtype.itemsize == 2
        yield _build(relaxation_kernels.weights, types, ragged, config, note, tensor_cores=cores)
    yield _build(selection_kernels.scatter, types, ragged, _scatter_config(columns), note)


def _build(
    kernel: Any,
    types: dict[str, str],
    ragged: bool,
    config: dict[str, Any],
    note: str,
    tensor_cores: bool = False,
) -> Build:
    """A build with those of `types` that the kernel has; its other parameters are sizes."""
    constants = dict(config)
    warps, registers = constants.pop("num_warps"), constants.pop("maxnreg", None)
    types = {"p_offsets": "*i32", **types}
    if not ragged:
        constants["p_offsets"] = None
    names = [name for name in kernel.arg_names if name not in constants]
    types = {name: types.get(name, "i32") for name in names}
    return Build(
        kernel, types, constants, warps, registers=registers, note=note, tensor_cores=tensor_cores
    )
