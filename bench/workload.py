"""The model and the documents that compression is measured with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from baselines.reference_way import ReferenceWay
from lengths import LONGEST, document_lengths
from torch import nn
from transformers import PreTrainedTokenizerBase

from clara import Clara, ClaraConfig
from clara.adapters import ADAPTERS
from clara.data.factbook import FactbookError, load_factbook

_WORDS = (
    "river town grain salt iron spring bridge mill harbour council market road winter field wood "
    "the of a and in where who before after is was were are built traded known found called kept"
)


def load_model(backbone: Path, rate: int, device: str | torch.device = "cpu") -> Clara:
    """A model whose adapters change what the backbone computes, as trained ones do."""
    config = ClaraConfig(compression_rate=rate, document_length=LONGEST)
    model = Clara.from_backbone(backbone, config, device=device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ADAPTERS:
            for parameter in model.adapters.parameters(name).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def documents(count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of `document_lengths` tokens, from the World Factbook where it is installed."""
    sources = _sources(count)
    encoded = tokenizer(sources, add_special_tokens=False, return_offsets_mapping=True)
    return [
        text[: offsets[length - 1][1]]
        for text, offsets, length in zip(
            sources, encoded["offset_mapping"], document_lengths(count), strict=True
        )
    ]


def _sources(count: int) -> Sequence[str]:
    """Texts longer than the longest document."""
    try:
        countries = load_factbook()
    except FactbookError:
        generator, words = random.Random(0), _WORDS.split()
        return [" ".join(generator.choices(words, k=2 * LONGEST)) for _ in range(count)]
    texts = (
        "\n".join(field.line for field in fields)
        for country in countries
        for fields in country.sections.values()
    )
    long = [text for text in texts if len(text.split()) > LONGEST]
    return [long[i % len(long)] for i in range(count)]


def prepare_ours(backbone: Path, rate: int, threads: int, count: int) -> Callable[[], object]:
    """For `timing.peak_memory`: a loaded model that compresses documents when called."""
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
