"""The public `cosine_scores`."""

from __future__ import annotations

from torch import Tensor

from ..checks import require_floating, require_offsets, require_same_device, require_shape
from .reference import cosine_scores_reference


def cosine_scores(queries: Tensor, documents: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Cosine similarity between each query and its own candidate documents.

    Memory `[m, H]` is compared as one flat vector of `D = m * H`. A zero vector scores 0 and
    takes no gradient; so does one so small that its float32 squared norm is 0.

    Args:
        queries: `[B, D]`, any floating-point dtype.
        documents: `[B, N, D]`, or `[ΣN, D]` with `offsets` where queries have unequal numbers of
            candidates. The dtype may differ from the queries'.
        offsets: int32 `[B + 1]`; the candidates of query `i` are rows `offsets[i]` to
            `offsets[i + 1]`. A query may have none. The values are read on the host.

    Returns:
        Scores, `[B, N]` or `[ΣN]`, float32 (float64 if an input is). Computed and accumulated in
        that dtype. Differentiable once in `queries` and `documents`.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype.
        ValueError: shapes, offsets or devices that do not go together.
    """
    require_floating("queries", queries)
    require_floating("documents", documents)
    require_shape("queries", queries, "[B, D]", queries.dim() == 2)
    require_same_device("documents", documents, "queries", queries)
    count, width = queries.shape
    if offsets is None:
        layout = f"[{count}, N, {width}] (or [ΣN, {width}] with offsets)"
        matches = documents.dim() == 3 and documents.shape[0] == count
        require_shape("documents", documents, layout, matches and documents.shape[2] == width)
        return cosine_scores_reference(queries, documents)
    layout = f"[ΣN, {width}] with offsets"
    matches = documents.dim() == 2 and documents.shape[1] == width
    require_shape("documents", documents, layout, matches)
    require_offsets("offsets", offsets, documents.shape[0], "documents")
    require_shape("offsets", offsets, f"[{count + 1}]", offsets.numel() == count + 1)
    require_same_device("offsets", offsets, "queries", queries)
    return cosine_scores_reference(queries, documents, offsets)
