"""Cosine of each query with its own candidates: s = ⟨q, d⟩ / (|q| |d|)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from ..slices import column_slices
from .norms import inverse_root, keep, parts, power_of_two


def cosine_scores_reference(
    queries: Tensor, documents: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """See `clara_kernels.cosine_scores`. Differentiable by autograd, with copies of everything."""
    dtype = accumulation_dtype(queries, documents)
    units = [_unit(x.to(dtype)) for x in (queries, documents.flatten(0, -2))]
    question = question_of_rows(queries, documents, offsets)
    return (units[0][question] * units[1]).sum(-1).view(documents.shape[:-1])


def _unit(x: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays so."""
    x = x * scale_of(x.detach(), x.dtype)[:, None]
    return x * inverse_root(x.square().sum(-1))[:, None]


def scale_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A power of two for each row of `[R, D]`, see `power_of_two`."""
    largest = x.new_zeros(x.shape[0], dtype=dtype)
    for columns in column_slices(x.shape[1]):
        largest = largest.maximum(x[:, columns].abs().amax(-1).to(dtype))
    return power_of_two(largest)


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
    """What the operator computes: scores `[B, N]` or `[ΣN]`, and what is kept of the norms.

    That is 1/|q| `[B]` and 1/|d| like the scores, in the form that `norms.keep` describes.
    """
    question = question_of_rows(queries, documents, offsets)
    scores, query_inverse, inverse = row_scores(queries, documents.flatten(0, -2), question)
    shape = documents.shape[:-1]
    return scores.view(shape), query_inverse, inverse.view(shape)


def row_scores(queries: Tensor, rows: Tensor, question: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `forward`, of documents `[R, D]` and the query that each belongs to, int64 `[R]`."""
    dtype = accumulation_dtype(queries, rows)
    query_scale, scale = scale_of(queries, dtype), scale_of(rows, dtype)
    dots = rows.new_zeros(rows.shape[0], dtype=dtype)
    squares, query_squares = torch.zeros_like(dots), queries.new_zeros(len(queries), dtype=dtype)
    for columns in column_slices(queries.shape[1]):
        query = queries[:, columns].to(dtype) * query_scale[:, None]
        document = rows[:, columns].to(dtype) * scale[:, None]
        dots += (query[question] * document).sum(-1)
        squares += document.square().sum(-1)
        query_squares += query.square().sum(-1)
    query_inverse, inverse = inverse_root(query_squares), inverse_root(squares)
    scores = dots * query_inverse[question] * inverse
    return scores, keep(query_inverse, query_scale), keep(inverse, scale)


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
    score = scores.flatten()[:, None]
    shift, inverse = (x[:, None] for x in parts(document_inverse.flatten()))
    query_shift, query_inverse = (x[:, None] for x in parts(query_inverse))
    along = torch.zeros_like(query_inverse[:, 0]).index_add(0, question, grad * score[:, 0])
    grad = grad[:, None]
    grad_queries = queries.new_empty(queries.shape if need_queries else 0)
    grad_documents = rows.new_empty(rows.shape if need_documents else 0)
    for columns in column_slices(queries.shape[1]):
        query = queries[:, columns].to(score.dtype) * query_shift * query_inverse
        document = rows[:, columns].to(score.dtype) * shift * inverse
        if need_queries:
            total = torch.zeros_like(query).index_add(0, question, grad * document)
            grad_query = (total - along[:, None] * query) * query_inverse * query_shift
            grad_queries[:, columns] = grad_query
        if need_documents:
            grad_document = grad * inverse * (query[question] - score * document) * shift
            grad_documents[:, columns] = grad_document
    return grad_queries, grad_documents.view(documents.shape) if need_documents else grad_documents


def alive(grad: Tensor, query_inverse: Tensor, document_inverse: Tensor) -> Tensor:
    """The gradient of the scores, 0 where one of the vectors counts as zero."""
    return torch.where((query_inverse.abs() > 0) & (document_inverse.abs() > 0), grad, 0.0)
