"""Load the frozen causal language model that the adapters are attached to."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from clara.backbone.attention_patterns import (
    CLARA_SDPA,
    UnsupportedAttentionError,
    attention_patterns,
)
from clara.backbone.digest import backbone_digest, sampled_backbone_digest
from clara.backbone.digest_cache import cache_folder
from clara.backbone.files import BackboneError, convert_gguf, resolve_backbone
from clara.config import Attention, Quantization
from clara.errors import reason
from clara.terminal.loading_bars import bars_on_a_terminal_only

__all__ = [
    "BackboneError",
    "backbone_digest",
    "cache_folder",
    "convert_gguf",
    "load_backbone",
    "resolve_backbone",
    "sampled_backbone_digest",
]

_IMPLEMENTATION = {"sdpa": CLARA_SDPA, "flash_attention_2": "flash_attention_2"}


def load_backbone(
    name_or_path: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    attention: Attention = "sdpa",
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Load a causal language model, frozen and in evaluation mode, and its tokenizer.

    Args:
        name_or_path: hub id, folder, or GGUF file (converted once, kept in the cache folder).
        dtype: dtype of activations and of weights that are not quantized.
        quantization: "nf4" with bitsandbytes; "int8" with `clara.backbone.int8` on a CPU, with
            bitsandbytes on a GPU.
        attention: attention of ordinary forwards and generation; packed forwards follow it.

    Raises:
        BackboneError: the model is not found, is not a causal language model that supports the
            attention interface, or needs a package that is missing.
    """
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise BackboneError("attention='flash_attention_2' needs the package flash-attn")
    source = resolve_backbone(name_or_path)
    import clara.backbone.attention  # noqa: F401 - which tells transformers of it

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with bars_on_a_terminal_only():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                source,
                output_loading_info=True,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=_IMPLEMENTATION[attention],
                use_safetensors=True,  # never a pickle
                trust_remote_code=False,
                **_quantization_arguments(source, quantization, dtype, device),
            )
    except Exception as error:  # damaged files raise errors of every kind
        raise BackboneError(
            f"cannot load backbone {name_or_path!r}: {reason(error, 300)}"
        ) from error
    # A weight that becomes codes and scales is missing as both; the files have the weight alone.
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(".scales"))
    if missing:
        raise BackboneError(
            f"backbone {name_or_path!r} lacks the weights {missing[0]!r} ({len(missing)} in all)"
        )
    for layer in model.modules():
        # On processors with AVX512-BF16 bitsandbytes packs 4-bit weights anew at their first use,
        # which fails for widths that are no multiples of 32, and loses their double quantization.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.eval()
    flaw = _unsuitable(model)
    if flaw:
        raise BackboneError(f"backbone {name_or_path!r} ({type(model).__name__}) {flaw}")
    if not Path(name_or_path).expanduser().exists():  # on the hub
        model.config._name_or_path = name_or_path  # not the path in this machine's cache
    # Only token ids are kept: a checkpoint's sampling defaults would make answers random.
    stored = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=stored.bos_token_id,
        eos_token_id=stored.eos_token_id,
        pad_token_id=stored.pad_token_id,
    )
    return model, tokenizer


def _unsuitable(model: transformers.PreTrainedModel) -> str | None:
    """Why packed causal sequences cannot go through a model; None if they can."""
    if not getattr(model, "_supports_attention_backend", False):
        return "does not support transformers' attention interface"
    if not all(getattr(module, "is_causal", True) for module in model.modules()):
        return "is an encoder: its attention is not causal"
    kinds = set(getattr(model.config, "layer_types", None) or ())
    attention = {"full_attention", "sliding_attention", "chunked_attention"}
    if kinds - attention or getattr(model, "_is_stateful", False):
        return "has layers other than attention, which mix the documents of a packed sequence"
    if model.config._attn_implementation == CLARA_SDPA:
        try:
            attention_patterns(model)
        except UnsupportedAttentionError as error:
            return str(error)
    return None


def _quantization_arguments(
    source: str, quantization: Quantization | None, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    if quantization is None:
        return {}
    if quantization == "int8" and device.type == "cpu":
        from clara.backbone.int8_loading import Int8Config

        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise BackboneError("it is stored quantized, and quantization='int8' asks for another")
        return {"quantization_config": Int8Config()}
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"quantization={quantization!r} needs the package bitsandbytes")
    if quantization == "int8":
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }
