"""Cosine scores on the CPU: blocks of documents that fit its cache, each read from memory once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ..ragged import accumulation_dtype
from ..slices import row_slices, rows_within, slices
from .norms import inverse_root, is_ordinary
from .reference import alive, question_of_rows, row_scores
from .reference import backward as backward_reference

_BLOCK = 2**19  # values


def _dense_blocks(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Questions and documents of blocks of `[B, N, D]`: whole questions, or a part of one."""
    questions, count, width = shape
    rows = rows_within(_BLOCK, width)
    return product(slices(questions, rows_within(rows, count)), slices(count, rows))


def forward(
    queries: Tensor, documents: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.forward`."""
    dtype = accumulation_dtype(queries, documents)
    queries = queries.to(dtype)
    query_norms = torch.linalg.vector_norm(queries, dim=-1)
    query_inverse = _inverse(query_norms)
    dots = queries.new_empty(documents.shape[:-1])
    norms = torch.empty_like(dots)
    if offsets is None:
        for block in _dense_blocks(documents.shape):
            document = documents[block].to(dtype)  # [b, n, D]
            dots[block] = torch.bmm(document, queries[block[0], :, None])[..., 0]
            norms[block] = torch.linalg.vector_norm(document, dim=-1)
        question = torch.arange(len(queries))[:, None]
    else:
        question = question_of_rows(queries, documents, offsets)
        for rows in row_slices(len(documents), documents.shape[1], _BLOCK):
            document = documents[rows].to(dtype)  # [n, D]
            dots[rows] = queries[question[rows]].mul_(document).sum(-1)
            norms[rows] = torch.linalg.vector_norm(document, dim=-1)
    inverse = _inverse(norms)
    scores = dots * query_inverse[question] * inverse
    if not bool(is_ordinary(norms).all()) or not bool(is_ordinary(query_norms).all()):
        rest = ~(is_ordinary(norms) & is_ordinary(query_norms)[question])
        own = question.expand(rest.shape)[rest]
        scores[rest], query_inverse, inverse[rest] = row_scores(queries, documents[rest], own)
    return scores, query_inverse, inverse


def _inverse(norms: Tensor) -> Tensor:
    return inverse_root(norms.square())


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
    """As `reference.backward`, which also computes it for norms that are not ordinary."""
    if bool((query_inverse < 0).any()) or bool((document_inverse < 0).any()):
        inverses = (query_inverse, document_inverse)
        needs = (need_queries, need_documents)
        return backward_reference(grad, queries, documents, offsets, scores, *inverses, *needs)
    dtype = scores.dtype
    unit = queries.to(dtype) * query_inverse[:, None]  # [B, D]
    total = torch.zeros_like(unit) if need_queries else unit
    grad_documents = documents.new_empty(documents.shape if need_documents else 0)
    if offsets is None:
        grad = alive(grad, query_inverse[:, None], document_inverse)
        weight, along = grad * document_inverse, (grad * scores).sum(-1)
        for block in _dense_blocks(documents.shape):
            document = documents[block].to(dtype)  # [b, n, D]
            if need_queries:
                total[block[0]] += torch.bmm(weight[block][:, None], document)[:, 0]
            if need_documents:
                scale = scores[block] * document_inverse[block]
                out = unit[block[0], None] - scale[..., None] * document
                grad_documents[block] = out.mul_(weight[block][..., None])
    else:
        question = question_of_rows(queries, documents, offsets)
        grad = alive(grad, query_inverse[question], document_inverse)
        weight = grad * document_inverse
        along = torch.zeros_like(query_inverse).index_add_(0, question, grad * scores)
        for rows in row_slices(len(documents), documents.shape[1], _BLOCK):
            document = documents[rows].to(dtype)  # [n, D]
            if need_queries:
                total.index_add_(0, question[rows], weight[rows, None] * document)
            if need_documents:
                scale = scores[rows] * document_inverse[rows]
                out = unit[question[rows]].sub_(scale[:, None] * document)
                grad_documents[rows] = out.mul_(weight[rows, None])
    if not need_queries:
        return queries.new_empty(0), grad_documents
    grad_queries = (total - along[:, None] * unit) * query_inverse[:, None]
    return grad_queries.to(queries.dtype), grad_documents
