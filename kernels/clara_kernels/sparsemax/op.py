"""The public `sparsemax`."""

from __future__ import annotations

from torch import Tensor

from ..checks import require_floating
from .reference import sparsemax_reference


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean projection of `x` onto the probability simplex along `dim`, exactly.

    Like softmax the result is non-negative and sums to one, but far entries get exactly 0. An
    entry of -inf is masked: it gets 0, and a row of nothing else is all zeros. A NaN or +inf
    makes every unmasked entry of its row NaN. The gradient of a row is `g - mean(g)` on the
    entries above zero and 0 elsewhere.

    Args:
        x: any shape with at least one dimension, any floating-point dtype. Computed in float32
            (float64 for float64).
        dim: the dimension that is projected.

    Returns:
        Tensor of the shape and dtype of `x`.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: `x` has no dimensions, or no dimension `dim`.
    """
    require_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim() - 1}], got {dim}")
    return sparsemax_reference(x, dim)
