"""Loading the frozen causal language model that everything else is attached to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from clara.attention import CLARA_SDPA
from clara.attention_patterns import UnsupportedAttentionError, attention_patterns
from clara.config import Attention, Quantization

_IMPLEMENTATION = {"sdpa": CLARA_SDPA, "flash_attention_2": "flash_attention_2"}


class BackboneError(ValueError):
    """A backbone that cannot be found, read, or used."""


def load_backbone(
    name_or_path: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    attention: Attention = "sdpa",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, frozen and in evaluation mode, and its tokenizer.

    Args:
        name_or_path: hub id, folder, or GGUF file (converted once, kept in the cache folder).
        dtype: of activations and of weights that are not quantized.
        quantization: "nf4" or "int8" through bitsandbytes.
        attention: of ordinary forwards and generation; packed forwards follow it.

    Raises:
        BackboneError: not found, not a causal language model that supports the attention
            interface, or a package it needs is missing.
    """
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise BackboneError("attention='flash_attention_2' needs the package flash-attn")
    source = resolve_backbone(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=_IMPLEMENTATION[attention],
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
            **_quantization_arguments(quantization, dtype),
        )
    except Exception as error:  # damaged files raise errors of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackboneError(f"cannot load backbone {name_or_path!r}: {reason[:300]}") from error
    missing = sorted(report["missing_keys"])
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
    # Only token ids are kept: a checkpoint's sampling defaults would make answers random.
    stored = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=stored.bos_token_id,
        eos_token_id=stored.eos_token_id,
        pad_token_id=stored.pad_token_id,
    )
    return model, tokenizer


def _unsuitable(model: PreTrainedModel) -> str | None:
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


def backbone_digest(name_or_path: str) -> str:
    """SHA-256 over a sample of every stored weight: tells backbones apart, fine-tuned ones too.

    Read from the files, so that it does not depend on how the backbone is quantized in memory,
    and rounded to bfloat16, so that it does not depend on the dtype it is stored in.

    Raises:
        BackboneError: not found, or without safetensors files.
    """
    source = resolve_backbone(name_or_path)
    try:
        index = cached_file(
            source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False
        )
        if index:
            listed = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
            files = [Path(index).parent / name for name in sorted(set(listed))]
        else:
            files = [Path(cached_file(source, SAFE_WEIGHTS_NAME))]
        sampled = {}
        for file in files:
            with safe_open(file, framework="pt") as weights:
                for name in list(weights.keys()):
                    part = weights.get_slice(name)
                    dimensions = len(part.get_shape())
                    if dimensions == 0:
                        sampled[name] = weights.get_tensor(name).reshape(1)
                    else:
                        sampled[name] = part[:1, :256] if dimensions > 1 else part[:256]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"cannot read weights of {name_or_path!r}: {reason}") from error
    digest = hashlib.sha256()
    for name, values in sorted(sampled.items()):
        digest.update(name.encode())
        digest.update(values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resolve_backbone(name_or_path: str) -> str:
    """Folder or hub id that transformers can load: converts GGUF files, checks local paths.

    Raises:
        BackboneError: a path that does not exist, or a folder that holds no model.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BackboneError(f"backbone file {name_or_path!r} does not exist")
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone folder {name_or_path!r} holds no config.json")
        return str(path)
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise BackboneError(f"backbone folder {name_or_path!r} does not exist")
    return name_or_path


def cache_folder() -> Path:
    """Where converted backbones are kept: `$CLARA_CACHE`, or `clara` in the user's cache."""
    root = os.environ.get("CLARA_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clara"


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder that transformers loads quickly; done once per content.

    `save_pretrained` refuses a model loaded from GGUF, so its weights are put into a model made
    from the plain configuration. The folder appears under its final name only when complete.

    Raises:
        BackboneError: the package `gguf` is missing, or the file cannot be read.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    target = cache_folder() / "gguf" / f"{file.stem}-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise BackboneError("reading a GGUF file needs the package gguf: pip install gguf")
    folder, name = str(file.parent), file.name
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(f"cannot read GGUF file {str(file)!r}: {reason}") from error
    config = AutoConfig.for_model(**loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, target)
    except OSError:
        if not target.is_dir():  # another process may have finished first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _quantization_arguments(
    quantization: Quantization | None, dtype: torch.dtype
) -> dict[str, Any]:
    if quantization is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"quantization={quantization!r} needs the package bitsandbytes")
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }
