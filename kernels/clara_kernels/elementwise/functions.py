"""Norms, gated activations and rotary embeddings that are differentiable, each in one pass.

PyTorch would make five to ten tensors of the size of the input for each of them, and keep most
until the backward pass. The compiled module makes the result alone, and the backward pass computes
what it needs again from the input. Whatever `computes_here` refuses goes by the reference.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from ..build import native
from ..checks import require_choice, require_shape
from . import reference

_TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ACTIVATIONS = ("silu", "gelu_tanh")


def computes_here(*tensors: Tensor) -> bool:
    """Whether the compiled module can compute with tensors: on a CPU, in float32 or bfloat16."""
    return native is not None and all(
        tensor.device.type == "cpu" and tensor.dtype in _TYPE_NAMES for tensor in tensors
    )


def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float, *, dtype: torch.dtype | None = None
) -> Tensor:
    """A root-mean-square norm: `x / sqrt(mean(x²) + epsilon) · weight` over the last dimension.

    Statistics and products are in float32, or float64 for inputs in it, and the result is rounded
    once.

    Args:
        x: `[..., H]`.
        weight: `[H]`, a constant: it gets no gradient.
        dtype: of the result; default the wider one of `x` and `weight`.

    Returns:
        `[..., H]`, differentiable once in `x`.

    Raises:
        ValueError: `weight` is not `[H]`.

    Examples:
        >>> import torch
        >>> from clara_kernels.elementwise import rms_norm
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 0.0)
        tensor([[0.8485, 1.1314]])
    """
    weight = _norm_weight(x, weight)
    dtype = torch.promote_types(x.dtype, weight.dtype) if dtype is None else dtype
    if dtype not in _TYPE_NAMES or not computes_here(x, weight):
        return reference.rms_norm(x, weight, epsilon, dtype)
    if not _needs_gradient(x):
        return _normed(x, None, weight, epsilon, dtype)[1]
    normed: Tensor = _Norm.apply(x, None, weight, epsilon, dtype)[1]
    return normed


def rms_norm_of_sum(
    x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """`x + delta` and its `rms_norm`: a residual stream goes on beside its norm.

    Their two gradients are added as they are made.

    Args:
        x: `[..., H]`.
        delta: the shape of `x`; None adds nothing, and the sum is `x` itself.
        weight, epsilon: see `rms_norm`.

    Returns:
        The sum `[..., H]` as `x + delta` is, and its norm; both differentiable once in `x` and
        `delta`.

    Raises:
        ValueError: `weight` is not `[H]`, or `delta` has not the shape of `x`.

    Examples:
        >>> import torch
        >>> from clara_kernels.elementwise import rms_norm_of_sum
        >>> x, delta = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 3.0]])
        >>> rms_norm_of_sum(x, delta, torch.ones(2), 0.0)
        (tensor([[3., 4.]]), tensor([[0.8485, 1.1314]]))
    """
    weight = _norm_weight(x, weight)
    if delta is not None:
        require_shape("delta", delta, "{}, as x has", delta.shape == x.shape, list(x.shape))
    if delta is not None and delta.dtype != x.dtype:
        x, delta = x + delta, None
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if not computes_here(x, weight):
        total = x if delta is None else x + delta
        return total, reference.rms_norm(total, weight, epsilon, dtype)
    if not _needs_gradient(x, delta):
        total, out, _, _ = _normed(x, delta, weight, epsilon, dtype)
        return (x if delta is None else total), out
    made: tuple[Tensor, Tensor] = _Norm.apply(x, delta, weight, epsilon, dtype)
    return made


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """The middle of a gated feed-forward network: `activation(gate) · up`.

    Computed in float32, or float64 for inputs in it, and rounded once.

    Args:
        gate, up: of one shape and dtype.
        activation: "silu", or "gelu_tanh", the tanh approximation of GELU.

    Returns:
        Tensor of that shape and dtype, differentiable once in both.

    Raises:
        ValueError: the shapes differ, or there is no such activation.

    Examples:
        >>> import torch
        >>> from clara_kernels.elementwise import gated_activation
        >>> gated_activation(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 2.0]), "silu")
        tensor([0.0000, 1.4621])
    """
    require_choice("activation", activation, ACTIVATIONS)
    require_shape("up", up, "{}, as gate has", up.shape == gate.shape, list(gate.shape))
    if not computes_here(gate, up) or gate.dtype != up.dtype:
        return reference.gated_activation(gate, up, activation)
    gelu = activation == "gelu_tanh"
    if not _needs_gradient(gate, up):
        return _gated(gate.contiguous(), up.contiguous(), gelu)
    made: Tensor = _Gated.apply(gate, up, gelu)
    return made


def rotate(
    x: Tensor, cosines: Tensor, sines: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Rotary embedding of queries or keys: `x · cosines + rotate_half(x) · sines`.

    Computed in float32, or float64 for inputs in it, and rounded once.

    Args:
        x: `[..., heads, head_dim]`, head_dim even.
        cosines, sines: `[..., head_dim]`, shared by the heads of a row; constants.
        dtype: of the result; default that of `x`.

    Returns:
        `[..., heads, head_dim]`, differentiable once in `x`.

    Raises:
        ValueError: head_dim is odd, or `cosines` or `sines` are not `[..., head_dim]`.

    Examples:
        >>> import torch
        >>> from clara_kernels.elementwise import rotate
        >>> quarter_turn = torch.zeros(1, 2), torch.ones(1, 2)
        >>> rotate(torch.tensor([[[1.0, 2.0]]]), *quarter_turn)
        tensor([[[-2.,  1.]]])
    """
    width = x.shape[-1]
    require_shape("x", x, "[..., heads, an even head_dim]", x.dim() >= 2 and width % 2 == 0)
    expected = (*x.shape[:-2], width)
    for name, angles in (("cosines", cosines), ("sines", sines)):
        require_shape(name, angles, "{}", angles.shape == expected, list(expected))
    dtype = x.dtype if dtype is None else dtype
    if dtype not in _TYPE_NAMES or not computes_here(x, cosines, sines):
        return reference.rotate(x, cosines.detach(), sines.detach(), dtype)
    if not _needs_gradient(x):
        return _rotated(x, cosines.float().contiguous(), sines.float().contiguous(), dtype, False)
    made: Tensor = _Rotation.apply(x, cosines, sines, dtype)
    return made


def _needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know: for a few rows that takes longer than the work itself."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _named(name: str) -> AbstractContextManager[Any]:
    """Names what is computed within it for a profiler, if there is one."""
    return record_function(name) if _profiler_enabled() else nullcontext()


def _norm_weight(x: Tensor, weight: Tensor) -> Tensor:
    expected = x.shape[-1:]
    require_shape("weight", weight, "{}", weight.shape == expected, list(expected))
    return weight.detach()


def _type(tensor: Tensor) -> str:
    return _TYPE_NAMES[tensor.dtype]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _normed(
    x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x + delta` and its norm, the weight in float32, and what each row was multiplied by."""
    source, wide = x.contiguous(), weight.float().contiguous()
    added = None if delta is None else delta.contiguous()
    total = None if added is None else torch.empty_like(source)
    inverse = source.new_empty(source.shape[:-1], dtype=torch.float32)
    out = torch.empty_like(source, dtype=dtype)
    with _named("clara::rms_norm"):
        native.rms_norm(
            inverse.numel(),
            source.shape[-1],
            _type(source),
            _type(out),
            source.data_ptr(),
            _address(added),
            wide.data_ptr(),
            epsilon,
            _address(total),
            inverse.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return source if total is None else total, out, wide, inverse


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor | None,
        weight: Tensor,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        total, out, wide, inverse = _normed(x, delta, weight, epsilon, dtype)
        ctx.save_for_backward(total, wide, inverse)
        return x.view_as(x) if delta is None else total, out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, beside: Tensor | None, grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight, inverse = ctx.saved_tensors
        if grad is None:
            return beside, beside if ctx.needs_input_grad[1] else None, None, None, None
        grad, beside = grad.contiguous(), None if beside is None else beside.contiguous()
        out = torch.empty_like(x)
        with _named("clara::rms_norm_backward"):
            native.rms_norm_gradient(
                inverse.numel(),
                x.shape[-1],
                _type(x),
                _type(grad),
                grad.data_ptr(),
                x.data_ptr(),
                weight.data_ptr(),
                inverse.data_ptr(),
                _address(beside),
                out.data_ptr(),
                torch.get_num_threads(),
            )
        return out, out if ctx.needs_input_grad[1] else None, None, None, None


def _gated(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    out = torch.empty_like(gate)
    with _named("clara::gated_activation"):
        native.gated(
            gate.numel(),
            _type(gate),
            gelu,
            gate.data_ptr(),
            up.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return _gated(gate, up, gelu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        with _named("clara::gated_activation_backward"):
            native.gated_gradient(
                gate.numel(),
                _type(gate),
                ctx.gelu,
                gate.data_ptr(),
                up.data_ptr(),
                grad.data_ptr(),
                grad_gate.data_ptr(),
                grad_up.data_ptr(),
                torch.get_num_threads(),
            )
        return grad_gate, grad_up, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor, dtype: torch.dtype) -> Tensor:
        cosines, sines = cosines.float().contiguous(), sines.float().contiguous()
        ctx.save_for_backward(cosines, sines)
        ctx.dtype = x.dtype
        return _rotated(x, cosines, sines, dtype, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(grad, cosines, sines, ctx.dtype, True), None, None, None


def _rotated(
    x: Tensor, cosines: Tensor, sines: Tensor, dtype: torch.dtype, transposed: bool
) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    heads, head_dim = x.shape[-2:]
    with _named("clara::rotate"):
        native.rotate(
            cosines.numel() // max(head_dim, 1),
            heads,
            head_dim,
            _type(x),
            _type(out),
            transposed,
            x.data_ptr(),
            cosines.data_ptr(),
            sines.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out
