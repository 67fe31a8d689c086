"""The operators by the compiled module `clara_kernels._C`, which knows addresses, not tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..build import native
from ..checks import require_offsets, require_same_device, require_shape

MOST_FOUND = 2048
_TYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}


def cpu_implementation(name: str) -> Callable[..., Any] | None:
    """What computes an operator on CPU tensors; None where nothing was compiled."""
    return None if native is None else _ON_CPU[name]


def cuda_implementation(name: str) -> Callable[..., Any] | None:
    """The same on CUDA tensors; None where that was compiled without CUDA."""
    return _ON_CUDA[name] if hasattr(native, f"cuda_{name}") else None


def _cpu_inverse_norms(corpus: Tensor) -> Tensor:
    corpus = _with_adjacent_columns(corpus)
    found = torch.empty(corpus.shape[0], dtype=torch.float32)
    native.inverse_norms(_rows(corpus), torch.get_num_threads(), found.data_ptr())
    return found


def _cpu_cosine_topk(
    queries: Tensor, corpus: Tensor, inverse_norms: Tensor | None, mask: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
    scores, indices = _results(queries, min(k, corpus.shape[0]))
    inverse_norms = _of_rows("inverse_norms", inverse_norms, torch.float32, corpus)
    mask = _of_rows("mask", mask, torch.bool, corpus)
    native.cosine_topk(
        _rows(queries),
        _rows(corpus),
        _address(inverse_norms),
        _address(mask),
        k,
        torch.get_num_threads(),
        scores.data_ptr(),
        indices.data_ptr(),
    )
    return scores, indices


def _cpu_cosine_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
    scores, indices = _results(queries, k)
    inverse_norms = _of_rows("inverse_norms", inverse_norms, torch.float32, corpus)
    rows, offsets = _candidates(rows, offsets, queries, corpus)
    native.cosine_rerank(
        _rows(queries),
        _rows(corpus),
        _address(inverse_norms),
        _address(rows),
        offsets.data_ptr(),
        k,
        torch.get_num_threads(),
        scores.data_ptr(),
        indices.data_ptr(),
    )
    return scores, indices


_ON_CPU: dict[str, Callable[..., Any]] = {
    "inverse_norms": _cpu_inverse_norms,
    "cosine_topk": _cpu_cosine_topk,
    "cosine_rerank": _cpu_cosine_rerank,
}


OPERATORS = tuple(_ON_CPU)


def _cuda_inverse_norms(corpus: Tensor) -> Tensor:
    corpus = _with_adjacent_columns(corpus)
    found = torch.empty(corpus.shape[0], dtype=torch.float32, device=corpus.device)
    if len(corpus):
        native.cuda_inverse_norms(_rows(corpus), found.data_ptr(), *_device_and_stream(corpus))
    return found


def _cuda_cosine_topk(
    queries: Tensor, corpus: Tensor, inverse_norms: Tensor | None, mask: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
    width = min(k, corpus.shape[0])
    scores, indices = _results(queries, width)
    if not scores.numel():
        return scores, indices
    if inverse_norms is None:
        inverse_norms = _cuda_inverse_norms(corpus)
    inverse_norms = _of_rows("inverse_norms", inverse_norms, torch.float32, corpus)
    mask = _of_rows("mask", mask, torch.bool, corpus)
    sizes = _rows(queries), _rows(corpus)
    device, stream = _device_and_stream(queries)
    workspace = _workspace(native.cuda_cosine_topk_workspace(*sizes, width, device), queries)
    native.cuda_cosine_topk(
        *sizes,
        _address(inverse_norms),
        _address(mask),
        width,
        scores.data_ptr(),
        indices.data_ptr(),
        workspace.data_ptr(),
        workspace.numel(),
        device,
        stream,
    )
    return scores, indices


def _cuda_cosine_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
    scores, indices = _results(queries, k)
    if not scores.numel():
        return scores, indices
    if inverse_norms is None:
        inverse_norms = _cuda_inverse_norms(corpus)
    inverse_norms = _of_rows("inverse_norms", inverse_norms, torch.float32, corpus)
    rows, offsets = _candidates(rows, offsets, queries, corpus)
    sizes = _rows(queries), _rows(corpus)
    device, stream = _device_and_stream(queries)
    candidates = corpus.shape[0] if rows is None else rows.shape[0]
    needed = native.cuda_cosine_rerank_workspace(*sizes, candidates, k, device)
    workspace = _workspace(needed, queries)
    native.cuda_cosine_rerank(
        *sizes,
        _address(inverse_norms),
        _address(rows),
        candidates,
        offsets.data_ptr(),
        k,
        scores.data_ptr(),
        indices.data_ptr(),
        workspace.data_ptr(),
        workspace.numel(),
        device,
        stream,
    )
    return scores, indices


_ON_CUDA: dict[str, Callable[..., Any]] = {
    "inverse_norms": _cuda_inverse_norms,
    "cosine_topk": _cuda_cosine_topk,
    "cosine_rerank": _cuda_cosine_rerank,
}


def _device_and_stream(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def _workspace(size: int, beside: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=beside.device)


def _results(queries: Tensor, width: int) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty((queries.shape[0], width), dtype=torch.float32)
    return scores, torch.empty_like(scores, dtype=torch.int64)


def _with_adjacent_columns(rows: Tensor) -> Tensor:
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _of_rows(name: str, values: Tensor | None, dtype: torch.dtype, corpus: Tensor) -> Tensor | None:
    """`values`, adjacent in memory. What is read by its address has to be what it is said to be."""
    if values is None:
        return None
    if values.dtype != dtype or values.shape != corpus.shape[:1] or values.device != corpus.device:
        accepted = f"{dtype} [{corpus.shape[0]}] on {corpus.device}"
        got = f"{values.dtype} {list(values.shape)} on {values.device}"
        raise ValueError(f"{name} must be {accepted}, got {got}")
    return values.contiguous()


def _candidates(
    rows: Tensor | None, offsets: Tensor, queries: Tensor, corpus: Tensor
) -> tuple[Tensor | None, Tensor]:
    """`rows` and `offsets`, adjacent in memory, after the checks that keep reads within them."""
    listed = corpus if rows is None else rows
    require_offsets("offsets", offsets, listed.shape[0], "corpus" if rows is None else "rows")
    count = queries.shape[0]
    require_shape("offsets", offsets, "[{}]", offsets.numel() == count + 1, count + 1)
    require_same_device("offsets", offsets, "queries", queries)
    if rows is not None and (rows.dtype != torch.int64 or rows.device != queries.device):
        raise ValueError(
            f"rows must be int64 on {queries.device}, got {rows.dtype} on {rows.device}"
        )
    return None if rows is None else rows.contiguous(), offsets.contiguous()


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _rows(rows: Tensor) -> Any:
    count, columns = rows.shape
    return native.Rows(rows.data_ptr(), _TYPE_NAMES[rows.dtype], count, columns, rows.stride(0))
