"""Put a backbone's linear layers into 8 bits while transformers loads it, one after another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from clara.backbone.int8 import Int8Linear, quantized_rows

_METHOD = "clara_int8"


@register_quantization_config(_METHOD)
class Int8Config(QuantizationConfigMixin):
    """Asks `from_pretrained` for `Int8Linear` in place of linear layers."""

    def __init__(self) -> None:
        self.quant_method = _METHOD


@register_quantizer(_METHOD)
class Int8Quantizer(HfQuantizer):
    """Holds all linear layers but the output head in 8 bits, as they are read from files.

    The output head stays, as it does with bitsandbytes. Where it is the matrix of the embeddings,
    a copy in 8 bits would take memory. Where it is not, a step of the decoder would be a tenth
    shorter at most.

    Raises:
        ValueError: the backbone has none, or has such of other kinds.
    """

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        head = model.get_output_embeddings()
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
        other = next((m for m in found.values() if type(m) is not nn.Linear), None)
        if other is not None or not found:
            has = "no linear layers" if other is None else f"layers of {type(other).__name__}"
            raise ValueError(
                f"quantization='int8' on a CPU needs plain linear layers, it has {has}"
            )
        stacked = next((name for name, p in model.named_parameters() if p.dim() > 2), None)
        if stacked is not None:
            raise ValueError(
                f"quantization='int8' on a CPU needs plain linear layers, and {stacked} is a stack "
                "of matrices"
            )
        for name, module in found.items():
            parent, _, attribute = name.rpartition(".")
            layer = Int8Linear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                dtype=module.weight.dtype,
            )
            setattr(model.get_submodule(parent), attribute, layer)

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        module, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(module), Int8Linear)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        # Not every release of transformers compares the shapes of weights that are quantized.
        for name, layer in model.named_modules():
            if isinstance(layer, Int8Linear):
                wanted, found = [layer.out_features, layer.in_features], list(layer.weight.shape)
                if found != wanted:
                    raise ValueError(f"{name}.weight is {found}, expected {wanted}")

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Quantize(ConversionOps):
    """Codes and scales in place of a weight that was read."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            codes, scales = quantized_rows(value[0] if isinstance(value, list) else value)
            made[name] = nn.Parameter(codes, requires_grad=False)
            made[name.removesuffix("weight") + "scales"] = scales
        return made
