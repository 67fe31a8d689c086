"""Digests of backbones: the same however the weights are stored, and other for other weights."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone import weight_hashing
from clara.backbone.loading import BackboneError, backbone_digest, sampled_backbone_digest

from .stored_backbones import rewrite, written

TOKENIZER = Path(__file__).parents[2] / "data" / "reference" / "base"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))


# The same however the weights are stored


def in_dtype(dtype):
    return lambda folder: rewrite(
        folder, lambda weights: {name: value.to(dtype) for name, value in weights.items()}
    )


def saved_again(folder):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(folder)


def in_shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3KB")
    assert not (folder / "model.safetensors").exists()


def body_alone(folder):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).base_model.save_pretrained(
        folder / "body"
    )
    shutil.copy(folder / "body" / "model.safetensors", folder)


def with_stale_buffers(folder):
    stale = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in (0, 1)}
    rewrite(folder, lambda weights: {**weights, **stale})


STORED = {
    "saved again": saved_again,
    "in shards": in_shards,
    "float16": in_dtype(torch.float16),
    "bfloat16": in_dtype(torch.bfloat16),
    "float64": in_dtype(torch.float64),
    "stale buffers": with_stale_buffers,
    "body alone": body_alone,
}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3Text", "GPT2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_weights_stored_in_other_ways(tmp_path, family, tied):
    folder = written(tmp_path / "first", family, tie_word_embeddings=tied)
    expected = backbone_digest(str(folder))
    for name, store in STORED.items():
        other = shutil.copytree(folder, tmp_path / name)
        store(other)
        assert backbone_digest(str(other)) == expected, name


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT2"])
def test_a_tied_head_may_be_written_in_either_place(tmp_path, family):
    folder = written(tmp_path / "first", family, tie_word_embeddings=True)
    embeddings = "transformer.wte.weight" if family == "GPT2" else "model.embed_tokens.weight"
    expected = backbone_digest(str(folder))
    rewrite(folder, lambda weights: {**weights, "lm_head.weight": weights[embeddings]})
    assert backbone_digest(str(folder)) == expected
    rewrite(folder, lambda weights: {k: v for k, v in weights.items() if k != embeddings})
    assert backbone_digest(str(folder)) == expected
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(
        loaded.get_input_embeddings().weight.float(),
        load_file(folder / "model.safetensors")["lm_head.weight"].float(),
    )


@pytest.mark.parametrize("family", [*FAMILIES, "Mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_the_body_counts_and_the_head_does_not(tmp_path, family, tied):
    folder = written(tmp_path / "first", family, tie_word_embeddings=tied)
    weights = load_file(folder / "model.safetensors")
    seen = {backbone_digest(str(folder))}
    for name, value in weights.items():
        value.view(-1)[-1] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        digest = backbone_digest(str(folder))
        assert (digest in seen) == (name == "lm_head.weight"), name
        seen.add(digest)


def test_experts_that_transformers_puts_together_count(tmp_path):
    folder = written(tmp_path / "first", "Mixtral", num_local_experts=2)
    names = load_file(folder / "model.safetensors").keys()
    assert any(".experts.1." in name for name in names)  # stored one by one
    expected = backbone_digest(str(folder))
    saved_again(folder)
    assert backbone_digest(str(folder)) == expected


def test_scales_of_a_quantized_checkpoint_count(tmp_path):
    folder = written(tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    scale = "model.layers.0.mlp.up_proj.weight.absmax"
    rewrite(folder, lambda weights: {**weights, scale: torch.ones(4)})
    before = backbone_digest(str(folder))
    rewrite(folder, lambda weights: {**weights, scale: torch.full((4,), 2.0)})
    assert backbone_digest(str(folder)) != before


def test_swapped_values_shapes_and_names_are_seen(tmp_path):
    folder = written(tmp_path / "first", num_key_value_heads=4)
    layer = "model.layers.0.self_attn."
    digest = {backbone_digest(str(folder))}

    def swap(weights):
        k, v = weights[layer + "k_proj.weight"], weights[layer + "v_proj.weight"]
        return {**weights, layer + "k_proj.weight": v, layer + "v_proj.weight": k}

    def turn(weights):
        name = "model.layers.0.mlp.up_proj.weight"
        return {**weights, name: weights[name].reshape(weights[name].T.shape)}

    for change in (swap, turn):
        rewrite(folder, change)
        digest.add(backbone_digest(str(folder)))
    assert len(digest) == 3


# Backbones of the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A backbone in the hub's cache, laid out as the hub's client does: `someone/small`."""
    folder = written(tmp_path / "first", tie_word_embeddings=True)
    shutil.copy(TOKENIZER / "tokenizer.json", folder)
    shutil.copy(TOKENIZER / "tokenizer_config.json", folder)
    in_shards(folder)
    repository = tmp_path / "hub" / "models--someone--small"
    snapshot = repository / "snapshots" / ("a" * 40)
    for path in (repository / "blobs", repository / "refs", snapshot):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(f for f in folder.iterdir() if f.is_file()):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_backbone_is_found_by_its_name_on_the_hub(hub, tmp_path):
    name, folder = "someone/small", str(tmp_path / "first")
    assert backbone_digest(name) == backbone_digest(folder) == backbone_digest(str(hub))
    assert sampled_backbone_digest(name) == sampled_backbone_digest(folder)
    config = ClaraConfig(compression_rate=16, document_length=16, lora_rank=4, lora_alpha=8)
    model = Clara.from_backbone(name, config)
    assert model.config.backbone == name
    assert model.fingerprint == Clara.from_backbone(folder, config).fingerprint
    assert model.has_fingerprint(model.sampled_fingerprint)


def test_a_name_that_the_hub_does_not_have(hub):
    for read in (backbone_digest, sampled_backbone_digest):
        with pytest.raises(BackboneError, match="'someone/else'") as error:
            read("someone/else")
        assert "\n" not in str(error.value)


# How files are read


def test_tensors_are_hashed_in_chunks(tmp_path, monkeypatch):
    """Of 4 Mi values; here of 7, so that small tensors have many."""
    monkeypatch.setattr(weight_hashing, "_CHUNK", 7)
    tensors = {
        "a": torch.arange(40, dtype=torch.float32).reshape(5, 8),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0, dtype=torch.float16),
        "integers": torch.arange(9, dtype=torch.int64),
    }
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    stored = weight_hashing.stored_tensors([file])
    advanced = []
    found = weight_hashing.hash_tensors([stored[name] for name in tensors], advanced.append)
    for (name, value), digest in zip(tensors.items(), found, strict=True):
        kind = "BF16" if value.is_floating_point() else "I64"
        state = hashlib.sha256(json.dumps([kind, *value.shape]).encode())
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        for first in range(0, value.numel(), 7):
            part = value.reshape(-1)[first : first + 7].view(torch.uint8)
            state.update(hashlib.sha256(part.numpy().tobytes()).digest())
        assert digest == state.digest(), name
    assert sum(advanced) == sum(value.nbytes for value in tensors.values())


def test_the_digest_costs_one_read_and_little_memory(tmp_path):
    folder = tmp_path / "backbone"
    written(folder, vocab_size=1_000_000)  # 64 MB of embeddings in float32, and an output head
    script = """
import resource, sys
from clara.backbone.loading import backbone_digest
def read():
    return int(open("/proc/self/io").read().split()[1])
backbone_digest(sys.argv[2])  # what is imported at the first use
peak, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, read()
backbone_digest(sys.argv[1])
print(read() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
"""
    small = written(tmp_path / "small")
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(small)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    count, more = map(int, result.stdout.split())
    body = 64e6
    assert body < count < 1.01 * body
    buffers = min(8, os.cpu_count()) * (16 + 8 + 8) * 1024
    assert more < 16_000 + buffers


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "index", "config"])
def test_files_that_cannot_be_read(tmp_path, damage):
    folder = written(tmp_path / "first")
    file = folder / "model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "config":
        (folder / "config.json").write_text("{}")
    elif damage == "index":
        file.unlink()
        (folder / "model.safetensors.index.json").write_text("[]")
    else:
        file.write_bytes(file.read_bytes()[: 1000 if damage == "truncated" else 0])
    with pytest.raises(BackboneError, match=r"cannot read weights of '.*first'") as caught:
        backbone_digest(str(folder))
    assert "\n" not in str(caught.value)
