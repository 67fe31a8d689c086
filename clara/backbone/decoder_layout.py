"""Find a backbone's weights for the decoder of clara_kernels, which reads one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clara.backbone.output_path import applies_head_alone, body_of
from clara_kernels import build_info
from clara_kernels.decoding import Decoder, DecoderWeights, LayerWeights, LinearWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYERS = {
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer",
    "transformers.models.mistral.modeling_mistral.MistralDecoderLayer",
    "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer",
    "transformers.models.qwen3.modeling_qwen3.Qwen3DecoderLayer",
}
"""Layers that compute what `clara_kernels.decoding` does. Other families differ in norms, scales,
activations or windows, and a subclass may differ in anything."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _OtherLayout(Exception):
    """The backbone is not of the layout that the decoder computes."""


def decoder_of(backbone: PreTrainedModel) -> Decoder | None:
    """A decoder over the backbone's weights as they are, with the adapter that is active now.

    Returns:
        None where a step of the decoder would not compute what the backbone does: another layout,
        device or dtype, quantized weights, hooks, autocast.
        None too where the compiled module is missing, without which it is not fast.
    """
    if torch.is_autocast_enabled("cpu") or not build_info()["compiled"]:
        return None
    with suppress(_OtherLayout, AttributeError):
        return Decoder(_weights(backbone))
    return None


def _weights(backbone: PreTrainedModel) -> DecoderWeights:
    body: Any = body_of(backbone)
    layers = list(body.layers)
    attention = [layer.self_attn for layer in layers]
    norms = [body.norm, *(norm for layer in layers for norm in _norms(layer))]
    epsilons = {norm.variance_epsilon for norm in norms}
    scalings = {each.scaling for each in attention}
    head_dims = {each.head_dim for each in attention}
    _require(applies_head_alone(backbone))
    _require(backbone.config.hidden_act == "silu")
    _require(len(epsilons) == len(scalings) == len(head_dims) == 1)
    _require(not any(hooks for module in _modules(backbone) for hooks in _hooks(module)))
    (head_dim,) = head_dims
    weights = [_layer(layer) for layer in layers]
    return DecoderWeights(
        layers=weights,
        final_norm=body.norm.weight,
        head=_linear(backbone.get_output_embeddings()),
        heads=weights[0].query.outputs // head_dim,
        key_heads=weights[0].key.outputs // head_dim,
        head_dim=head_dim,
        epsilon=epsilons.pop(),
        score_scaling=scalings.pop(),
    )


def _require(condition: bool) -> None:
    if not condition:
        raise _OtherLayout


def _norms(layer: Any) -> Iterator[Any]:
    yield from (layer.input_layernorm, layer.post_attention_layernorm)
    yield from (getattr(layer.self_attn, name) for name in _head_norms(layer))


def _head_norms(layer: Any) -> list[str]:
    return [name for name in ("q_norm", "k_norm") if hasattr(layer.self_attn, name)]


def _modules(backbone: PreTrainedModel) -> Iterator[nn.Module]:
    """All modules that a forward pass calls. By hand: `modules()` takes milliseconds."""
    found: list[nn.Module] = [backbone]
    for module in found:  # which grows
        yield module
        found.extend(child for child in module._modules.values() if child is not None)


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield from (vars(module)[name] for name in _HOOKS)


def _layer(layer: Any) -> LayerWeights:
    kind = type(layer)
    _require(f"{kind.__module__}.{kind.__qualname__}" in _LAYERS)
    attention, network = layer.self_attn, layer.mlp
    norms = {name: getattr(attention, name).weight for name in _head_norms(layer)}
    return LayerWeights(
        attention_norm=layer.input_layernorm.weight,
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        output=_linear(attention.o_proj),
        network_norm=layer.post_attention_layernorm.weight,
        gate=_linear(network.gate_proj),
        up=_linear(network.up_proj),
        down=_linear(network.down_proj),
        query_norm=norms.get("q_norm"),
        key_norm=norms.get("k_norm"),
    )


def _linear(module: Any) -> LinearWeights:
    from clara.backbone.lora import MergingLinear

    if type(module) is nn.Linear:
        return LinearWeights(_matrix(module.weight), module.bias)
    _require(type(module) is MergingLinear)
    base = module.get_base_layer()
    _require(type(base) is nn.Linear)
    if module.disable_adapters or module.merged:
        return LinearWeights(_matrix(base.weight), base.bias)
    (name,) = module.active_adapters
    return LinearWeights(
        _matrix(base.weight),
        base.bias,
        down=_matrix(module.lora_A[name].weight),
        up=_matrix(module.lora_B[name].weight),
        scaling=float(module.scaling[name]),
    )


def _matrix(weight: Tensor) -> Tensor:
    _require(weight.device.type == "cpu" and weight.dtype in _DTYPES)
    return weight
