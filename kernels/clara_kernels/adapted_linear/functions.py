"""A linear layer and its adapter in one pass over weights and results.

By PyTorch the two are three products, of which the thin ones cost several times what their numbers
of operations say. The compiled module makes them one, of weights as they are stored. Whatever
`multiplies_here` refuses goes by the reference.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

from ..build import native
from ..checks import require_shape
from ..threads import processors_are_free
from . import reference

_NAME = "clara::adapted_linear"  # for profilers


def multiplies_here(*tensors: Tensor) -> bool:
    """Whether the compiled module multiplies such tensors on this processor.

    Those are contiguous ones in bfloat16 with an even number of columns, on a CPU of AMD with
    AVX512-BF16. Intel's have AMX, which PyTorch uses. `CLARA_SIMD` can name less than the processor
    has. None under torch.compile, which does not see what compiled modules do, and none on several
    threads that would be in the way of PyTorch's: see `clara_kernels.threads`.
    """
    return (
        native is not None
        and not torch.compiler.is_compiling()
        and native.multiplies_bfloat16()
        and processors_are_free()
        and all(
            type(each) in (Tensor, torch.nn.Parameter)
            and each.dtype == torch.bfloat16
            and each.device.type == "cpu"
            and each.is_contiguous()
            and each.shape[-1] % 2 == 0
            for each in tensors
        )
    )


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    down: Tensor | None = None,
    up: Tensor | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """`x W' + scaling · (x A') B' + bias`, without gradients.

    Sums are in float32, or float64 for inputs in it, and rounded once: a change far below a step of
    the result's dtype is not lost. `scaling · x A'` is rounded to the dtype of `x` before. Where
    `multiplies_here`, numbers below 2⁻¹²⁶ count as 0, as for all such instructions.

    Args:
        x: `[..., inputs]`.
        weight: W `[outputs, inputs]`, in the dtype of `x`.
        bias: `[outputs]` in any float dtype, or None.
        down, up: A `[rank, inputs]` and B `[outputs, rank]`, in the dtype of `x`; or both None.

    Returns:
        `[..., outputs]` in the dtype of `x`, without a gradient.

    Raises:
        ValueError: a shape does not fit, or one of `down` and `up` is missing.

    Examples:
        >>> import torch
        >>> from clara_kernels.adapted_linear import adapted_linear
        >>> x, weight = torch.ones(1, 2), torch.tensor([[1.0, 2.0]])
        >>> adapted_linear(x, weight, None, torch.ones(1, 2), torch.tensor([[3.0]]), 0.5)
        tensor([[6.]])
    """
    _check(x, weight, bias, down, up)
    with torch.no_grad():
        adapter = () if down is None or up is None else (down, up)
        if weight.shape[1] == 0 or not multiplies_here(weight, *adapter):
            return reference.adapted_linear(x, weight, bias, down, up, scaling)
        source = x.contiguous()
        if not multiplies_here(source):
            return reference.adapted_linear(x, weight, bias, down, up, scaling)
        return _multiplied(source, weight, bias, down, up, scaling)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, up: Tensor | None
) -> None:
    require_shape("weight", weight, "[outputs, inputs]", weight.dim() == 2)
    outputs, inputs = weight.shape
    require_shape("x", x, "[..., {}]", x.dim() > 0 and x.shape[-1] == inputs, inputs)
    if bias is not None:
        require_shape("bias", bias, "[{}]", bias.shape == (outputs,), outputs)
    if (down is None) != (up is None):
        raise ValueError("down and up must both be given, or neither of them")
    if down is not None and up is not None:
        fits = down.dim() == 2 and down.shape[1] == inputs
        require_shape("down", down, "[rank, {}]", fits, inputs)
        rank = down.shape[0]
        require_shape("up", up, "[{}, {}]", up.shape == (outputs, rank), outputs, rank)


def _multiplied(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    scaling: float,
    change: Tensor | None = None,
) -> Tensor:
    """The result; `scaling · x A'` `[..., rank]` is written to `change`, if there is one."""
    outputs, inputs = weight.shape
    out = x.new_empty(*x.shape[:-1], outputs)
    wide = None if bias is None else bias.float().contiguous()
    with record_function(_NAME) if _profiler_enabled() else nullcontext():
        native.linear(
            x.numel() // inputs,
            inputs,
            outputs,
            0 if down is None else down.shape[0],
            x.data_ptr(),
            weight.data_ptr(),
            0 if wide is None else wide.data_ptr(),
            0 if down is None else down.data_ptr(),
            0 if up is None else up.data_ptr(),
            scaling,
            0 if change is None else change.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def trains_here(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> bool:
    """Whether `with_change` and `gradients` can be called."""
    return weight.shape[0] % 2 == 0 and weight.numel() > 0 and multiplies_here(x, weight, down, up)


def with_change(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`adapted_linear`, and `scaling · x A'`, which the gradient in B is made of.

    Args:
        x: `[rows, inputs]` as `trains_here` accepts it, and so are the others.

    Returns:
        `[rows, outputs]` and `[rows, rank]`.
    """
    change = x.new_empty(*x.shape[:-1], down.shape[0])
    return _multiplied(x, weight, bias, down, up, scaling, change), change


def gradients(
    grad: Tensor, weight: Tensor, down: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and of `x A'`: `grad W + thin A` and `thin = scaling · grad B`.

    Args:
        grad: of the result, `[rows, outputs]`, as `trains_here` accepts it; and so are the others.

    Returns:
        `[rows, inputs]` and `[rows, rank]`, each sum rounded once.
    """
    rows, (outputs, inputs), rank = grad.shape[0], weight.shape, down.shape[0]
    thin, out = grad.new_empty(rows, rank), grad.new_empty(rows, inputs)
    with record_function(_NAME + "_backward") if _profiler_enabled() else nullcontext():
        native.linear_gradient(
            rows,
            inputs,
            outputs,
            rank,
            grad.data_ptr(),
            weight.data_ptr(),
            down.data_ptr(),
            up.data_ptr(),
            scaling,
            thin.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out, thin


def gradient_of_down(thin: Tensor, x: Tensor) -> Tensor:
    """That of A, in float32: `thin' x`.

    Args:
        thin: `[rows, rank]`, of `gradients`, as `multiplies_here` accepts it.
        x: `[rows, inputs]`, of `with_change`, as `multiplies_here` accepts it.

    Returns:
        `[rank, inputs]`.
    """
    return _over_rows(x, thin, x.new_empty(thin.shape[1], x.shape[1], dtype=torch.float32), False)


def gradient_of_up(grad: Tensor, change: Tensor) -> Tensor:
    """That of B, in float32: `grad' change`.

    Args:
        grad: of the result, `[rows, outputs]`, as `multiplies_here` accepts it.
        change: `[rows, rank]`, of `with_change`, as `multiplies_here` accepts it.

    Returns:
        `[outputs, rank]`.
    """
    shape = grad.shape[1], change.shape[1]
    return _over_rows(grad, change, grad.new_empty(shape, dtype=torch.float32), True)


def _over_rows(wide: Tensor, thin: Tensor, out: Tensor, transposed: bool) -> Tensor:
    with record_function(_NAME + "_adapter_gradient") if _profiler_enabled() else nullcontext():
        native.thin_product(
            *wide.shape,
            thin.shape[1],
            wide.data_ptr(),
            thin.data_ptr(),
            transposed,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out
