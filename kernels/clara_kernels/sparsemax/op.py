"""The public `sparsemax` and its registration with the dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import as_int, refuse_transforms, require_floating
from ..dispatch import declare, register_gradient
from . import cpu, reference


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean projection of `x` onto the probability simplex along `dim`, exactly.

    Like softmax, the result is non-negative and sums to one, but entries far below the maximum
    get exactly 0. An entry of -inf is masked: it gets 0. A row where all entries are masked is all
    zeros. A NaN or +inf makes every unmasked entry of its row NaN. The gradient of a row is
    `g - mean(g)` on the entries above zero and 0 elsewhere.

    Source: Martins and Astudillo, 2016 (arXiv 1602.02068).

    Args:
        x: any shape with at least one dimension, any floating-point dtype. Computed in float32
            (float64 for float64).
        dim: the dimension to project.

    Returns:
        Tensor of the shape and dtype of `x`, differentiable once.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` has no dimensions, or no dimension `dim`.

    Examples:
        >>> import torch
        >>> from clara_kernels import sparsemax
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    refuse_transforms("sparsemax", x)
    require_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    dim = as_int("dim", dim)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim() - 1}], got {dim}")
    last = x.movedim(dim, -1)
    rows = last.numel() // last.shape[-1] if last.shape[-1] else 0
    y, _ = torch.ops.clara.sparsemax(last.reshape(rows, last.shape[-1]))
    return y.view(last.shape).movedim(-1, dim)


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(x.shape[0], 2, dtype=dtype)


def _fake_backward(grad: Tensor, x: Tensor, bounds: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


declare(
    "sparsemax",
    "(Tensor x) -> (Tensor y, Tensor bounds)",
    fake=_fake,
    reference=reference.forward,
    cpu=cpu.forward,
    triton="sparsemax.triton:forward",
)
declare(
    "sparsemax_backward",
    "(Tensor grad, Tensor x, Tensor bounds) -> Tensor",
    fake=_fake_backward,
    reference=reference.backward,
    cpu=cpu.backward,
    triton="sparsemax.triton:backward",
)
register_gradient("sparsemax", lambda given, output: (*given, output[1]))
