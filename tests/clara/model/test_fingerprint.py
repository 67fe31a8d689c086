"""Fingerprints, which tell models apart."""

import shutil
from pathlib import Path

import torch

from clara import Clara, ClaraConfig
from clara.backbone.loading import sampled_backbone_digest
from clara.weights.reference import convert_reference

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
BASE = REFERENCE / "base"
CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
)

# What version 0.1.0 computed; indexes that it wrote carry these.
SAMPLED_DIGEST = "a0153bfa271861ffa916cd66686f76e781490c2ae093bb6eed9c56e9e687a055"
SAMPLED_FINGERPRINT = "3de1f1f98405b712dd0e56881105bd96b0a3f266cfbdd5b6a68df666dd9d8466"


def test_the_sampled_digest_is_that_of_earlier_versions():
    assert sampled_backbone_digest(str(BASE)) == SAMPLED_DIGEST


def test_the_sampled_fingerprint_is_that_of_earlier_versions(reference_model):
    assert reference_model.sampled_fingerprint == SAMPLED_FINGERPRINT
    assert reference_model.has_fingerprint(SAMPLED_FINGERPRINT)
    assert reference_model.has_fingerprint(reference_model.fingerprint)
    assert not reference_model.has_fingerprint("0" * 64)


def test_the_sampled_fingerprint_follows_the_adapters(tmp_path):
    folder = tmp_path / "model"
    convert_reference(REFERENCE / "checkpoint", folder, backbone=BASE)
    model = Clara.from_pretrained(folder, dtype="bfloat16")
    assert model.sampled_fingerprint == SAMPLED_FINGERPRINT
    with torch.no_grad():
        model.memory_tokens.memory.add_(1)
    assert model.sampled_fingerprint != SAMPLED_FINGERPRINT
    assert not model.has_fingerprint(SAMPLED_FINGERPRINT)


def test_a_backbone_that_is_gone_has_its_own_fingerprint_alone(tmp_path):
    model = Clara.from_backbone(shutil.copytree(BASE, tmp_path / "backbone"), CONFIG)
    shutil.rmtree(tmp_path / "backbone")
    assert model.has_fingerprint(model.fingerprint)
    assert not model.has_fingerprint("0" * 64)
