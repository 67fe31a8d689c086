"""Norms of vectors of any magnitude, and how their inverses are kept for the backward pass.

The square of a float32 beyond 10¹⁹ is infinite, and one below 10⁻²³ is 0. So a vector is first
multiplied by a power of two that brings its largest value near 1: that is exact.

1/|x| itself may not be a float32: norms of float32 vectors reach from 2⁻¹⁴⁹ to 2¹²⁸ · √D. So it is
kept as it is for ordinary norms alone, from 2⁻⁴⁰ to 2⁴⁰. Of larger ones -2³²/|x| is kept, below 1
in magnitude, and of smaller ones -2⁻³²/|x|, above 1. A zero vector has 0. float64 has numbers of
its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Format(NamedTuple):
    """The format of a floating-point dtype: its bits as integers, and which norms are ordinary."""

    integer: torch.dtype
    mantissa: int
    greatest: int  # exponent field of the largest finite numbers
    ordinary: float
    shift: float


_FORMATS = {
    torch.float32: _Format(torch.int32, 23, 254, 2.0**40, 2.0**32),
    torch.float64: _Format(torch.int64, 52, 2046, 2.0**400, 2.0**128),
}


def power_of_two(largest: Tensor) -> Tensor:
    """What brings a vector whose largest magnitude is given near 1, within its dtype's range."""
    form = _FORMATS[largest.dtype]
    field = largest.abs().view(form.integer) >> form.mantissa
    return ((form.greatest - field.clamp(max=form.greatest - 1)) << form.mantissa).view(
        largest.dtype
    )


def inverse_root(squares: Tensor) -> Tensor:
    """1/√squares, and 0 for 0."""
    return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).rsqrt())


def is_ordinary(norms: Tensor) -> Tensor:
    """Whether sums of products of such vectors may be made as they are; not for 0 and NaN."""
    limit = _FORMATS[norms.dtype].ordinary
    return (norms >= 1 / limit) & (norms <= limit)


def keep(inverse: Tensor, scale: Tensor) -> Tensor:
    """What is kept of vectors x, where `scale` is a power of two and `inverse` 1/|scale · x|."""
    form = _FORMATS[inverse.dtype]
    plain = inverse * scale
    shift = torch.full_like(scale, 1 / form.shift).masked_fill(scale < 1, form.shift)
    ordinary = is_ordinary(plain) | (inverse == 0)
    return torch.where(ordinary, plain, -inverse * (scale * shift))


def parts(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of 1/|x|: multiplied by one after the other, nothing overflows on the way.

    The first is a power of two.
    """
    form = _FORMATS[kept.dtype]
    inverse = kept.abs()
    shift = torch.full_like(kept, form.shift).masked_fill(inverse < 1, 1 / form.shift)
    return shift.masked_fill(kept >= 0, 1.0), inverse
