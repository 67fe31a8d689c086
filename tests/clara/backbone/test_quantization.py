"""NF4 through bitsandbytes, and our own int8, on the CPU."""

import copy
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone import int8

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32", top_k=2
)
TEXTS = ["The river runs north.", "Grain is traded for salt by the people.", "Nobody knows it."]
QUESTIONS = ["Where is the river?", "Who trades salt?"]


def perturb(model):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name in ("compressor", "query_reasoner", "generator"):
            for parameter in model.adapters.parameters(name).values():
                values = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
                # The values themselves are in every dtype, so that loading does not round them.
                parameter.copy_(values.bfloat16())
    return model


@pytest.fixture(scope="module")
def backbone(tiny_backbone, tmp_path_factory):
    """A random backbone that amplifies errors less: each layer changes its input but a little."""
    folder = tmp_path_factory.mktemp("calm") / "backbone"
    shutil.copytree(tiny_backbone("llama"), folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= 0.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(backbone):
    return perturb(Clara.from_backbone(backbone, CONFIG))


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["nf4", "int8"])
def quantized(request, folder):
    return Clara.from_pretrained(folder, quantization=request.param)


def cosine(left, right):
    return torch.nn.functional.cosine_similarity(left.float().flatten(1), right.float().flatten(1))


def test_weights_are_really_quantized(quantized, plain):
    layer = quantized.backbone.base_model.layers[0].mlp.up_proj.get_base_layer()
    kind = {"nf4": torch.uint8, "int8": torch.int8}[quantized.config.quantization]
    assert layer.weight.dtype == kind
    full = plain.backbone.base_model.layers[0].mlp.up_proj.get_base_layer().weight
    assert layer.weight.numel() * layer.weight.element_size() <= full.numel()


def dequantized(layer):
    weight = layer.weight
    if weight.dtype == torch.uint8:
        return dequantize_4bit(weight, weight.quant_state)
    return weight.float() * layer.scales[:, None]


def test_memory_is_that_of_the_rounded_weights(quantized, folder, tmp_path):
    """Quantization rounds the backbone's weights, nothing else."""
    backbone = AutoModelForCausalLM.from_pretrained(quantized.config.backbone, dtype=torch.float32)
    largest = 0.0
    for name, layer in quantized.backbone.named_modules():
        if isinstance(layer, LoraLayer):
            weight = backbone.get_submodule(name).weight
            rounded = dequantized(layer.get_base_layer())
            largest = max(largest, (rounded - weight).abs().max().item())
            weight.data.copy_(rounded)
    assert largest > 1e-4
    backbone.save_pretrained(tmp_path / "rounded")
    quantized.tokenizer.tokenizer.save_pretrained(tmp_path / "rounded")
    rounded = Clara.from_pretrained(folder, backbone=tmp_path / "rounded")
    expected = rounded.compress(TEXTS).memory
    memory = quantized.compress(TEXTS).memory
    # Of few rows, int8 keeps 16 bits.
    tolerance = {"nf4": 1e-4, "int8": 5e-4}[quantized.config.quantization]
    torch.testing.assert_close(memory, expected, rtol=tolerance, atol=tolerance)


def test_memory_is_close_to_the_unquantized(quantized, plain):
    limit = {"nf4": 0.8, "int8": 0.999}[quantized.config.quantization]
    memory, exact = quantized.compress(TEXTS).memory, plain.compress(TEXTS).memory
    assert memory.isfinite().all()
    assert cosine(memory, exact).min() > limit
    assert not torch.equal(memory, exact)
    queries, exact = (m.encode_queries(QUESTIONS) for m in (quantized, plain))
    assert cosine(queries, exact).min() > limit


@pytest.mark.parametrize("few_rows", [0, 10_000])
def test_packing_does_not_change_quantized_memory(quantized, few_rows, monkeypatch):
    """Whichever way int8 multiplies: the other one rounds activations, and packing chooses."""
    monkeypatch.setattr(int8, "FEW_ROWS", few_rows)
    together = quantized.compress(TEXTS).memory
    alone = torch.cat([quantized.compress([text]).memory for text in TEXTS])
    assert (together - alone).abs().max() < 1e-4 * together.abs().max()


def test_answers(quantized):
    compressed = quantized.compress(TEXTS)
    answers = quantized.answer(QUESTIONS, compressed, max_new_tokens=8)
    again = quantized.answer(QUESTIONS, compressed, max_new_tokens=8)
    assert [a.text for a in answers] == [a.text for a in again]
    stacked = torch.stack(
        [compressed.memory[[compressed.ids.index(d.id) for d in a.documents]] for a in answers]
    )
    texts = quantized.generate(QUESTIONS, stacked, max_new_tokens=8)
    assert [text.strip() for text in texts] == [a.text for a in answers]
    assert "".join(quantized.stream(QUESTIONS[0], stacked[0], max_new_tokens=8)) == texts[0]


def test_adapters_are_saved_and_loaded(quantized, folder, plain, tmp_path):
    quantized.save_pretrained(tmp_path / "model")
    assert not any("absmax" in str(f) for f in (tmp_path / "model").rglob("*"))
    size = sum(f.stat().st_size for f in (tmp_path / "model").rglob("*.safetensors"))
    assert size == sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    again = Clara.from_pretrained(tmp_path / "model")
    assert again.config.quantization == quantized.config.quantization
    assert torch.equal(again.compress(TEXTS).memory, quantized.compress(TEXTS).memory)
    unquantized = Clara.from_pretrained(tmp_path / "model", quantization=None)
    assert torch.equal(unquantized.compress(TEXTS).memory, plain.compress(TEXTS).memory)


def test_one_checkpoint_has_one_fingerprint(quantized, folder, plain):
    assert quantized.fingerprint == plain.fingerprint
    low = Clara.from_pretrained(
        folder, quantization=quantized.config.quantization, dtype="bfloat16"
    )
    assert low.fingerprint == plain.fingerprint
    # So memory of either can be used with the other.
    assert len(quantized.answer(QUESTIONS, plain.compress(TEXTS), max_new_tokens=2)) == 2


def test_merging_is_refused(quantized, folder):
    with pytest.raises(ValueError, match="backbone that is not quantized"):
        quantized.merge_generator()
    assert quantized.generate(QUESTIONS[:1], quantized.compress(TEXTS).memory[None, :2])
    with pytest.raises(ValueError, match="backbone that is not quantized"):
        Clara.from_pretrained(
            folder, quantization=quantized.config.quantization, merge_generator=True
        )


def test_a_new_quantized_model(backbone):
    for quantization in ("nf4", "int8"):
        config = CONFIG.replace(quantization=quantization)
        model = Clara.from_backbone(backbone, config)
        assert model.compress(TEXTS).memory.isfinite().all()
        assert model.fingerprint == Clara.from_backbone(backbone, CONFIG).fingerprint


def test_gradients_reach_adapters_of_a_quantized_backbone(quantized):
    memory = quantized.compress(TEXTS).memory[None].requires_grad_()
    quantized.adapters.freeze("generator")
    try:
        quantized.answer_loss(QUESTIONS[:1], memory, ["salt"]).backward()
        gradients = [p.grad for p in quantized.adapters.parameters("generator").values()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert all(g.any() for g in gradients)
        assert memory.grad.any()
    finally:
        quantized.adapters.freeze()
        quantized.zero_grad()


def test_a_deep_copy_computes_the_same(quantized):
    other = copy.deepcopy(quantized)
    documents = quantized.compress(TEXTS)
    assert torch.equal(other.compress(TEXTS).memory, documents.memory)
    memory = [documents.memory] * 2
    answers = quantized.generate(QUESTIONS, memory, max_new_tokens=4)
    assert other.generate(QUESTIONS, memory, max_new_tokens=4) == answers
