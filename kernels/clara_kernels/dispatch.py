"""Declares operators to PyTorch's dispatcher: one meaning, one implementation per device.

`declare` is called once per operator. Which implementation serves a call depends on the device of
its tensors alone:

- cuda: the Triton kernels; the reference if an argument is float64 or triton is not installed;
- cpu: vectorised PyTorch where that beats the reference, else the reference;
- any other device: the reference.

A kernel that fails raises. Nothing falls back after a failure.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

Implementation = Callable[..., Any]
Arguments = tuple[Any, ...]
IMPLEMENTATIONS = ("reference", "cpu", "triton")

_on_cpu: str | None = None
_declared: dict[str, tuple[bool, bool]] = {}  # whether it has a CPU path and kernels of its own


@contextmanager
def cpu_tensors_use(implementation: str) -> Iterator[None]:
    """Serve CPU tensors by one of IMPLEMENTATIONS, to compare them; for the whole process.

    "triton" runs the kernels in Triton's interpreter, slowly, and needs TRITON_INTERPRET=1 in the
    environment before triton is imported.

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: "triton" without the interpreter.
    """
    global _on_cpu
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation == "triton" and not os.environ.get("TRITON_INTERPRET"):
        raise RuntimeError("Triton runs on CPU tensors only with TRITON_INTERPRET=1 set")
    before, _on_cpu = _on_cpu, implementation
    try:
        yield
    finally:
        _on_cpu = before


def needs_no_dispatcher(*tensors: Tensor) -> bool:
    """Whether an operator's `cpu` implementation may be called as it is.

    PyTorch's dispatcher runs through some ten functions in Python, which for a few rows takes
    longer than the operator. It is needed for other devices, gradients, transforms such as vmap,
    compilation, subclasses of tensors, modes that look at operators, such as a profiler, and
    `cpu_tensors_use`.
    """
    return (
        _on_cpu is None
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not _profiler_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and all(type(each) is Tensor and each.device.type == "cpu" for each in tensors)
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
    )


@cache
def has_triton() -> bool:
    """Whether the Triton kernels can be used, looked up without importing triton."""
    return find_spec("triton") is not None


def declare(
    name: str,
    schema: str,
    *,
    fake: Implementation,
    reference: Implementation,
    cpu: Implementation | None = None,
    triton: str | None = None,
    pack: Callable[[Arguments], Arguments] | None = None,
) -> None:
    """Define `clara::name` and register what computes it.

    All implementations take the schema's arguments in order, or what `pack` makes of them. None may
    read a CUDA tensor's values on the host.

    Args:
        schema: such as "(Tensor x) -> Tensor".
        fake: shapes and dtypes of the result.
        reference: any device.
        cpu: for CPU tensors; None if the reference is fast there.
        triton: "module:function" below `clara_kernels`, imported at its first call; None for an
            operator without kernels.
        pack: puts several of the schema's arguments into one, such as a record of options. A schema
            can hold no record.
    """
    full = f"clara::{name}"
    _declared[name] = cpu is not None, triton is not None
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(full, fake)

    def packed(arguments: Arguments) -> Arguments:
        return arguments if pack is None else pack(arguments)

    def on_cpu(*arguments: Any) -> Any:
        arguments = packed(arguments)
        if _on_cpu == "triton" and triton is not None:
            return _launcher(triton)(*arguments)
        # Autocast would round the operands of a matrix product inside.
        with _without_autocast("cpu"):
            chosen = reference if cpu is None or _on_cpu == "reference" else cpu
            return chosen(*arguments)

    def on_cuda(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        if triton is None or wide or not has_triton():
            with _without_autocast("cuda"):
                return reference(*packed(arguments))
        # Triton launches on the current device, whichever that of its arguments is.
        index = tensors[0].device.index
        guard = nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index)
        with guard:
            return _launcher(triton)(*packed(arguments))

    def elsewhere(*arguments: Any) -> Any:
        return reference(*packed(arguments))

    torch.library.register_kernel(full, None, elsewhere)
    torch.library.register_kernel(full, "cpu", on_cpu)
    torch.library.register_kernel(full, "cuda", on_cuda)


class _DifferentiatedOnce(torch.autograd.Function):
    """Gradients as they are, and an error for who differentiates them."""

    @staticmethod
    def forward(ctx: Any, name: str, *found: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        raise RuntimeError(f"{ctx.name} can be differentiated once, not twice")


def differentiated_once(name: str, found: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What a backward pass returns where PyTorch does not know what its gradients depend on.

    A second derivative that runs through them is an error in place of a part that is left out.
    That they do not depend on anything that has a gradient is not looked at: they may still, by
    what the forward pass computed without one.

    Args:
        name: of the operator.
        found: gradients; None for what has none.
    """
    if not torch.is_grad_enabled():  # a second derivative is not asked for
        return tuple(found)
    given = [each.detach().requires_grad_() for each in found if each is not None]
    left = iter(_DifferentiatedOnce.apply(name, *given))
    return tuple(None if each is None else next(left) for each in found)


def register_gradient(
    name: str,
    arguments: Callable[[Arguments, Arguments], Arguments],
    *,
    gradients: int = 1,
    outputs: Sequence[int] = (0,),
    asks: bool = False,
) -> None:
    """Make `clara::name` differentiable by the operator `clara::name_backward`.

    That takes the gradients of the differentiable outputs, `arguments(inputs, outputs)` of the
    forward call, and, if it `asks`, for each of the first inputs whether its gradient is needed. It
    returns the gradients of the first inputs. It is not called where no output has a gradient.
    Whoever asks for a second derivative is refused: of what the module compiled, PyTorch would
    leave it out.

    Args:
        arguments: a tuple, from the tuples of all inputs and of all outputs.
        gradients: how many of the first inputs have one.
        outputs: places of the differentiable outputs. With more than one, a gradient that is
            missing is None.
    """
    backward_name = f"{name}_backward"

    def setup_context(ctx: Any, inputs: Arguments, output: Tensor | Arguments) -> None:
        returned = output if isinstance(output, tuple) else (output,)
        kept = arguments(inputs, returned)
        # None in the place of each tensor: tensors are kept by the context, to be found by it.
        ctx.others = [None if isinstance(value, Tensor) else value for value in kept]
        ctx.places = [place for place, value in enumerate(kept) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(kept[place] for place in ctx.places))
        hidden = [value for place, value in enumerate(returned) if place not in outputs]
        ctx.mark_non_differentiable(*hidden)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *upstream: Tensor | None) -> Arguments:
        nothing = (None,) * len(ctx.needs_input_grad)
        given = [upstream[place] for place in outputs]
        if all(gradient is None for gradient in given):
            return nothing
        kept = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            kept[place] = tensor
        needs = ctx.needs_input_grad[:gradients]
        operator = getattr(torch.ops.clara, backward_name)
        found = operator(*given, *kept, *(needs if asks else ()))
        found = found if isinstance(found, tuple) else (found,)
        used = [gradient if need else None for gradient, need in zip(found, needs, strict=True)]
        return *differentiated_once(name, used), *nothing[gradients:]

    torch.library.register_autograd(f"clara::{name}", backward, setup_context=setup_context)


def declared() -> list[str]:
    """Names of the operators that `declare` was called for, and of their backward passes."""
    return list(_declared)


def computed_by(name: str) -> dict[str, str]:
    """Which of IMPLEMENTATIONS serves a declared operator on "cpu" and on "cuda"."""
    cpu, triton = _declared[name]
    return {
        "cpu": "cpu" if cpu else "reference",
        "cuda": "triton" if triton and has_triton() else "reference",
    }


def _without_autocast(device_type: str) -> Any:
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@cache
def _launcher(path: str) -> Implementation:
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)


def scalar_tensor(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A 0-d tensor of a number or a 0-d tensor, as operators take what changes between calls.

    A number is filled in on the device: nothing waits, and no graph is compiled again for it.
    """
    if device.type == "cuda" and isinstance(value, Tensor) and value.dim() == 0 and may_read(value):
        value = value.item()  # copied as a tensor it would wait for the device
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)


def may_read(tensor: Tensor) -> bool:
    """Whether a check may look at values: on the CPU, and not under torch.compile or torch.vmap."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return not torch._C._functorch.is_batchedtensor(tensor)
