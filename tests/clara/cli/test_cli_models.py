import json
import shutil

import pytest

from clara import Clara


def test_init_makes_an_untrained_model(clara, backbone, tmp_path):
    target = tmp_path / "model"
    options = ["--compression-rate", "8", "--document-length", "64"]
    printed = clara("init", backbone, str(target), *options).stdout
    assert "untrained" in printed
    assert "64 tokens of a document become 8 memory tokens" in printed
    model = Clara.from_pretrained(target)
    assert (model.config.memory_tokens, model.config.document_length) == (8, 64)
    assert model.config.dtype == "auto"
    memory = model.compress(["a text"]).memory
    assert memory.shape == (1, 8, 48)
    assert memory.isfinite().all()
    assert memory.abs().sum() > 0


def test_init_refuses(refused, backbone, tmp_path):
    target = str(tmp_path / "model")
    assert "'/no/such' does not exist" in refused("init", "/no/such", target)
    assert "does not divide" in refused("init", backbone, target, "--compression-rate", "7")
    assert "do not fit" in refused("init", backbone, target, "--document-length", "4096")
    assert "compression-rate" in refused(
        "init", backbone, target, "--compression-rate", "0", code=2
    )
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_init_refuses_unreadable_backbone(refused, backbone, tmp_path, name):
    damaged = tmp_path / "damaged"
    shutil.copytree(backbone, damaged)
    (damaged / name).write_bytes((damaged / name).read_bytes()[:100])
    assert str(damaged) in refused("init", str(damaged), str(tmp_path / "model"))


@pytest.mark.parametrize("command", ["init", "convert"])
def test_nothing_is_overwritten(refused, backbone, reference_checkpoint, tmp_path, command):
    (tmp_path / "there").write_text("kept")
    source = backbone if command == "init" else reference_checkpoint
    assert "exists already" in refused(command, source, str(tmp_path))
    assert "exists already" in refused(command, source, str(tmp_path / "there"))
    assert (tmp_path / "there").read_text() == "kept"


def test_convert_writes_a_model_that_answers(clara, backbone, reference_checkpoint, tmp_path):
    target = str(tmp_path / "model")
    printed = clara("convert", reference_checkpoint, target, "--backbone", backbone).stdout
    assert "compression 16x" in printed
    model = Clara.from_pretrained(target)
    answer = model.answer(["a question"], ["a text", "another"], top_k=1, max_new_tokens=4)[0]
    assert len(answer.documents) == 1


def test_convert_refuses(refused, model, reference_checkpoint, tmp_path):
    target = str(tmp_path / "model")
    assert "not a reference" in refused("convert", model, target)
    assert "not a reference" in refused("convert", str(tmp_path), target)
    line = refused("convert", reference_checkpoint, target, "--backbone", "/no/such")
    assert "/no/such" in line
    assert not (tmp_path / "model").exists()


def test_info_of_a_model(clara, model, backbone):
    found = json.loads(clara("info", model, "--json").stdout)
    size = found.pop("bytes")
    assert isinstance(size, int)
    assert size > 10_000
    assert found == {
        "kind": "model",
        "path": model,
        "backbone": backbone,
        "trained": False,
        "memory_form": "learned",
        "compression_rate": 16,
        "rates": None,
        "document_length": 64,
        "memory_tokens": 4,
        "ranking": "flattened",
        "top_k": 5,
        "lora_rank": 16,
        "quantization": None,
    }
    assert "kind: model\n" in clara("info", model).stdout
    assert "trained: no\n" in clara("info", model).stdout


def test_info_tells_trained_adapters(clara, backbone, reference_checkpoint, tmp_path):
    target = str(tmp_path / "model")
    clara("convert", reference_checkpoint, target, "--backbone", backbone)
    assert json.loads(clara("info", target, "--json").stdout)["trained"] is True


def test_info_of_an_index(clara, index, model):
    found = json.loads(clara("info", index, "--json").stdout)
    assert found["kind"] == "index"
    assert found["count"] == found["documents"] == 6
    assert found["memory_tokens"] == 4
    assert found["hidden_size"] == 48
    assert found["fingerprint"] == Clara.from_pretrained(model).fingerprint
    assert found["settings"]["overflow"] == "chunk"
    assert found["effective_compression"] == found["tokens"] / (6 * 4)
    assert "documents: 6\n" in clara("info", index).stdout


def test_info_of_a_reference_checkpoint(clara, reference_checkpoint):
    found = json.loads(clara("info", reference_checkpoint, "--json").stdout)
    assert found["kind"] == "reference checkpoint"
    assert found["compr_rate"] == 16
    assert "clara convert" in clara("info", reference_checkpoint).stdout


def test_info_refuses(refused, backbone, model, tmp_path):
    assert "no such folder" in refused("info", str(tmp_path / "nothing"))
    assert "neither a model" in refused("info", str(tmp_path))
    assert "clara init" in refused("info", backbone)
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in refused("info", str(tmp_path))
    (tmp_path / "config.json").write_text('{"clara_format": 99}')
    assert "99" in refused("info", str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "_versions").mkdir()
    assert str(tmp_path) in refused("info", str(tmp_path))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "generator" / "adapter_model.safetensors").write_bytes(b"short")
    assert "generator" in refused("info", str(damaged))
