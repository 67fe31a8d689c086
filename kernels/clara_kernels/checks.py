"""Argument checks of the public functions. Messages name the argument and the accepted values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .dispatch import may_read, scalar_tensor


def require_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def refuse_transforms(operator: str, *tensors: Any) -> None:
    """RuntimeError if somebody wants derivatives of the tensors that the operator does not have.

    `backward` and `torch.autograd.grad` can differentiate it. The transforms of `torch.func` that
    differentiate, and forward-mode differentiation, would fail with an unrelated message or take
    the derivative for zero. `torch.vmap` differentiates nothing and is allowed.
    """
    forward_mode = forward_ad._current_level >= 0
    if torch.compiler.is_compiling():
        derived = forward_mode
    else:
        derived = any(map(_has_transform, tensors)) or (
            forward_mode and any(map(_has_tangent, tensors))
        )
    if derived:
        raise RuntimeError(
            f"{operator} must be differentiated by backward() or torch.autograd.grad: it does not "
            "support torch.func.grad, vjp, jvp, jacrev and others, nor forward-mode differentiation"
        )


def _has_transform(tensor: Any) -> bool:
    """Whether a transform of `torch.func` differentiates with respect to the tensor."""
    functorch = torch._C._functorch
    while isinstance(tensor, Tensor) and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def _has_tangent(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None


def require_floating(name: str, value: Any) -> None:
    """TypeError unless `value` is a floating-point tensor."""
    require_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.dtype.itemsize == 1:
        raise TypeError(f"{name} must have 16 bits or more a value, got {value.dtype}")


def require_shape(name: str, value: Tensor, layout: str, ok: bool, *sizes: Any) -> None:
    """ValueError unless `ok`.

    Args:
        layout: the accepted shape as text, such as "[B, D]" or "[B, {}]".
        sizes: what the braces stand for. Only filled in for the message: torch.compile takes a
            size that becomes text for a constant.
    """
    if not ok:
        accepted = layout.format(*sizes)
        raise ValueError(f"{name} must have shape {accepted}, got {list(value.shape)}")


def require_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {value.device}"
        )


def require_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")


def as_int(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int. It may be anything that can be an index, such as a numpy integer.

    Raises:
        TypeError: it is neither, or it is a bool.
        ValueError: it is less than `least`.
    """
    number = index_of(value)
    if number is None:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def index_of(value: Any) -> Any:
    """The integer that `value` is, by `operator.index`; None if it is none.

    A bool, also one of numpy or torch, is none.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # `operator.index` would make a SymInt a constant
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, such as an int, a float or one of numpy's, and no bool."""
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)


def require_offsets(name: str, offsets: Any, total: int, counted: str) -> None:
    """Check int32 offsets `[count + 1]` that split `total` rows of the argument `counted`.

    Their values are checked only where reading them makes nothing wait, see `may_read`.
    """
    require_tensor(name, offsets)
    if offsets.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {offsets.dtype}")
    require_shape(name, offsets, "[count + 1]", offsets.dim() == 1 and offsets.numel() >= 1)
    if not may_read(offsets):
        return
    values = offsets.tolist()
    if values[0] != 0:
        raise ValueError(f"{name} must start at 0, got {values[0]}")
    if values[-1] != total:
        raise ValueError(f"{name} must end at {total}, the rows of {counted}, got {values[-1]}")
    for row, (start, end) in enumerate(pairwise(values)):
        if end < start:
            raise ValueError(
                f"{name} must not decrease, got {start} then {end} at positions {row} and {row + 1}"
            )


def require_memory_counts(
    n_memory: Any, cu_seqlens: Tensor, counted: str, least: int = 1
) -> Tensor:
    """Check the memory rows that packed documents end in: an int, or int32 `[N]`.

    `cu_seqlens` has passed `require_offsets` for the rows of the argument `counted`. Every document
    needs `least` memory rows and a row before them; where values may be read that is checked.

    Returns:
        int32, 0-d for one number and `[N]` for one per document.
    """
    count = cu_seqlens.numel() - 1
    if count == 0:
        raise ValueError("cu_seqlens must hold at least one document, got [0]")
    if isinstance(n_memory, Tensor):
        if n_memory.dtype != torch.int32:
            raise TypeError(f"n_memory must be an int or int32, got {n_memory.dtype}")
        matches = n_memory.dim() == 0 or (n_memory.dim() == 1 and n_memory.shape[0] == count)
        require_shape("n_memory", n_memory, "[{}] or []", matches, count)
        require_same_device("n_memory", n_memory, counted, cu_seqlens)
    elif not torch.compiler.is_compiling():
        n_memory = as_int("n_memory", n_memory, least)
    if may_read(cu_seqlens):
        given = n_memory.tolist() if isinstance(n_memory, Tensor) else n_memory
        counts = given if isinstance(given, list) else [given] * count
        bounds = pairwise(cu_seqlens.tolist())
        for document, ((start, end), memory) in enumerate(zip(bounds, counts, strict=True)):
            if memory < least or end - start <= memory:
                _refuse_document(document, end - start, memory, least)
    return scalar_tensor(n_memory, torch.int32, cu_seqlens.device)


def _refuse_document(document: int, length: int, memory: int, least: int) -> None:
    if memory < least:
        raise ValueError(f"n_memory must be at least {least}, got {memory} for document {document}")
    raise ValueError(
        f"cu_seqlens must leave every document at least one token row: document {document} has "
        f"{length} rows, of which n_memory takes {memory}"
    )
