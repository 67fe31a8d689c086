"""The public `memory_attention` and its registration with the dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import (
    as_int,
    refuse_transforms,
    require_floating,
    require_memory_counts,
    require_offsets,
    require_same_device,
    require_shape,
)
from ..dispatch import declare, may_read, needs_no_dispatcher, register_gradient
from . import cpu, reference

_NO_WINDOW = 0  # in the operator's schema
_WIDEST_WINDOW = 2**63 - 1  # that it holds; no document has so many rows


def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: int | Tensor,
    *,
    memory_only: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention over packed documents, each its tokens followed by its memory tokens.

    Row i of a document attends to rows 0 … i of the same document:
    out_i = Σ_j softmax_j(scale · ⟨q_i, k_j⟩) v_j. Query head h reads key and value head
    h // (heads / kv_heads).

    With `memory_only` only the memory rows are queries, as in the last layer of a compressor: the
    m queries of a document are its last m rows.

    With a `window` row i attends to rows max(0, i - window + 1) … i only. Rows are counted within
    the document, memory rows included, so memory rows get the same result with `memory_only`.

    Args:
        q: `[T, heads, head_dim]`, float32, float16, bfloat16 or float64; with `memory_only`
            `[M, heads, head_dim]`, M the memory rows of all documents. On a GPU the kernels cover
            a head_dim of up to 256, and not float64. Other inputs use the reference, which holds
            all scores at once and waits for the GPU.
        k, v: `[T, kv_heads, head_dim]`, the dtype of `q`; `heads` is a multiple of `kv_heads`.
        cu_seqlens: int32 `[N + 1]`; document i is rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
        n_memory: number of memory rows of every document, or int32 `[N]`, one number each. Without
            `memory_only` they are computed like all others, and there may be none.
        memory_only: compute the memory rows only.
        scale: default head_dim ** -0.5.
        window: the most rows that a row attends to, itself included, as `sliding_window` in
            transformers; None for all rows before it.

    `cu_seqlens` and `n_memory` are checked on the CPU only, because a check on a GPU would wait
    for it, and not under torch.compile. Where they are not checked, a document of no rows is
    skipped, rows of no document have undefined results, and bounds beyond T are undefined
    behaviour.

    Under autocast q, k and v are cast to its dtype first, as PyTorch's own attention does.

    Returns:
        Tensor of the shape and dtype of `q`, differentiable once in q, k and v. The gradients do
        not depend on the order in which a GPU runs its blocks.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: shapes or devices do not match, there is no document, or a document has no
            token rows or no memory rows; the message names it.

    Examples:
        >>> import torch
        >>> from clara_kernels import memory_attention
        >>> q, k, v = torch.randn(9, 4, 32), torch.randn(9, 2, 32), torch.randn(9, 2, 32)
        >>> cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)  # documents of 4 and 5 rows
        >>> memory_attention(q, k, v, cu_seqlens, 2).shape
        torch.Size([9, 4, 32])
        >>> memory_rows = [2, 3, 7, 8]  # each document's last two
        >>> memory_attention(q[memory_rows], k, v, cu_seqlens, 2, memory_only=True).shape
        torch.Size([4, 4, 32])
        >>> near = memory_attention(q, k, v, cu_seqlens, 2, window=1)  # each row sees itself
        >>> torch.allclose(near[:, 0], v[:, 0])
        True
    """
    refuse_transforms("memory_attention", q, k, v)
    for name, value in (("q", q), ("k", k), ("v", v)):
        require_floating(name, value)
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    _check(q, k, v, cu_seqlens)
    counts = require_memory_counts(n_memory, cu_seqlens, "k", least=1 if memory_only else 0)
    if memory_only:
        _check_queries(q, counts, cu_seqlens)
    else:
        layout = "[{}, heads, head_dim], the rows of k"
        require_shape("q", q, layout, q.shape[0] == k.shape[0], k.shape[0])
    scale = q.shape[2] ** -0.5 if scale is None else float(scale)
    window = _NO_WINDOW if window is None else min(as_int("window", window, 1), _WIDEST_WINDOW)
    rest = (cu_seqlens, counts, memory_only, scale, window)
    if needs_no_dispatcher(q, k, v, cu_seqlens, counts):
        return cpu.forward(q, k, v, *rest)[0]
    out, _ = torch.ops.clara.memory_attention(q, k, v, *rest)
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> None:
    require_shape("q", q, "[T, heads, head_dim]", q.dim() == 3)
    heads, width = q.shape[1:]
    if width == 0:
        raise ValueError("q must have a head_dim of at least 1, got 0")
    require_shape("k", k, "[T, kv_heads, {}]", k.dim() == 3 and k.shape[2] == width, width)
    require_shape("v", v, "{}, as k has", v.shape == k.shape, list(k.shape))
    if k.shape[1] == 0 or heads % k.shape[1] or heads == 0:
        raise ValueError(f"q must have a multiple of k's {k.shape[1]} heads, got {heads}")
    for name, value in (("k", k), ("v", v)):
        if value.dtype != q.dtype:
            raise TypeError(f"{name} must be {q.dtype} as q is, got {value.dtype}")
        require_same_device(name, value, "q", q)
    require_offsets("cu_seqlens", cu_seqlens, k.shape[0], "k")
    require_same_device("cu_seqlens", cu_seqlens, "q", q)


def _check_queries(q: Tensor, counts: Tensor, cu_seqlens: Tensor) -> None:
    """The rows of q with `memory_only`, as far as they can be told without waiting."""
    rows, documents = q.shape[0], cu_seqlens.numel() - 1
    if counts.dim() == 0 and rows % documents:
        raise ValueError(
            f"q must have as many memory rows for each of {documents} documents, got {rows} rows"
        )
    if may_read(counts):
        expected = int(counts.expand(documents).sum())
        sizes = (expected, q.shape[1], q.shape[2])
        require_shape("q", q, "[{}, {}, {}]", rows == expected, *sizes)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    n_memory: Tensor,
    memory_only: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=dtype)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_INPUTS = (
    "Tensor q, Tensor k, Tensor v, {}Tensor cu_seqlens, Tensor n_memory, bool memory_only, "
    "float scale, int window"
)
declare(
    "memory_attention",
    f"({_INPUTS.format('')}) -> (Tensor out, Tensor lse)",
    fake=_fake,
    reference=reference.forward,
    cpu=cpu.forward,
    triton="memory_attention.triton:forward",
)
declare(
    "memory_attention_backward",
    f"(Tensor grad, {_INPUTS.format('Tensor out, Tensor lse, ')}) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    fake=_fake_backward,
    reference=reference.backward,
    cpu=cpu.backward,
    triton="memory_attention.triton:backward",
)
register_gradient(
    "memory_attention", lambda given, output: (*given[:3], *output, *given[3:]), gradients=3
)
