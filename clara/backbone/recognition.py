"""Whether a module is exactly one that we know, and not one that computes something else."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as torch_module

LLAMA_LIKE = {
    "Llama": "transformers.models.llama.modeling_llama",
    "Mistral": "transformers.models.mistral.modeling_mistral",
    "Qwen2": "transformers.models.qwen2.modeling_qwen2",
    "Qwen3": "transformers.models.qwen3.modeling_qwen3",
}
"""Families whose layers compute what Llama's do, but for biases and norms of heads, and the modules
of transformers that hold their classes. Others differ in norms, scales, activations or windows, and
a subclass of theirs may differ in anything."""

SILU = {"transformers.activations.SiLUActivation", "torch.nn.modules.activation.SiLU"}

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def class_name(module: Any) -> str:
    """The name of a module's class, with the Python module that defines it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def has_global_hooks() -> bool:
    """Whether PyTorch calls something around every module."""
    return any(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def difference(module: Any, kind: type) -> str | None:
    """What sets a module apart from a plain one of a class; None if nothing does.

    Another class, hooks, or a `forward` that was put on the object.
    """
    if type(module) is not kind:
        return f"{type(module).__name__} is of another layout"
    state = vars(module)
    if "forward" in state:
        return f"forward of a {kind.__name__} was replaced"
    if any(state[name] for name in _HOOKS):
        return f"a {kind.__name__} has hooks"
    return None
