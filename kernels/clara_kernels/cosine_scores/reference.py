"""Cosine of each query with its own candidates: s = ⟨q, d⟩ / (|q| |d|).

An explicit backward, because autograd would keep a float32 copy of every document for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ragged import RowTable, accumulation_dtype, column_slices, pad, row_table, unpad


def cosine_scores_reference(
    queries: Tensor, documents: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """See `clara_kernels.cosine_scores`."""
    table = None if offsets is None else row_table(offsets)
    return _CosineScores.apply(queries, documents, table)


def _inverse_norm(squares: Tensor) -> Tensor:
    """1/√squares, and 0 for a zero vector: its scores and gradients are then 0."""
    return torch.where(squares > 0, squares.rsqrt(), 0.0)


class _CosineScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, table: RowTable | None) -> Tensor:
        dtype = accumulation_dtype(queries, documents)
        rows = documents.shape[:2] if table is None else table.positions.shape
        dots = queries.new_zeros(rows, dtype=dtype)  # [B, N]
        squares = torch.zeros_like(dots)
        query_squares = queries.new_zeros(queries.shape[0], 1, dtype=dtype)
        for columns in column_slices(queries.shape[1]):
            query = queries[:, None, columns].to(dtype)  # [B, 1, columns]
            document = pad(documents[..., columns], table).to(dtype)  # [B, N, columns]
            dots += (query * document).sum(-1)
            squares += document.square().sum(-1)
            query_squares += query.square().sum(-1)
        inverse, query_inverse = _inverse_norm(squares), _inverse_norm(query_squares)
        scores = dots * query_inverse * inverse
        ctx.save_for_backward(queries, documents, scores, query_inverse, inverse)
        ctx.table = table
        return unpad(scores, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """∂s/∂q = (d̂ - s q̂) / |q| and ∂s/∂d = (q̂ - s d̂) / |d|, with hats for unit vectors."""
        queries, documents, scores, query_inverse, inverse = ctx.saved_tensors
        table, dtype = ctx.table, scores.dtype
        grad = pad(grad_scores, table)[..., None]  # [B, N, 1]
        scores, inverse = scores[..., None], inverse[..., None]  # [B, N, 1]
        query_inverse = query_inverse[..., None]  # [B, 1, 1]
        alive = (query_inverse > 0) & (inverse > 0)
        grad = torch.where(alive, grad, 0.0)

        grad_queries = torch.empty_like(queries) if ctx.needs_input_grad[0] else None
        grad_documents = torch.empty_like(documents) if ctx.needs_input_grad[1] else None
        for columns in column_slices(queries.shape[1]):
            query = queries[:, None, columns].to(dtype) * query_inverse  # [B, 1, columns]
            document = pad(documents[..., columns], table).to(dtype) * inverse  # [B, N, columns]
            if grad_queries is not None:
                along = (grad * (document - scores * query)).sum(1, keepdim=True)
                grad_queries[:, columns] = (along * query_inverse)[:, 0]
            if grad_documents is not None:
                along = grad * (query - scores * document) * inverse
                grad_documents[..., columns] = unpad(along, table)
        return grad_queries, grad_documents, None
