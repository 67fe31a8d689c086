"""Layers of known backbones with fewer passes over memory, for packed forwards on CPUs.

Transformers writes norms, gated activations and rotary embeddings as many small operations, each
with a tensor of its own, which autograd keeps. `clara_kernels.elementwise` has them in one pass
each. What is used for a module is decided by one rule, `_fused`: its class is exactly one of those
below, and nothing was changed about it. All other modules keep transformers' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from clara.backbone.projection import is_fast
from clara.backbone.recognition import (
    LLAMA_LIKE,
    SILU,
    class_name,
    difference,
    has_global_hooks,
    modules_without_adapters,
)
from clara_kernels.adapted_linear import adapted_linear
from clara_kernels.elementwise import (
    computes_here,
    gated_activation,
    rms_norm,
    rms_norm_of_sum,
    rotate,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GEMMAS = {
    "Gemma": "transformers.models.gemma.modeling_gemma",
    "Gemma2": "transformers.models.gemma2.modeling_gemma2",
    "Gemma3": "transformers.models.gemma3.modeling_gemma3",
}


def _classes(families: dict[str, str], kind: str) -> set[str]:
    return {f"{module}.{family}{kind}" for family, module in families.items()}


_LAYERS = _classes(LLAMA_LIKE, "DecoderLayer")
_ATTENTIONS = _classes(LLAMA_LIKE, "Attention")
_NETWORKS = _classes(LLAMA_LIKE | _GEMMAS, "MLP")
_NORMS = _classes(LLAMA_LIKE | {"Phi3": "transformers.models.phi3.modeling_phi3"}, "RMSNorm")
_OFFSET_NORMS = _classes(_GEMMAS, "RMSNorm")  # whose weight is what is added to 1
_LINEAR = "torch.nn.modules.linear.Linear"
_KNOWN = {_LINEAR} | _LAYERS | _ATTENTIONS | _NETWORKS | _NORMS | _OFFSET_NORMS
_ACTIVATIONS = dict.fromkeys(SILU, "silu") | {"transformers.activations.GELUTanh": "gelu_tanh"}

Forward = Callable[..., Any]


class FusedLayers:
    """The modules of a backbone that compute otherwise within `active`, and what they compute.

    Attributes:
        forwards: each module with its other `forward`.
    """

    def __init__(self, forwards: list[tuple[nn.Module, Forward]]) -> None:
        self.forwards = forwards

    @classmethod
    def of(cls, backbone: PreTrainedModel, embeddings: Tensor) -> FusedLayers:
        """For a forward pass over `embeddings`: none of the modules on a GPU, in another dtype than
        float32 and bfloat16, under torch.compile, or where nothing was compiled.
        """
        if torch.compiler.is_compiling() or has_global_hooks() or not computes_here(embeddings):
            return cls([])
        modules = modules_without_adapters(backbone)
        found = ((each, _fused(each)) for each in modules if class_name(each) in _KNOWN)
        return cls([(module, forward) for module, forward in found if forward is not None])

    @contextmanager
    def active(self) -> Iterator[None]:
        """For the thread that holds the lock of the backbone's adapters."""
        states = [(vars(module), forward) for module, forward in self.forwards]
        before = [state.get("forward") for state, _ in states]
        # Not by nn.Module.__setattr__, which takes longer than all the rest.
        for state, forward in states:
            state["forward"] = forward
        try:
            yield
        finally:
            for (state, _), former in zip(states, before, strict=True):
                if former is None:
                    del state["forward"]
                else:
                    state["forward"] = former


def _fused(module: nn.Module) -> Forward | None:
    """Another `forward` of a module that computes the same; None for one that we do not know."""
    name = class_name(module)
    if name == _LINEAR:
        return partial(_project, module) if is_fast(module) else None
    if name in _NORMS or name in _OFFSET_NORMS:
        norm = _norm(module)
        return None if norm is None else norm.forward
    if name in _NETWORKS:
        return _network(module)
    if difference(module, type(module)) is not None:
        return None
    if name in _ATTENTIONS:
        return partial(_attend, module)
    return _layer(module) if name in _LAYERS else None


class _Norm(NamedTuple):
    weight: Tensor
    epsilon: float
    keeps_dtype: bool  # of its input, whatever that of the weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype if self.keeps_dtype else None
        return rms_norm(hidden_states, self.weight, self.epsilon, dtype=dtype)


def _norm(module: Any) -> _Norm | None:
    if difference(module, type(module)) is not None:
        return None
    weight = module.weight
    # One of a class of its own may be a part of a sharded weight.
    plain = type(weight) in (Tensor, nn.Parameter)
    trained = weight.requires_grad and torch.is_grad_enabled()
    if not plain or trained or not computes_here(weight):
        return None
    if class_name(module) in _OFFSET_NORMS:
        return _Norm(1.0 + weight.float(), module.eps, True)
    return _Norm(weight, module.variance_epsilon, False)


def _project(layer: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
        return adapted_linear(x, layer.weight, layer.bias)
    return nn.Linear.forward(layer, x)


def _network(module: Any) -> Forward | None:
    activation = module.act_fn
    name = _ACTIVATIONS.get(class_name(activation))
    changed = any(difference(each, type(each)) for each in (module, activation))
    return None if name is None or changed else partial(_gate, module, name)


def _gate(network: Any, activation: str, x: Tensor) -> Tensor:
    made = gated_activation(network.gate_proj(x), network.up_proj(x), activation)
    found: Tensor = network.down_proj(made)
    return found


def _layer(layer: Any) -> Forward | None:
    norms = layer.input_layernorm, layer.post_attention_layernorm
    if any(class_name(norm) not in _NORMS for norm in norms):
        return None
    before, between = (_norm(norm) for norm in norms)
    if before is None or between is None:
        return None
    return partial(_checkpointed, layer, before, between)


def _checkpointed(
    layer: Any, before: _Norm, between: _Norm, hidden_states: Tensor, **options: Any
) -> Tensor:
    """`_pass`, checkpointed where the layer's own `forward` would be.

    Versions of transformers differ in that: in some it is `__call__` that checkpoints, around
    whichever `forward` there is.
    """
    work: Forward = partial(_pass, layer, before, between, **options)
    in_forward = type(layer).__call__ is nn.Module.__call__
    if in_forward and layer.gradient_checkpointing and layer.training:
        found: Tensor = layer._gradient_checkpointing_func(work, hidden_states)
    else:
        found = work(hidden_states)
    return found


def _pass(
    layer: Any, before: _Norm, between: _Norm, hidden_states: Tensor, **options: Any
) -> Tensor:
    """A layer whose two sums are made with the norms that follow or precede them."""
    residual, normed = rms_norm_of_sum(hidden_states, None, before.weight, before.epsilon)
    attended, _ = layer.self_attn(hidden_states=normed, **options)
    residual, normed = rms_norm_of_sum(residual, attended, between.weight, between.epsilon)
    found: Tensor = residual + layer.mlp(normed)
    return found


def _attend(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention without a cache; queries and keys come in the dtype that attention computes in."""
    # Here, as transformers takes long to import.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    query, key, value = (project(hidden_states).view(shape) for project in projections)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    query, key = (rotate(each, *position_embeddings, dtype=dtype) for each in (query, key))
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    options.pop("past_key_values", None)  # a packed forward keeps none
    out, weights = attend(
        attention,
        *(each.transpose(1, 2) for each in (query, key, value)),
        attention_mask,
        scaling=attention.scaling,
        **options,
    )
    return attention.o_proj(out.flatten(-2)), weights
