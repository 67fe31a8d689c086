"""What packed causal attention is compared with: PyTorch's own kernels, and flash-attn."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import scaled_dot_product_attention


class VarlenAttention:
    """`torch.nn.attention.varlen.varlen_attn`, causal, as each release of PyTorch takes it.

    With fewer queries than keys the last query sees the last key, as memory rows do. Where the
    release does not take fewer key heads than query heads, `keys` repeats them beforehand.
    """

    def __init__(self, function: Any = None) -> None:
        if function is None:
            from torch.nn.attention.varlen import varlen_attn as function
        self._function = function
        known = inspect.signature(function).parameters
        # 2.10 has is_causal and takes grouped heads as they are; later releases have the window
        # instead, and 2.13 wants to be told of groups.
        self._options: dict[str, Any] = (
            {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        )
        if "enable_gqa" in known:
            self._options["enable_gqa"] = True
        self._grouped: dict[tuple[torch.device, torch.dtype, int], bool] = {}

    def keys(self, tensor: Tensor, query_heads: int) -> Tensor:
        """Keys or values as the function takes them."""
        groups = query_heads // tensor.shape[1]
        if groups == 1:
            return tensor
        kind = tensor.device, tensor.dtype, tensor.shape[2]
        if kind not in self._grouped:
            self._grouped[kind] = self._takes_groups(*kind)
        return tensor if self._grouped[kind] else tensor.repeat_interleave(groups, dim=1)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets_q: Tensor,
        offsets_k: Tensor,
        longest_q: int,
        longest_k: int,
    ) -> Tensor:
        return self._function(q, k, v, offsets_q, offsets_k, longest_q, longest_k, **self._options)

    def _takes_groups(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether grouped heads give what repeated ones do, forward and backward."""
        generator = torch.Generator(device).manual_seed(0)
        shapes = [(16, 4, head_dim), (16, 2, head_dim), (16, 2, head_dim)]
        q, k, v = (
            torch.randn(shape, generator=generator, device=device, dtype=dtype).requires_grad_()
            for shape in shapes
        )
        offsets = torch.tensor([0, 16], dtype=torch.int32, device=device)
        found = []
        for repeats in (1, 2):
            pair = [each.repeat_interleave(repeats, dim=1) for each in (k, v)]
            try:
                out = self(q, *pair, offsets, offsets, 16, 16)
                found.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
            except (RuntimeError, ValueError, TypeError):
                if repeats == 2:
                    raise
                return False
        return all(
            torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2)
            for one, other in zip(*found, strict=True)
        )


@cache
def varlen_attention() -> VarlenAttention:
    return VarlenAttention()


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets_q: Tensor,
    offsets_k: Tensor,
    longest_q: int,
    longest_k: int,
) -> Tensor:
    """Attention of the package flash-attn, causal; the last query sees the last key."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, offsets_q, offsets_k, longest_q, longest_k, causal=True)


class FlexAttention:
    """`flex_attention`, compiled, of packed documents; it skips blocks that nothing is seen of.

    Args:
        q_rows, k_rows: int `[2, T]`, the document of each row and its place there.
    """

    def __init__(self, q_rows: Tensor, k_rows: Tensor, compiled: Any) -> None:
        (q_document, q_place), (k_document, k_place) = (
            (each[0].contiguous(), each[1].contiguous()) for each in (q_rows, k_rows)
        )

        def seen(batch: Any, head: Any, i: Any, j: Any) -> Any:
            return (q_document[i] == k_document[j]) & (k_place[j] <= q_place[i])

        sizes = q_rows.shape[1], k_rows.shape[1]
        self._mask = create_block_mask(seen, None, None, *sizes, device=str(q_rows.device))
        self._function = compiled

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[T, heads, head_dim]`, grouped heads as they are."""
        batch = (each.transpose(0, 1)[None] for each in (q, k, v))
        out = self._function(*batch, block_mask=self._mask, enable_gqa=True)
        return out[0].transpose(0, 1)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Scores, softmax and sums of `[N, heads, rows, head_dim]`.

    Args:
        seen: bool `[N, 1, rows, keys]`, at least a key for each row.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The same by `scaled_dot_product_attention`."""
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


def padded_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`scaled_dot_product_attention` of `[N, heads, length, head_dim]`, padded on the right.

    Causal attention never looks at padding on the right, so no mask is needed and PyTorch takes
    its fastest kernel; the padding is computed and thrown away.
    """
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def pad(packed: Tensor, lengths: list[int], longest: int) -> Tensor:
    """`[T, heads, head_dim]` to `[N, heads, longest, head_dim]`, zeros on the right."""
    grid = packed.new_zeros(len(lengths), longest, *packed.shape[1:])
    grid[_present(lengths, longest, packed.device)] = packed
    return grid.transpose(1, 2).contiguous()


def unpad(grid: Tensor, lengths: list[int]) -> Tensor:
    """The inverse of `pad`."""
    grid = grid.transpose(1, 2)
    return grid[_present(lengths, grid.shape[1], grid.device)]


def _present(lengths: list[int], longest: int, device: torch.device) -> Tensor:
    ends = torch.tensor(lengths, device=device)[:, None]
    return torch.arange(longest, device=device) < ends
