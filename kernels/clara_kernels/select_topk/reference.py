"""Straight-through top-k: hard selection forward, relaxed selection backward.

With z = s/τ (+ Gumbel noise), slot j takes the j-th highest z, and p_j is the softmax or
sparsemax of z over the candidates that earlier slots left. The operator is

    Z = Zhard + Zsoft - stopgrad(Zsoft),    selected_j = Σ_i Z_ji · memory_i

with memory differentiated through Zhard alone. Its value is the gathered document, bit for bit,
so it is computed as a gather and only the backward pass ever sees p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ragged import RowTable, accumulation_dtype, column_slices, pad, row_table
from ..sparsemax.reference import sparsemax_reference
from .noise import gumbel_noise

# log(1 - taken + 1e-8) for a taken candidate; for the others it is 0 in float32.
_REFERENCE_MASK = math.log(1e-8)


def select_topk_reference(
    scores: Tensor,
    memory: Tensor,
    k: int,
    temperature: float | Tensor,
    relaxation: str = "softmax",
    mask: str = "exact",
    seed: int | Tensor | None = None,
    offsets: Tensor | None = None,
    return_probabilities: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `clara_kernels.select_topk`. A seed turns the noise on; None turns it off."""
    table = None if offsets is None else row_table(offsets)
    scores = pad(scores.to(accumulation_dtype(scores, memory)), table, fill=-torch.inf)  # [B, N]
    logits = scores / temperature
    # Without noise the scores are sorted, as rounding in the division could merge two of them.
    keys = scores.detach()
    if seed is not None:
        noise = gumbel_noise(seed, scores.shape[0], scores.shape[1], scores.device)
        logits = logits + noise
        keys = logits.detach()
    indices = _first_k(keys, k)
    selected, probabilities = _StraightThrough.apply(
        logits, memory, indices, table, relaxation, mask, return_probabilities
    )
    return selected, indices, probabilities


def _first_k(keys: Tensor, k: int) -> Tensor:
    """Columns in descending order, ties to the lowest, `[B, k]`; -1 where candidates run out."""
    ordered, columns = keys.sort(dim=1, descending=True, stable=True)
    taken = torch.where(ordered == -torch.inf, -1, columns)[:, :k]
    return torch.nn.functional.pad(taken, (0, k - taken.shape[1]), value=-1)


def _slot_probabilities(
    logits: Tensor, indices: Tensor, relaxation: str, mask: str
) -> Iterator[Tensor]:
    """p_j `[B, N]` of every slot in turn; all zeros for a slot without a candidate."""
    penalty = -torch.inf if mask == "exact" else _REFERENCE_MASK
    columns = torch.arange(logits.shape[1], device=logits.device)
    taken = torch.zeros_like(logits, dtype=torch.bool)
    for index in indices.unbind(1):
        slot = torch.where(taken, logits + penalty, logits)
        slot = slot.masked_fill(index[:, None] < 0, -torch.inf)
        if relaxation == "sparsemax":
            yield sparsemax_reference(slot)
        else:
            yield slot.softmax(-1).masked_fill(slot == -torch.inf, 0.0)
        taken = taken | (columns == index[:, None])


def _jacobian_product(probabilities: Tensor, vector: Tensor, relaxation: str) -> Tensor:
    """(∂p/∂z)ᵀ · vector for every row; both Jacobians are symmetric."""
    if relaxation == "softmax":
        return probabilities * (vector - (probabilities * vector).sum(-1, keepdim=True))
    support = probabilities > 0
    mean = (vector * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(support, vector - mean, 0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,  # [B, N]
        memory: Tensor,  # [B, N, ...] or, with a table, [ΣN, ...]
        indices: Tensor,  # [B, k]
        table: RowTable | None,
        relaxation: str,
        mask: str,
        return_probabilities: bool,
    ) -> tuple[Tensor, Tensor | None]:
        filled = indices >= 0
        trailing = memory.shape[2:] if table is None else memory.shape[1:]
        selected = memory.new_zeros(*indices.shape, *trailing)
        selected[filled] = memory[_taken_rows(indices, filled, table)]

        ctx.save_for_backward(logits, memory, indices)
        ctx.table, ctx.relaxation, ctx.mask = table, relaxation, mask
        probabilities = None
        if return_probabilities:
            slots = list(_slot_probabilities(logits, indices, relaxation, mask))
            probabilities = torch.stack(slots, dim=1)
        return selected, probabilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_selected: Tensor, grad_probabilities: Tensor | None) -> Any:
        logits, memory, indices = ctx.saved_tensors
        grad_logits = grad_memory = None
        if ctx.needs_input_grad[0]:
            # a_jl = ⟨G_j, memory_l⟩ (+ ∂L/∂p_jl where p was returned and used)
            weights = _inner_products(grad_selected, memory, ctx.table, logits.dtype)
            if grad_probabilities is not None:
                weights = weights + grad_probabilities
            grad_logits = torch.zeros_like(logits)
            slots = _slot_probabilities(logits, indices, ctx.relaxation, ctx.mask)
            for probabilities, weight in zip(slots, weights.unbind(1), strict=True):
                # What p leaves out stays out even where its memory is not finite.
                weight = weight.masked_fill(probabilities == 0, 0.0)
                grad_logits += _jacobian_product(probabilities, weight, ctx.relaxation)
        if ctx.needs_input_grad[1]:
            filled = indices >= 0
            grad_memory = memory.new_zeros(memory.shape)
            grad_memory[_taken_rows(indices, filled, ctx.table)] = grad_selected[filled]
        return grad_logits, grad_memory, None, None, None, None, None


def _taken_rows(indices: Tensor, filled: Tensor, table: RowTable | None) -> tuple[Tensor, ...]:
    """Index into memory of what the filled slots take, in slot order."""
    row, columns = filled.nonzero()[:, 0], indices[filled]
    return (row, columns) if table is None else (table.positions[row, columns],)


def _inner_products(
    grad: Tensor, memory: Tensor, table: RowTable | None, dtype: torch.dtype
) -> Tensor:
    """⟨grad_bj, memory_bl⟩ over all trailing dimensions, `[B, k, N]`."""
    grad = grad.flatten(2)
    memory = memory.flatten(2 if table is None else 1)
    rows = memory.shape[1] if table is None else table.positions.shape[1]
    products = grad.new_zeros(*grad.shape[:2], rows, dtype=dtype)
    with torch.autocast(grad.device.type, enabled=False):
        for columns in column_slices(grad.shape[2]):
            candidates = pad(memory[..., columns], table).to(dtype)  # [B, N, columns]
            products += grad[..., columns].to(dtype) @ candidates.mT
    return products
