"""A plain causal language model of transformers that contains an adapter: for other programs."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from clara.backbone.files import resolve_backbone
from clara.backbone.sharding import whole
from clara.terminal.progress import byte_progress

_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}
_WORTH_A_BAR = 1 << 28  # bytes; less is merged in the blink of an eye


@dataclass(frozen=True)
class PlainModel:
    """A model without LoRA layers.

    Attributes:
        model: its weights are in one dtype, on the CPU. It is there to be saved: what a model
            derives from its configuration, such as the angles of positions, has no values.
        rounding: what rounding to that dtype took from the merged weights, relative to what the
            adapter added to them: the ratio of the norms of both, over all layers. 0 in float32,
            None for an adapter that adds nothing.
    """

    model: transformers.PreTrainedModel
    rounding: float | None


def stored_dtype(name_or_path: str) -> torch.dtype | None:
    """The dtype that a backbone's configuration says its weights are stored in, if it does.

    Raises:
        BackboneError: there is no such backbone.
    """
    file = Path(resolve_backbone(name_or_path)) / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    found = settings.get("dtype") or settings.get("torch_dtype")
    return _DTYPES.get(found) if isinstance(found, str) else None


def empty_plain_model(backbone: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """A model like a backbone, neither adapted nor quantized, whose weights take no memory."""
    config = copy.deepcopy(backbone.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return model


def stored_bytes(model: transformers.PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of a model's weights in a dtype; tied ones count once."""
    tensors = {id(value): value for value in model.state_dict(keep_vars=True).values()}
    return sum(value.numel() * dtype.itemsize for value in tensors.values())


@torch.no_grad()
def plain_model(
    backbone: transformers.PreTrainedModel,
    adapter: str,
    dtype: torch.dtype,
    *,
    release: bool = False,
) -> PlainModel:
    """A backbone with an adapter merged into its weights.

    Each weight is made in float32 and rounded to `dtype` once. A quantized weight is what the
    quantized backbone computes with, so nothing but the layer's own sum is new.

    Weights that the adapter leaves alone are shared with the backbone where they have the dtype.

    Args:
        release: put what was made in the place of the backbone's own weights, so that no second
            copy is held; the backbone cannot be used afterwards. Else the linear layers' weights
            are held twice.

    Raises:
        ValueError: a weight is stored in a form that cannot be merged into, or a merged one is not
            finite, or not in `dtype`.
    """
    # Here, as peft takes seconds to import, which a model that is only named need not wait for.
    from clara.backbone.lora_library import LoraLayer

    model = empty_plain_model(backbone)
    total = stored_bytes(model, dtype)
    state: dict[str, Tensor] = {}
    lost = added = 0.0
    with byte_progress("merge", total, visible=total >= _WORTH_A_BAR) as bar:
        for names, module, leaf in _sources(backbone, model):
            owner = _base(module)
            exact = made = _dequantized(owner, leaf, names[0])
            if leaf == "weight" and isinstance(module, LoraLayer):
                change = _change(module, adapter)
                exact = exact.float() + change
                made = _rounded(exact, dtype, names[0])
                added += float(change.square().sum())
                lost += float(change.copy_(made).sub_(exact).square_().sum())
            elif exact.is_floating_point():
                made = _rounded(exact, dtype, names[0])
            state.update(dict.fromkeys(names, made))
            if release:
                setattr(owner, leaf, _in_place_of(getattr(owner, leaf), made))
            bar.advance(made.nbytes)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.requires_grad_(False)
    return PlainModel(model, math.sqrt(lost / added) if added else None)


def _sources(backbone: nn.Module, model: nn.Module) -> list[tuple[list[str], nn.Module, str]]:
    """Names of each weight and saved buffer of a plain model, and where the backbone has it: a
    module and the attribute of it, or of the layer that it adapts. Tied weights are one.

    Raises:
        ValueError: the backbone has one of them under no such name.
    """
    found: dict[int, tuple[list[str], nn.Module, str]] = {}
    for name in model.state_dict():
        path, _, leaf = name.rpartition(".")
        try:
            module = backbone.get_submodule(path)
            value = getattr(_base(module), leaf)
        except AttributeError as error:
            raise ValueError(
                f"the backbone holds no {name}, as it is stored in another form; use the backbone "
                "as it was before it was quantized"
            ) from error
        found.setdefault(id(value), ([], module, leaf))[0].append(name)
    return list(found.values())


def _base(module: nn.Module) -> nn.Module:
    """The layer that a LoRA layer adapts; any other is its own."""
    from clara.backbone.lora_library import LoraLayer

    base: nn.Module = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return base


def _dequantized(layer: Any, leaf: str, name: str) -> Tensor:
    """A weight or buffer on the CPU; in float32 if it is quantized."""
    from clara.backbone.int8 import Int8Linear

    value = getattr(layer, leaf)
    # Of 8 bits in floating point, a weight has scales beside it.
    if leaf != "weight" or (value.is_floating_point() and value.dtype.itemsize > 1):
        return whole(value.detach()).cpu()
    if isinstance(layer, Int8Linear):
        return layer.weight.float().mul_(layer.scales[:, None])
    if type(value).__module__.startswith("bitsandbytes."):
        from peft.utils.integrations import dequantize_module_weight

        return dequantize_module_weight(layer).detach().float().cpu()
    raise ValueError(
        f"{name} is stored as {str(value.dtype).removeprefix('torch.')} by {type(layer).__name__}, "
        "into which no adapter can be merged; use the backbone as it was before it was quantized"
    )


def _change(layer: Any, adapter: str) -> Tensor:
    """What an adapter adds to a layer's weight, in float32 on the CPU."""
    down, up = (
        whole(side[adapter].weight.detach()).cpu().float() for side in (layer.lora_A, layer.lora_B)
    )
    change = (up @ down).mul_(layer.scaling[adapter])
    # GPT-2's layers keep their weights transposed.
    return change.T.contiguous() if layer.fan_in_fan_out else change


def _rounded(exact: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Raises a ValueError if it is not finite."""
    made = exact.to(dtype)
    if made.isfinite().all():
        return made
    if exact.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds {exact.abs().max():.4g}, more than {kind} can: choose another dtype"
        )
    raise ValueError(f"{name} holds values that are not finite: the adapter or the backbone is bad")


def _in_place_of(value: Tensor, made: Tensor) -> Tensor:
    return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
