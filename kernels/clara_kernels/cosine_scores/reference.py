"""Cosine of each query with its own candidates: s = ⟨q, d⟩ / (|q| |d|)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype, column_slices


def cosine_scores_reference(
    queries: Tensor, documents: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """See `clara_kernels.cosine_scores`. Differentiable by autograd, with copies of everything."""
    dtype = accumulation_dtype(queries, documents)
    units = [
        x * inverse_norm(x.square().sum(-1))[..., None]
        for x in (queries.to(dtype), documents.flatten(0, -2).to(dtype))
    ]
    question = question_of_rows(queries, documents, offsets)
    return (units[0][question] * units[1]).sum(-1).view(documents.shape[:-1])


def inverse_norm(squares: Tensor) -> Tensor:
    """1/√squares, and 0 for what counts as a zero vector: its scores and gradients are then 0."""
    tiny = squares < torch.finfo(squares.dtype).tiny
    return torch.where(tiny, 0.0, torch.where(tiny, 1.0, squares).rsqrt())


def question_of_rows(queries: Tensor, documents: Tensor, offsets: Tensor | None) -> Tensor:
    """Which query each document belongs to, int64 `[ΣN]`, without reading anything on the host."""
    count, device = queries.shape[0], queries.device
    if offsets is None:
        questions = torch.arange(count, device=device)[:, None]
        return questions.expand(documents.shape[:2]).reshape(-1)
    rows = torch.arange(documents.shape[0], dtype=offsets.dtype, device=device)
    return torch.searchsorted(offsets[1:].contiguous(), rows, right=True).clamp(max=count - 1)


def forward(
    queries: Tensor, documents: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the operator computes: scores `[B, N]` or `[ΣN]`, 1/|q| `[B]`, 1/|d| like the scores."""
    dtype = accumulation_dtype(queries, documents)
    question = question_of_rows(queries, documents, offsets)
    rows = documents.flatten(0, -2)
    dots = rows.new_zeros(rows.shape[0], dtype=dtype)
    squares, query_squares = torch.zeros_like(dots), queries.new_zeros(len(queries), dtype=dtype)
    for columns in column_slices(queries.shape[1]):
        query = queries[:, columns].to(dtype)
        document = rows[:, columns].to(dtype)
        dots += (query[question] * document).sum(-1)
        squares += document.square().sum(-1)
        query_squares += query.square().sum(-1)
    query_inverse, inverse = inverse_norm(query_squares), inverse_norm(squares)
    shape = documents.shape[:-1]
    scores = dots * query_inverse[question] * inverse
    return scores.view(shape), query_inverse, inverse.view(shape)


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
    """∂s/∂q = (d̂ - s q̂) / |q| and ∂s/∂d = (q̂ - s d̂) / |d|, with hats for unit vectors.

    A gradient that is not needed is an empty tensor.
    """
    question = question_of_rows(queries, documents, offsets)
    rows = documents.flatten(0, -2)
    grad = alive(grad.flatten(), query_inverse[question], document_inverse.flatten())
    score, inverse = scores.flatten()[:, None], document_inverse.flatten()[:, None]
    along = torch.zeros_like(query_inverse).index_add(0, question, grad * score[:, 0])
    grad = grad[:, None]
    grad_queries = queries.new_empty(queries.shape if need_queries else 0)
    grad_documents = rows.new_empty(rows.shape if need_documents else 0)
    for columns in column_slices(queries.shape[1]):
        query = queries[:, columns].to(score.dtype) * query_inverse[:, None]
        document = rows[:, columns].to(score.dtype) * inverse
        if need_queries:
            total = torch.zeros_like(query).index_add(0, question, grad * document)
            grad_queries[:, columns] = (total - along[:, None] * query) * query_inverse[:, None]
        if need_documents:
            grad_documents[:, columns] = grad * inverse * (query[question] - score * document)
    return grad_queries, grad_documents.view(documents.shape) if need_documents else grad_documents


def alive(grad: Tensor, query_inverse: Tensor, document_inverse: Tensor) -> Tensor:
    """The gradient of the scores, 0 where one of the vectors counts as zero."""
    return torch.where((query_inverse > 0) & (document_inverse > 0), grad, 0.0)
