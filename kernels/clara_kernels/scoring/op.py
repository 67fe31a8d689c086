"""The public `cosine_topk`, its checks and its registration with the dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..build import native
from ..checks import require_int, require_same_device, require_shape, require_tensor
from .reference import cosine_topk_reference

_NAME = "clara::cosine_topk"
_TYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def cosine_topk(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of a corpus with the highest cosine to each query, exactly.

    Scores are computed in float64 and rounded to float32 once. Equal scores are ordered by row,
    the lowest first. A zero vector scores 0; a score that is NaN, as NaN and infinite values give,
    comes after all others. Not differentiable: use `cosine_scores` for training.

    On the CPU this is the compiled module on `torch.get_num_threads()` threads, or PyTorch where
    the module was not built (see `build_info`); on every other device it is PyTorch.

    Args:
        queries: `[B, D]`, float32, float16 or bfloat16.
        corpus: `[N, D]`, one of the same dtypes, not necessarily the queries'. Rows may be apart
            (any row stride); where the columns are, the CPU makes a copy.
        k: at least 1. Where it exceeds N, all N rows are returned.

    Returns:
        Scores `[B, min(k, N)]`, float32, descending, and indices of rows, int64, of that shape.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype, or k no int.
        ValueError: shapes or devices that do not go together, or k below 1.
    """
    _require_rows("queries", queries)
    _require_rows("corpus", corpus)
    width = queries.shape[1]
    require_shape("corpus", corpus, "[N, {}], as queries have", corpus.shape[1] == width, width)
    require_same_device("corpus", corpus, "queries", queries)
    require_int("k", k, 1)
    return torch.ops.clara.cosine_topk(queries.detach(), corpus.detach(), k)


def _require_rows(name: str, value: Tensor) -> None:
    require_tensor(name, value)
    if value.dtype not in _TYPE_NAMES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {value.dtype}")
    require_shape(name, value, "[{}, D]", value.dim() == 2, "B" if name == "queries" else "N")


torch.library.define(
    _NAME,
    "(Tensor queries, Tensor corpus, SymInt k) -> (Tensor scores, Tensor indices)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_kernel(_NAME, None, cosine_topk_reference)


@torch.library.register_fake(_NAME)
def _fake(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], torch.sym_min(k, corpus.shape[0]))
    scores = queries.new_empty(shape, dtype=torch.float32)
    return scores, queries.new_empty(shape, dtype=torch.int64)


def _compiled(queries: Tensor, corpus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
    shape = (queries.shape[0], min(k, corpus.shape[0]))
    scores = torch.empty(shape, dtype=torch.float32)
    indices = torch.empty(shape, dtype=torch.int64)
    native.cosine_topk(
        _native_rows(queries),
        _native_rows(corpus),
        k,
        torch.get_num_threads(),
        scores.data_ptr(),
        indices.data_ptr(),
    )
    return scores, indices


def _with_adjacent_columns(rows: Tensor) -> Tensor:
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _native_rows(rows: Tensor) -> object:
    count, columns = rows.shape
    return native.Rows(rows.data_ptr(), _TYPE_NAMES[rows.dtype], count, columns, rows.stride(0))


if native is not None:
    torch.library.register_kernel(_NAME, "cpu", _compiled)
