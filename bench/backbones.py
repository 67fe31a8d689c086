"""Backbones to measure: real weights where there are any, else random ones of published shapes.

How fast a model computes does not depend on its weights' values. Random ones are drawn on the
device that they are for, so that a machine without the real files measures the same work.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bench.lengths import LONGEST
from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS
from clara.backbone.attention import CLARA_SDPA
from clara.backbone.loading import backbone_digest, load_backbone, resolve_backbone
from clara.config import DEFAULT_PROMPT, Quantization
from clara.data.factbook import FactbookError, smollm2_file

SMOLLM2, RANDOM = "smollm2-135m", "random:"
NAMES = (SMOLLM2, RANDOM + SMOLLM2, RANDOM + "mistral-7b", RANDOM + "tiny")

QUESTIONS = (
    "Which of these rivers is the longest, and through which countries does it flow?",
    "What is the highest mountain of the country, and how high is it in metres?",
    "How many people live in the capital, and what share of all people is that?",
    "Which goods does the country sell abroad, and who buys the most of them?",
    "When did the country become independent, and which country had ruled it before?",
    "What languages are spoken there, and which of them are used by the government?",
    "How long is the coast, and which seas or oceans lie along it?",
    "Which countries share a border with it, and which of these borders is the longest?",
)

_TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "data" / "reference" / "base"
_TOKENS = 2000  # at most; the words asked and the template have fewer


@dataclass(frozen=True)
class Backbone:
    """A frozen language model without adapters.

    Attributes:
        name: what results call it.
        weights: what they are, in words.
    """

    name: str
    weights: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str

    def clara(self, rate: int, *, document_length: int = LONGEST) -> Clara:
        """A model around the same weights, with adapters that change what they compute."""
        config = ClaraConfig(
            backbone=self.name, compression_rate=rate, document_length=document_length
        )
        backbone = shared(self.model, CLARA_SDPA)
        model = Clara(backbone, self.tokenizer, config, backbone_digest=self.digest)
        model.memory_tokens.initialise(backbone.get_input_embeddings().weight)
        generator = torch.Generator(model.device).manual_seed(0)
        with torch.no_grad():
            for name in ADAPTERS:
                for parameter in model.adapters.parameters(name).values():
                    parameter.normal_(std=0.02, generator=generator)
        return model

    def plain(self) -> PreTrainedModel:
        """The same weights with transformers' own attention."""
        return shared(self.model)


def load(
    name: str,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    layers: int | None = None,
) -> Backbone:
    """A backbone of `NAMES` on a device; without its package, "smollm2-135m" is a random one.

    Args:
        dtype: float32 on CPU, else bfloat16.
        quantization: "nf4" by bitsandbytes, or None.
        layers: of a random one, if not as many as published.

    Raises:
        ValueError: unknown name, or bitsandbytes is needed and not installed.
    """
    if name not in NAMES:
        raise ValueError(f"backbone must be one of {', '.join(NAMES)}, got {name!r}")
    if quantization not in (None, "nf4"):
        raise ValueError(f"quantization must be nf4 or None, got {quantization!r}")
    if quantization and find_spec("bitsandbytes") is None:
        raise ValueError("bitsandbytes is not installed")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    title = f"{{}}, {quantization}" if quantization else "{}"
    if name == SMOLLM2:
        try:
            file = str(smollm2_file())
        except FactbookError:
            name = RANDOM + SMOLLM2
        else:
            model, tokenizer = load_backbone(
                file, device=device, dtype=dtype, quantization=quantization
            )
            digest = backbone_digest(file)
            return Backbone(title.format(name), "its own weights", model, tokenizer, digest)
    tokenizer = own_tokenizer()
    shape = _shape(name.removeprefix(RANDOM), tokenizer)
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    model = random_model(shape, device, dtype)
    if quantization:
        _quantize(model)
    said = "random weights of its published shape, on which speed does not depend"
    return Backbone(title.format(name), said, model, tokenizer, f"{name}, seed 0")


def random_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PreTrainedModel:
    """A frozen model whose matrices are normal with `config.initializer_range`."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=CLARA_SDPA
        )
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.eos_token_id,
    )
    return model.requires_grad_(False).eval()


def own_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the tests' tiny model, taught the words of prompts and questions.

    A prompt then has as many tokens as with a tokenizer of tens of thousands of entries, about
    one a word, and no file has to be there. Documents are cut to a number of tokens anyway.
    """
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    texts = [DEFAULT_PROMPT.system, DEFAULT_PROMPT.user, *QUESTIONS]
    return tokenizer.train_new_from_iterator(texts * 50, _TOKENS, show_progress=False)


def _shape(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Published shapes; the vocabulary is larger than the tokenizer's."""
    common: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.02,
    }
    if name == "mistral-7b":  # v0.2 and later, without a sliding window
        return MistralConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=32_768,
            sliding_window=None,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=False,
            **common,
        )
    tiny = name == "tiny"
    return LlamaConfig(
        vocab_size=600 if tiny else 49_152,
        hidden_size=64 if tiny else 576,
        intermediate_size=128 if tiny else 1536,
        num_hidden_layers=2 if tiny else 30,
        num_attention_heads=4 if tiny else 9,
        num_key_value_heads=2 if tiny else 3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
        **common,
    )


def shared(backbone: PreTrainedModel, attention: str = "sdpa") -> PreTrainedModel:
    """The same model without LoRA layers, whose weights lie where the given one has them.

    Its parameters are objects of their own: putting others in their place changes only it.

    Args:
        attention: an implementation that transformers knows.
    """
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        plain = type(parameter) is nn.Parameter
        memo[id(parameter)] = nn.Parameter(parameter.detach(), False) if plain else parameter
    for module in backbone.modules():
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if hasattr(layer, "quant_state"):  # holds tensors that are no parameters
            memo[id(module)] = layer
        elif layer is not module:
            memo[id(module)] = copy.deepcopy(layer, memo)
    model: PreTrainedModel = copy.deepcopy(backbone, memo)
    vars(model).pop("peft_config", None)
    model.set_attn_implementation(attention)
    return model.requires_grad_(False).eval()


def plain_from_files(model: Clara) -> PreTrainedModel:
    """What a `Clara` computes with no adapter, by transformers alone, from the backbone's files."""
    backbone = AutoModelForCausalLM.from_pretrained(
        resolve_backbone(str(model.config.backbone)), dtype=model.dtype, attn_implementation="sdpa"
    )
    return backbone.to(model.device)


def left_padded(
    sequences: Sequence[Sequence[int]], width: int, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask `[N, width]`."""
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def _quantize(model: PreTrainedModel) -> None:
    """Put NF4 layers in the place of all linear ones but the output head, one after another."""
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationMethod

    head, dtype = model.get_output_embeddings(), model.dtype
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or layer is head:
            continue
        device, (outputs, inputs) = layer.weight.device, layer.weight.shape
        with torch.device("meta"):
            small = Linear4bit(
                inputs, outputs, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
            )
        small.weight = type(small.weight)(
            layer.weight.data, False, quant_type="nf4", module=small, compress_statistics=True
        )
        small.bias = layer.bias
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, small.to(device))
    model.is_quantized = model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model.requires_grad_(False)
