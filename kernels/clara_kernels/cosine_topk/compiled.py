"""The operators by the compiled module `clara_kernels._C`, which takes addresses, not tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..build import native
from .checks import require_candidate_offsets

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


@dataclass
class _Search:
    """The tensors of one call, laid out as the compiled module reads and writes them.

    Its addresses are valid for as long as this lives.
    """

    queries: Tensor
    corpus: Tensor
    inverse_norms: Tensor | None
    scores: Tensor  # float32, results for each query
    indices: Tensor  # int64

    @classmethod
    def prepared(
        cls, queries: Tensor, corpus: Tensor, inverse_norms: Tensor | None, width: int
    ) -> _Search:
        """A search for `width` results a query."""
        queries, corpus = _with_adjacent_columns(queries), _with_adjacent_columns(corpus)
        scores = queries.new_empty((queries.shape[0], width), dtype=torch.float32)
        indices = torch.empty_like(scores, dtype=torch.int64)
        inverse_norms = _of_rows("inverse_norms", inverse_norms, torch.float32, corpus)
        return cls(queries, corpus, inverse_norms, scores, indices)

    def find_norms(self) -> None:
        """Compute the inverse norms on the GPU if they were not given: its kernels need them."""
        if self.inverse_norms is None:
            self.inverse_norms = _cuda_inverse_norms(self.corpus)

    @property
    def sizes(self) -> tuple[Any, Any]:
        return _rows(self.queries), _rows(self.corpus)

    @property
    def inputs(self) -> tuple[Any, Any, int]:
        return (*self.sizes, _address(self.inverse_norms))

    @property
    def outputs(self) -> tuple[int, int]:
        return self.scores.data_ptr(), self.indices.data_ptr()

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        return self.scores, self.indices


def _cpu_inverse_norms(corpus: Tensor) -> Tensor:
    corpus = _with_adjacent_columns(corpus)
    found = torch.empty(corpus.shape[0], dtype=torch.float32)
    native.inverse_norms(_rows(corpus), torch.get_num_threads(), found.data_ptr())
    return found


def _cpu_cosine_topk(
    queries: Tensor, corpus: Tensor, inverse_norms: Tensor | None, mask: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    search = _Search.prepared(queries, corpus, inverse_norms, min(k, corpus.shape[0]))
    mask = _of_rows("mask", mask, torch.bool, search.corpus)
    threads = torch.get_num_threads()
    native.cosine_topk(*search.inputs, _address(mask), k, threads, *search.outputs)
    return search.found


def _cpu_cosine_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    search = _Search.prepared(queries, corpus, inverse_norms, k)
    rows, offsets = _candidates(rows, offsets, search)
    lists = _address(rows), offsets.data_ptr()
    native.cosine_rerank(*search.inputs, *lists, k, torch.get_num_threads(), *search.outputs)
    return search.found


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
    width = min(k, corpus.shape[0])
    search = _Search.prepared(queries, corpus, inverse_norms, width)
    mask = _of_rows("mask", mask, torch.bool, search.corpus)
    if not search.scores.numel():
        return search.found
    search.find_norms()
    device, stream = _device_and_stream(queries)
    needed = native.cuda_cosine_topk_workspace(*search.sizes, width, device)
    space = _workspace(needed, queries)
    native.cuda_cosine_topk(
        *search.inputs,
        _address(mask),
        width,
        *search.outputs,
        space.data_ptr(),
        space.numel(),
        device,
        stream,
    )
    return search.found


def _cuda_cosine_rerank(
    queries: Tensor,
    corpus: Tensor,
    inverse_norms: Tensor | None,
    rows: Tensor | None,
    offsets: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    search = _Search.prepared(queries, corpus, inverse_norms, k)
    rows, offsets = _candidates(rows, offsets, search)
    if not search.scores.numel():
        return search.found
    search.find_norms()
    device, stream = _device_and_stream(queries)
    candidates = corpus.shape[0] if rows is None else rows.shape[0]
    needed = native.cuda_cosine_rerank_workspace(*search.sizes, candidates, k, device)
    space = _workspace(needed, queries)
    native.cuda_cosine_rerank(
        *search.inputs,
        _address(rows),
        candidates,
        offsets.data_ptr(),
        k,
        *search.outputs,
        space.data_ptr(),
        space.numel(),
        device,
        stream,
    )
    return search.found


_ON_CUDA: dict[str, Callable[..., Any]] = {
    "inverse_norms": _cuda_inverse_norms,
    "cosine_topk": _cuda_cosine_topk,
    "cosine_rerank": _cuda_cosine_rerank,
}


def _device_and_stream(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def _workspace(size: int, beside: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=beside.device)


def _with_adjacent_columns(rows: Tensor) -> Tensor:
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _of_rows(name: str, values: Tensor | None, dtype: torch.dtype, corpus: Tensor) -> Tensor | None:
    """`values`, adjacent in memory, after checks: the compiled module gets an address alone."""
    if values is None:
        return None
    if values.dtype != dtype or values.shape != corpus.shape[:1] or values.device != corpus.device:
        accepted = f"{dtype} [{corpus.shape[0]}] on {corpus.device}"
        got = f"{values.dtype} {list(values.shape)} on {values.device}"
        raise ValueError(f"{name} must be {accepted}, got {got}")
    return values.contiguous()


def _candidates(
    rows: Tensor | None, offsets: Tensor, search: _Search
) -> tuple[Tensor | None, Tensor]:
    """`rows` and `offsets`, adjacent in memory, after the checks that keep reads within them."""
    device = search.queries.device
    require_candidate_offsets(offsets, rows, search.queries, search.corpus)
    if rows is not None and (rows.dtype != torch.int64 or rows.device != device):
        raise ValueError(f"rows must be int64 on {device}, got {rows.dtype} on {rows.device}")
    return None if rows is None else rows.contiguous(), offsets.contiguous()


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _rows(rows: Tensor) -> Any:
    count, columns = rows.shape
    return native.Rows(rows.data_ptr(), _TYPE_NAMES[rows.dtype], count, columns, rows.stride(0))
