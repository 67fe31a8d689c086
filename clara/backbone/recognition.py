"""Whether a module is exactly one that we know, and not one that computes something else."""

from __future__ import annotations

from typing import Any

from torch import nn
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


def modules_without_adapters(module: nn.Module) -> list[nn.Module]:
    """What `module.modules()` yields, but for what is within our LoRA layers that do not train.

    Nine tenths of the modules of a backbone with three adapters are there, and each forward pass
    looks at all modules: that would take milliseconds.
    """
    found, known = [module], {id(module)}
    for one in found:  # which grows
        if not one.training and getattr(type(one), "is_leaf_in_evaluation", False):
            continue
        for child in one._modules.values():
            if child is not None and id(child) not in known:
                known.add(id(child))
                found.append(child)
    return found


def class_name(module: Any) -> str:
    """The name of a module's class, with the Python module that defines it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def has_global_hooks() -> bool:
    """Whether PyTorch calls something around every module."""
    return any(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def _is_own(kind: type[nn.Module], forward: Any) -> bool:
    """Whether a class's `forward` is the one it was defined with: libraries put others there."""
    owner = next(each for each in kind.__mro__ if "forward" in vars(each))
    own = owner.__module__, f"{owner.__qualname__}.forward"
    return (forward.__module__, forward.__qualname__) == own


def difference(module: Any, kind: type[nn.Module]) -> str | None:
    """What sets a module apart from a plain one of a class; None if nothing does.

    Another class, hooks, or a `forward` that was put on the object or on its class.
    """
    if type(module) is not kind:
        return f"{type(module).__name__} is of another layout"
    state = vars(module)
    if "forward" in state or not _is_own(kind, kind.forward):
        return f"forward of a {kind.__name__} was replaced"
    if any(state[name] for name in _HOOKS):
        return f"a {kind.__name__} has hooks"
    return None
