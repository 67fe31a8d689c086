"""Straight-through top-k: hard selection forward, relaxed selection backward.

With z = s/τ (+ Gumbel noise), slot j takes the j-th highest z, and p_j is the softmax or
sparsemax of z over the candidates that earlier slots left. The operator is

    Z = Zhard + Zsoft - stopgrad(Zsoft),    selected_j = Σ_i Z_ji · memory_i

with memory differentiated through Zhard alone. Its value is the gathered document, bit for bit,
so it is computed as a gather and only the backward pass ever sees p.

Shapes, here and in the kernels: `scores` `[B, N]`, or `[ΣN]` with offsets, float32 or float64;
`memory` `[R, D]` with R = B·N or ΣN; `indices` `[B, k]`, columns within a question; p `[k, R]`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ragged import RowTable, pad, row_table, unpad
from ..slices import column_slices
from ..sparsemax.reference import sparsemax_reference
from .noise import gumbel_noise
from .options import Options


def forward(
    scores: Tensor,
    memory: Tensor,
    offsets: Tensor | None,
    k: int,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """What the operator computes: selected memory `[B, k, D]`, and indices, -1 for none."""
    table = _table(scores, offsets)
    # Without noise the scores are sorted, as rounding in the division could merge two of them.
    keys = _grid(scores, table)
    if options.seed is not None:
        keys = _logits(keys, options)
    indices = _first_k(keys, k)
    filled = indices >= 0
    selected = memory.index_select(0, _taken_rows(indices, filled, table))
    if len(selected) < indices.numel():
        taken, selected = selected, memory.new_zeros(*indices.shape, memory.shape[1])
        selected[filled] = taken
    return selected.view(*indices.shape, memory.shape[1]), indices


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
    """Gradients of scores and memory; one that is not needed is an empty tensor."""
    grad_scores, grad_memory = scores.new_empty(0), memory.new_empty(0)
    table = _table(scores, offsets)
    if need_scores:
        # a_jl = ⟨G_j, memory_l⟩
        if offsets is None:
            weights = _inner_products(grad, memory.unflatten(0, scores.shape), None, scores.dtype)
        else:
            weights = _inner_products(grad, memory, table, scores.dtype)
        grad_scores = _grad_scores(weights, scores, indices, table, options)
    if need_memory:
        grad_memory = torch.zeros_like(memory)
        add_taken(grad_memory, grad, indices, offsets)
    return grad_scores, grad_memory


def add_taken(total: Tensor, grad: Tensor, indices: Tensor, offsets: Tensor | None) -> None:
    """Add gradients of slots `[B, k, D]` to the rows of `total` `[R, D]` that they took."""
    filled = indices >= 0
    questions = indices.shape[0]
    if offsets is None:
        count = total.shape[0] // max(questions, 1)
        first = torch.arange(questions, device=total.device) * count
    else:
        first = offsets[:-1]
    rows = (first[:, None] + indices)[filled]
    total[rows] += grad[filled]


def probabilities(
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    options: Options,
) -> Tensor:
    """p_j of every slot; all zeros for a slot without a candidate."""
    table = _table(scores, offsets)
    logits = _logits(_grid(scores, table), options)
    slots = _slot_probabilities(logits, indices, options)
    return torch.stack([slot[table.present] for slot in slots])


def probabilities_backward(
    grad: Tensor,
    scores: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    options: Options,
) -> Tensor:
    """Gradient of the scores, given that of p."""
    table = _table(scores, offsets)
    weights = pad(grad.mT, table).mT  # [B, k, N]
    return _grad_scores(weights, scores, indices, table, options)


def _table(scores: Tensor, offsets: Tensor | None) -> RowTable:
    if offsets is not None:
        return row_table(offsets)
    positions = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
    return RowTable(positions, torch.ones_like(positions, dtype=torch.bool))


def _grid(scores: Tensor, table: RowTable) -> Tensor:
    """Scores as `[B, N]`, -inf where a question has fewer than N candidates."""
    return pad(scores.flatten(), table, fill=-torch.inf)


def _logits(scores: Tensor, options: Options) -> Tensor:
    logits = scores / options.temperature
    if options.seed is None:
        return logits
    rows, columns = scores.shape
    return logits + gumbel_noise(options.seed, rows, columns, scores.device)


def _first_k(keys: Tensor, k: int) -> Tensor:
    """Columns in descending order, ties to the lowest, `[B, k]`; -1 where candidates run out."""
    ordered, columns = keys.sort(dim=1, descending=True, stable=True)
    taken = torch.where(ordered == -torch.inf, -1, columns)[:, :k]
    return torch.nn.functional.pad(taken, (0, k - taken.shape[1]), value=-1)


def _taken_rows(indices: Tensor, filled: Tensor, table: RowTable) -> Tensor:
    """Rows of memory that the filled slots take, in slot order."""
    return table.positions[filled.nonzero()[:, 0], indices[filled]]


def _slot_probabilities(logits: Tensor, indices: Tensor, options: Options) -> Iterator[Tensor]:
    """p_j `[B, N]` of every slot in turn."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    taken = torch.zeros_like(logits, dtype=torch.bool)
    for index in indices.unbind(1):
        slot = torch.where(taken, logits + options.penalty, logits)
        slot = slot.masked_fill(index[:, None] < 0, -torch.inf)
        if options.sparse:
            yield sparsemax_reference(slot)
        else:
            yield slot.softmax(-1).masked_fill(slot == -torch.inf, 0.0)
        taken = taken | (columns == index[:, None])


def _grad_scores(
    weights: Tensor,  # ∂L/∂p, [B, k, N]
    scores: Tensor,
    indices: Tensor,
    table: RowTable,
    options: Options,
) -> Tensor:
    """Σ_j (∂p_j/∂z)ᵀ weights_j / τ; both Jacobians are symmetric."""
    logits = _logits(_grid(scores, table), options)
    total = torch.zeros_like(logits)
    slots = _slot_probabilities(logits, indices, options)
    for p, weight in zip(slots, weights.unbind(1), strict=True):
        # What p leaves out stays out even where its memory is not finite.
        weight = weight.masked_fill(p == 0, 0.0)
        share = (p > 0).to(p.dtype) if options.sparse else p
        mean = (weight * share).sum(-1, keepdim=True)
        if options.sparse:
            mean = mean / share.sum(-1, keepdim=True).clamp(min=1)
        total += share * (weight - mean)
    return unpad(total / options.temperature, table).view(scores.shape)


def _inner_products(
    grad: Tensor, memory: Tensor, table: RowTable | None, dtype: torch.dtype
) -> Tensor:
    """⟨grad_bj, memory_bl⟩, `[B, k, N]`; memory is `[B, N, D]`, or `[ΣN, D]` with a table."""
    count = memory.shape[1] if table is None else table.positions.shape[1]
    products = grad.new_zeros(*grad.shape[:2], count, dtype=dtype)
    for columns in column_slices(grad.shape[2]):
        candidates = pad(memory[..., columns], table).to(dtype)  # [B, N, columns]
        products += grad[..., columns].to(dtype) @ candidates.mT
    return products
