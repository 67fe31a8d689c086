"""The model and the documents that compression is measured with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

from bench.baselines.reference_way import ReferenceWay
from bench.lengths import LONGEST, document_lengths
from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS
from clara.config import DtypeName, Quantization
from clara.data.factbook import FactbookError, load_factbook

_WORDS = (
    "river town grain salt iron spring bridge mill harbour council market road winter field wood "
    "the of a and in where who before after is was were are built traded known found called kept"
)


def load_model(
    backbone: Path,
    rate: int,
    device: str | torch.device = "cpu",
    document_length: int = LONGEST,
    dtype: DtypeName | None = None,
    quantization: Quantization | None = None,
) -> Clara:
    """A model whose adapters change what the backbone computes, as trained ones do.

    Without a dtype in float32 on a CPU, whatever the processor has, so that figures of machines
    compare.
    """
    config = ClaraConfig(
        compression_rate=rate,
        document_length=document_length,
        dtype=dtype,
        quantization=quantization,
    )
    model = Clara.from_backbone(backbone, config, device=device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ADAPTERS:
            for parameter in model.adapters.parameters(name).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def write_tiny(folder: Path, tokenizer: Path) -> None:
    """A random Llama of three layers and 128 dimensions with the tokenizer of another backbone."""
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        if "token" in file.name or "template" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())


def layer_weights(model: Clara) -> int:
    """Weights of the backbone's layers, each of which a position multiplies and adds once."""
    return sum(
        parameter.numel()
        for name, parameter in model.backbone.named_parameters()
        if ".layers." in name and parameter.ndim == 2 and "lora_" not in name
    )


def documents(count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of `document_lengths` tokens, from the World Factbook where it is installed."""
    return cut(sources(count), document_lengths(count), tokenizer)


def cut(
    texts: Sequence[str], lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The first so many tokens of each text, as text."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return [
        text[: places[length - 1][1]]
        for text, places, length in zip(texts, offsets, lengths, strict=True)
    ]


def sources(count: int, words: int = LONGEST) -> list[str]:
    """Texts of more than so many words."""
    try:
        texts = _sections()
    except FactbookError:
        generator, known = random.Random(0), _WORDS.split()
        return [" ".join(generator.choices(known, k=2 * words)) for _ in range(count)]
    if words > LONGEST:  # no section may be that long: sections in a row are
        texts = _joined(texts, words)
    long = [text for text in texts if len(text.split()) > words]
    return [long[i % len(long)] for i in range(count)]


@cache
def _sections() -> list[str]:
    """The sections of all countries in the World Factbook."""
    return [
        "\n".join(field.line for field in fields)
        for country in load_factbook()
        for fields in country.sections.values()
    ]


def _joined(texts: Sequence[str], words: int) -> list[str]:
    found, part, length = [], [], 0
    for text in texts:
        part.append(text)
        length += len(text.split())
        if length > words:
            found.append("\n".join(part))
            part, length = [], 0
    return found


def prepare_ours(backbone: Path, rate: int, threads: int, count: int) -> Callable[[], object]:
    """For `peak.peak_memory`: a loaded model that compresses documents when called."""
    torch.set_num_threads(threads)
    model = load_model(backbone, rate)
    return _warm(model, model.compress, documents(count, model.tokenizer.tokenizer))


def prepare_reference(backbone: Path, rate: int, threads: int, count: int) -> Callable[[], object]:
    """The same in the reference's way."""
    torch.set_num_threads(threads)
    model = load_model(backbone, rate)
    reference = ReferenceWay(model)
    texts = documents(count, model.tokenizer.tokenizer)
    return _warm(reference.backbone, reference.compress, texts)


def _warm(
    weights: nn.Module, compress: Callable[[Sequence[str]], object], texts: Sequence[str]
) -> Callable[[], object]:
    # Weights are mapped from the file and become resident when they are first read.
    for parameter in weights.parameters():
        parameter.sum()
    compress(["The river runs north of the town."])
    return lambda: compress(texts)
