"""The public `cosine_topk` and `cosine_rerank`, and their registration with the dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    require_same_device,
    require_shape,
    require_tensor,
)
from . import compiled, reference
from .checks import (
    CORPUS_DTYPES,
    checked_k,
    require_candidate_offsets,
    require_mask,
    require_queries,
)
from .rows import CorpusRows


def _checked_k(k: Any, rows: int | None = None) -> int:
    """`checked_k`, but for a function that is being compiled, whose k may change between calls.

    torch.compile takes a size that is compared with a bound for a constant.
    """
    return k if torch.compiler.is_compiling() else checked_k(k, rows)


def cosine_topk(
    queries: Tensor, corpus: Tensor | CorpusRows, k: int, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of a corpus with the highest cosine to each query, exactly.

    The search scores every row. Rows are ordered by their float32 scores; equal scores by the
    lowest row. A zero vector scores 0. NaN and infinite values give a NaN score, which comes after
    all others. The result of a query does not depend on the number of threads, on where a row
    lies, or on the other queries (on a GPU, only on whether there are more than 8). Not
    differentiable: use `cosine_scores` for training.

    Products are summed in float32, in an order that depends only on D. A score is within
    (D/512 + 528) · 2⁻²⁴ of the cosine; for random data it mostly is within 2⁻²². For an int8 corpus
    queries are rounded to 16 bits, max |q| / 32639 a step, which adds √D · max |q| / (65278 |q|).

    On the CPU the compiled module computes this on `torch.get_num_threads()` threads, on an NVIDIA
    GPU its CUDA kernels do. Where they were not built (see `build_info`), PyTorch does, in float64.

    Args:
        queries: `[B, D]`, float32, float16 or bfloat16.
        corpus: `[N, D]`, float32, float16, bfloat16 or int8, not necessarily the queries' dtype;
            rows may be any stride apart; columns that are not adjacent are copied. int8 codes need
            no scales: a positive scale changes no cosine. A `Corpus` stores the norms, which are
            otherwise computed in every call.
        k: 1 to 2,048; a larger k is accepted if N is at most 2,048, and returns all rows.
        mask: bool `[N]`; only rows where it is True are found.

    Returns:
        Scores `[B, min(k, N)]`, float32, descending, and indices of rows, int64, of that shape.
        If the mask allows fewer rows, the rest is -inf and -1.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype, or k is not an int.
        ValueError: shapes or devices do not match, or k is out of range.

    Examples:
        >>> import torch
        >>> from clara_kernels import cosine_topk
        >>> corpus = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
        >>> scores, rows = cosine_topk(torch.tensor([[0.0, 1.0]]), corpus, 2)
        >>> rows
        tensor([[2, 1]])
        >>> scores.round(decimals=3)
        tensor([[1.0000, 0.7070]])
    """
    rows, inverse_norms = _corpus_rows(queries, corpus)
    k = _checked_k(k, rows.shape[0])
    if mask is not None:
        require_mask(mask, rows.shape[0], rows)
    return torch.ops.clara.cosine_topk(queries.detach(), rows, inverse_norms, mask, k)


def cosine_rerank(
    queries: Tensor,
    corpus: Tensor | CorpusRows,
    k: int,
    *,
    offsets: Tensor,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k best of each query's own candidates by cosine, exactly.

    Scores and their order are those of `cosine_topk`. Each query has its own list of rows, of any
    length.

    Args:
        queries: `[B, D]`, float32, float16 or bfloat16.
        corpus: `[N, D]` as for `cosine_topk`, or a `Corpus`.
        k: 1 to 2,048.
        offsets: int32 `[B + 1]`; the candidates of query i are entries `offsets[i]` to
            `offsets[i + 1]` of `rows`. Values are checked on the CPU only.
        rows: int64 `[C]`, rows of the corpus; a number outside of it is not a candidate. None means
            0 … N - 1: the corpus then holds the candidates of one query after another.

    Returns:
        Scores `[B, k]`, float32, descending, and rows of the corpus, int64, of that shape. If a
        query has fewer candidates, the rest is -inf and -1.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype, or k is not an int.
        ValueError: shapes, offsets or devices do not match, or k is out of range.

    Examples:
        >>> import torch
        >>> from clara_kernels import cosine_rerank
        >>> corpus = torch.eye(4)
        >>> candidates = torch.tensor([0, 3, 1, 2])  # 0 and 3 of the first query
        >>> offsets = torch.tensor([0, 2, 4], dtype=torch.int32)
        >>> queries = corpus[[3, 1]]
        >>> scores, rows = cosine_rerank(queries, corpus, 1, offsets=offsets, rows=candidates)
        >>> rows.flatten().tolist()
        [3, 1]
    """
    candidates, inverse_norms = _corpus_rows(queries, corpus)
    k = _checked_k(k)
    if rows is not None:
        require_tensor("rows", rows)
        if rows.dtype != torch.int64:
            raise TypeError(f"rows must be int64, got {rows.dtype}")
        require_shape("rows", rows, "[C]", rows.dim() == 1)
        require_same_device("rows", rows, "queries", queries)
        rows = rows.contiguous()
    require_candidate_offsets(offsets, rows, queries, candidates)
    return torch.ops.clara.cosine_rerank(
        queries.detach(), candidates, inverse_norms, rows, offsets.contiguous(), k
    )


def _corpus_rows(queries: Any, corpus: Any) -> tuple[Tensor, Tensor | None]:
    """Rows and their inverse norms, if known, after all checks of both arguments."""
    require_queries(queries)
    inverse_norms = None
    if isinstance(corpus, CorpusRows):
        corpus, inverse_norms = corpus.rows, corpus.inverse_norms
    require_tensor("corpus", corpus)
    if corpus.dtype not in CORPUS_DTYPES:
        raise TypeError(f"corpus must be float32, float16, bfloat16 or int8, got {corpus.dtype}")
    width = queries.shape[1]
    matches = corpus.dim() == 2 and corpus.shape[1] == width
    require_shape("corpus", corpus, "[N, {}], as queries have", matches, width)
    require_same_device("corpus", corpus, "queries", queries)
    return corpus.detach(), inverse_norms


def _define(name: str, schema: str, fake: Any, reference: Any, cpu: Any, cuda: Any) -> None:
    full = f"clara::{name}"
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(full, fake)
    torch.library.register_kernel(full, None, reference)
    if cpu is not None:
        torch.library.register_kernel(full, "cpu", cpu)
    if cuda is not None:
        torch.library.register_kernel(full, "cuda", cuda)


def _fake_inverse_norms(corpus: Tensor) -> Tensor:
    return corpus.new_empty(corpus.shape[0], dtype=torch.float32)


def _fake_topk(
    queries: Tensor, corpus: Tensor, inverse_norms: Tensor | None, mask: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    return _fake_found(queries, torch.sym_min(k, corpus.shape[0]))


def _fake_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    return _fake_found(queries, k)


def _fake_found(queries: Tensor, width: Any) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty((queries.shape[0], width), dtype=torch.float32)
    return scores, torch.empty_like(scores, dtype=torch.int64)


_define(
    "inverse_norms",
    "(Tensor corpus) -> Tensor",
    _fake_inverse_norms,
    reference.inverse_norms,
    compiled.cpu_implementation("inverse_norms"),
    compiled.cuda_implementation("inverse_norms"),
)
_define(
    "cosine_topk",
    "(Tensor queries, Tensor corpus, Tensor? inverse_norms, Tensor? mask, SymInt k) "
    "-> (Tensor scores, Tensor indices)",
    _fake_topk,
    reference.cosine_topk,
    compiled.cpu_implementation("cosine_topk"),
    compiled.cuda_implementation("cosine_topk"),
)
_define(
    "cosine_rerank",
    "(Tensor queries, Tensor corpus, Tensor? inverse_norms, Tensor? rows, Tensor offsets, "
    "SymInt k) -> (Tensor scores, Tensor indices)",
    _fake_rerank,
    reference.cosine_rerank,
    compiled.cpu_implementation("cosine_rerank"),
    compiled.cuda_implementation("cosine_rerank"),
)
