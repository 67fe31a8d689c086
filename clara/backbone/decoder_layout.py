"""Find a backbone's weights for the decoder of clara_kernels, which reads one token at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clara.backbone.int8 import Int8Linear
from clara.backbone.output_path import applies_head_alone, body_of
from clara.backbone.recognition import (
    LLAMA_LIKE,
    SILU,
    class_name,
    difference,
    has_global_hooks,
)
from clara_kernels import build_info
from clara_kernels.decoding import DecoderWeights, LayerWeights, LinearWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)


class Undecodable(Exception):
    """The decoder would not compute what the backbone does; the message says why."""


def decoder_weights(backbone: PreTrainedModel) -> DecoderWeights:
    """The backbone's weights as they are, with the adapter that is active now.

    Raises:
        Undecodable: it is of another layout, device or dtype, is quantized by bitsandbytes, has
            been patched, or computes under autocast; or the compiled module is missing, without
            which decoding is not fast.
    """
    _require(build_info()["compiled"], "clara_kernels was not compiled")
    _require(not torch.is_autocast_enabled("cpu"), "autocast is on")
    _require(not has_global_hooks(), "PyTorch has global hooks")
    body: Any = body_of(backbone)
    family = next((n for n, m in LLAMA_LIKE.items() if class_name(body) == f"{m}.{n}Model"), None)
    _require(family is not None, f"{type(body).__name__} is of another layout")
    return _weights(backbone, body, str(family))


def _weights(backbone: PreTrainedModel, body: Any, family: str) -> DecoderWeights:
    layers = list(body.layers)
    _require(len(layers) == backbone.config.num_hidden_layers, "not all layers are used")
    _require_unpatched(backbone, type(backbone))
    _require_unpatched(body, type(body))
    _require_of(body.rotary_emb, family, "RotaryEmbedding")
    _require_unpatched(backbone.get_input_embeddings(), nn.Embedding)
    _require(applies_head_alone(backbone), "its logits are not those of its output head")
    found = [_layer(layer, family) for layer in layers]
    norms = [_norm(body.norm, family), *(norm for _, *own in found for norm in own)]
    epsilons = {epsilon for _, epsilon in norms}
    scalings = {layer.self_attn.scaling for layer in layers}
    head_dims = {layer.self_attn.head_dim for layer in layers}
    _require(len(epsilons) == len(scalings) == len(head_dims) == 1, "its layers differ")
    (head_dim,) = head_dims
    weights = [layer for layer, *_ in found]
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


def _layer(layer: Any, family: str) -> tuple[Any, ...]:
    """The weights of a layer, and each of its norms with its epsilon."""
    attention, network = layer.self_attn, layer.mlp
    _require_of(layer, family, "DecoderLayer")
    _require_of(attention, family, "Attention")
    _require_of(network, family, "MLP")
    _require(class_name(network.act_fn) in SILU, "its activation is not SiLU")
    _require_unpatched(network.act_fn, type(network.act_fn))
    heads = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    before, between, *of_heads = norms = [
        _norm(each, family)
        for each in (layer.input_layernorm, layer.post_attention_layernorm, *heads)
    ]
    query_norm, key_norm = (weight for weight, _ in of_heads) if of_heads else (None, None)
    found = LayerWeights(
        attention_norm=before[0],
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        output=_linear(attention.o_proj),
        network_norm=between[0],
        gate=_linear(network.gate_proj),
        up=_linear(network.up_proj),
        down=_linear(network.down_proj),
        query_norm=query_norm,
        key_norm=key_norm,
    )
    return found, *norms


def _norm(module: Any, family: str) -> tuple[Tensor, float]:
    _require_of(module, family, "RMSNorm")
    return _tensor(module.weight), module.variance_epsilon


def _linear(module: Any) -> LinearWeights:
    from clara.backbone.lora import AdaptedInt8Linear, MergingLinear

    if type(module) not in (MergingLinear, AdaptedInt8Linear):
        return _held(module)
    _require_unpatched(module, type(module))
    held = _held(module.get_base_layer())
    if module.disable_adapters or module.merged:
        return held
    _require(len(module.active_adapters) == 1, "several adapters are active")
    (name,) = module.active_adapters
    return replace(
        held,
        down=_tensor(module.lora_A[name].weight),
        up=_tensor(module.lora_B[name].weight),
        scaling=float(module.scaling[name]),
    )


def _held(module: Any) -> LinearWeights:
    """A linear layer in a floating-point dtype or in 8 bits, without an adapter."""
    if type(module) is not Int8Linear:
        _require_unpatched(module, nn.Linear)
        return LinearWeights(_tensor(module.weight), _bias(module))
    _require_unpatched(module, Int8Linear)
    codes = _tensor(module.weight, (torch.int8,))
    return LinearWeights(codes, _bias(module), row_scales=_tensor(module.scales))


def _bias(module: nn.Linear) -> Tensor | None:
    return None if module.bias is None else _tensor(module.bias)


def _tensor(tensor: Tensor, dtypes: tuple[torch.dtype, ...] = _DTYPES) -> Tensor:
    _require(type(tensor) in _PLAIN, f"a weight is a {type(tensor).__name__}")
    _require(tensor.device.type == "cpu", "it is not on a CPU")
    _require(tensor.dtype in dtypes, f"a weight is in {tensor.dtype}")
    return tensor


def _require_of(module: nn.Module, family: str, kind: str) -> None:
    wanted = f"{LLAMA_LIKE[family]}.{family}{kind}"
    _require(class_name(module) == wanted, f"{type(module).__name__} is of another layout")
    _require_unpatched(module, type(module))


def _require_unpatched(module: Any, kind: type) -> None:
    found = difference(module, kind)
    _require(found is None, str(found))


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Undecodable(otherwise)
