"""What packed causal attention is compared with: PyTorch's own kernels."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
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
