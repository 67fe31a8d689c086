"""Whole backbones by our own products of bfloat16 are as exact as without these."""

from __future__ import annotations

import pytest
import torch
import transformers

from clara import Clara, ClaraConfig
from clara_kernels import build_info

from ..random_adapters import draw_adapters

pytestmark = pytest.mark.skipif(
    build_info()["simd"] != "avx512bf16", reason="this processor or build has no such products"
)
TEXTS = ["a", "a text of some length " * 3, "another " * 40, "some words and more of them " * 5]
FAMILIES = {
    "Llama": {"head_dim": 16, "num_attention_heads": 6},
    "Qwen2": {"hidden_size": 64},
    "Qwen3": {"head_dim": 32, "num_key_value_heads": 1},
    "Mistral": {"head_dim": 16, "sliding_window": 7},
    "Gemma3Text": {"head_dim": 48, "sliding_window": 7},
    "Granite": {"hidden_size": 64, "tie_word_embeddings": True},
}


@pytest.fixture
def models(random_backbone):
    """A function to a family's model in float32, and the same one in bfloat16."""

    def make(family):
        folder = random_backbone(getattr(transformers, f"{family}Config"), **FAMILIES[family])
        exact, low = (
            Clara.from_backbone(
                folder,
                ClaraConfig(document_length=96, lora_rank=4, lora_alpha=7, dtype=dtype),
                device="cpu",
            )
            for dtype in ("float32", "bfloat16")
        )
        draw_adapters(exact, seed=0)
        with torch.no_grad():
            for one, other in zip(exact.parameters(), low.parameters(), strict=True):
                other.copy_(one)
                one.copy_(other)
        return exact, low

    return make


def memory_of(model):
    """Without its mean, which outlier dimensions make alike anyway."""
    rows = model.compress(TEXTS).memory.double().flatten(0, -2)
    return rows - rows.mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory(models, family, monkeypatch):
    exact, low = models(family)
    expected = memory_of(exact)
    made = memory_of(low)
    monkeypatch.setenv("CLARA_SIMD", "avx512")
    without = memory_of(low)
    assert not torch.equal(made, without)  # they took two ways
    error, allowed = ((each - expected).norm() for each in (made, without))
    assert error <= 1.1 * allowed
