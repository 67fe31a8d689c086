"""The public `cosine_scores` and its registration with the dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    refuse_transforms,
    require_floating,
    require_offsets,
    require_same_device,
    require_shape,
)
from ..dispatch import declare, register_gradient
from ..ragged import accumulation_dtype
from . import cpu, reference


def cosine_scores(queries: Tensor, documents: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Cosine similarity between each query and its own candidate documents.

    Memory `[m, H]` is compared as one flat vector of `D = m * H`. A zero vector scores 0 and
    takes no gradient. Vectors of any other length work, even if its square overflows float32.

    Args:
        queries: `[B, D]`, any floating-point dtype.
        documents: `[B, N, D]`, or `[ΣN, D]` with `offsets` where queries have unequal numbers of
            candidates. The dtype may differ from the queries'.
        offsets: int32 `[B + 1]`; the candidates of query `i` are rows `offsets[i]` to
            `offsets[i + 1]`. A query may have none. Checked on the CPU only, because a check on
            a GPU would wait for it; there, rows of no query or of several queries get undefined
            scores.

    Returns:
        Scores, `[B, N]` or `[ΣN]`, float32 (float64 if an input is), also under autocast.
        Computed and accumulated in that dtype. Differentiable once in `queries` and `documents`.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype.
        ValueError: shapes, offsets or devices do not match.

    Examples:
        >>> import torch
        >>> from clara_kernels import cosine_scores
        >>> queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> documents = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])  # three candidates
        >>> scores = cosine_scores(queries, documents)
        >>> scores.detach()
        tensor([[ 1.,  0., -1.]])
        >>> scores[0, 1].backward()
        >>> queries.grad
        tensor([[0., 1.]])
    """
    refuse_transforms("cosine_scores", queries, documents)
    require_floating("queries", queries)
    require_floating("documents", documents)
    require_shape("queries", queries, "[B, D]", queries.dim() == 2)
    require_same_device("documents", documents, "queries", queries)
    count, width = queries.shape
    if offsets is None:
        layout = "[{}, N, {}] (or [ΣN, {}] with offsets)"
        matches = documents.dim() == 3 and documents.shape[0] == count
        matches = matches and documents.shape[2] == width
        require_shape("documents", documents, layout, matches, count, width, width)
    else:
        matches = documents.dim() == 2 and documents.shape[1] == width
        require_shape("documents", documents, "[ΣN, {}] with offsets", matches, width)
        require_offsets("offsets", offsets, documents.shape[0], "documents")
        require_shape("offsets", offsets, "[{}]", offsets.numel() == count + 1, count + 1)
        require_same_device("offsets", offsets, "queries", queries)
    return torch.ops.clara.cosine_scores(queries, documents, offsets)[0]


def _fake(
    queries: Tensor, documents: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, shape = accumulation_dtype(queries, documents), documents.shape[:-1]
    return (
        documents.new_empty(shape, dtype=dtype),
        queries.new_empty(queries.shape[0], dtype=dtype),
        documents.new_empty(shape, dtype=dtype),
    )


def _fake_backward(
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
    return (
        queries.new_empty(queries.shape if need_queries else 0),
        documents.new_empty(documents.shape if need_documents else 0),
    )


declare(
    "cosine_scores",
    "(Tensor queries, Tensor documents, Tensor? offsets) "
    "-> (Tensor scores, Tensor query_inverse, Tensor document_inverse)",
    fake=_fake,
    reference=reference.forward,
    cpu=cpu.forward,
    triton="cosine_scores.triton:forward",
)
declare(
    "cosine_scores_backward",
    "(Tensor grad, Tensor queries, Tensor documents, Tensor? offsets, Tensor scores, "
    "Tensor query_inverse, Tensor document_inverse, bool need_queries, bool need_documents) "
    "-> (Tensor grad_queries, Tensor grad_documents)",
    fake=_fake_backward,
    reference=reference.backward,
    cpu=cpu.backward,
    triton="cosine_scores.triton:backward",
)
register_gradient("cosine_scores", lambda given, output: (*given, *output), gradients=2, asks=True)
