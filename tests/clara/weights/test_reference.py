import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara import Clara
from clara.weights.reference import ConversionError, convert_reference

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
BASE = REFERENCE / "base"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(REFERENCE / "checkpoint", folder)
    return folder


def change(file, **values):
    content = json.loads(file.read_text(encoding="utf-8"))
    content.update(values)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_settings_and_rows_are_taken_over(tmp_path):
    config = convert_reference(REFERENCE / "checkpoint", tmp_path / "model", backbone=BASE)
    assert config.compression_rate == 16
    assert config.document_length == 64
    assert (config.lora_rank, config.lora_alpha) == (4, 8)
    assert config.top_k == 2
    assert config.overflow == "truncate"
    assert Path(config.backbone) == BASE
    model = Clara.from_pretrained(tmp_path / "model")
    assert model.config == config
    table = torch.load(
        REFERENCE / "checkpoint" / "decoder_first_last_layers.pth", weights_only=True
    )["model.embed_tokens.weight"].float()
    own = model.memory_tokens
    assert torch.equal(own.memory, table[600:604])
    assert torch.equal(own.encode, table[605:606])
    assert torch.equal(own.separator, table[606:607])


def test_no_pickle_is_written(tmp_path):
    convert_reference(REFERENCE / "checkpoint", tmp_path / "model", backbone=BASE)
    endings = {file.suffix for file in (tmp_path / "model").rglob("*") if file.is_file()}
    assert endings <= {".json", ".safetensors", ".md", ".jinja"}


def test_backbone_named_by_the_checkpoint(source, tmp_path):
    change(source / "config.json", decoder_model_name=str(BASE))
    config = convert_reference(source, tmp_path / "model")
    assert Path(config.backbone) == BASE
    assert Clara.from_pretrained(tmp_path / "model").compress(["a"]).memory.isfinite().all()


def test_without_query_reasoner_the_compressor_stands_in(source, tmp_path):
    adapters = torch.load(source / "adapters.pth", weights_only=True)
    del adapters["query_reasoner_adapter"]
    torch.save(adapters, source / "adapters.pth")
    convert_reference(source, tmp_path / "model", backbone=BASE)
    model = Clara.from_pretrained(tmp_path / "model")
    compressor, reasoner = (model.adapters.state(n) for n in ("compressor", "query_reasoner"))
    assert all(torch.equal(reasoner[name], value) for name, value in compressor.items())
    theirs = {k: v.float() for k, v in adapters["encoder_adapter"].items()}
    assert all(torch.equal(reasoner[name], value) for name, value in theirs.items())
    assert len(theirs) == len(reasoner)


@pytest.mark.parametrize("adapter", ["encoder_adapter", "decoder_adapter"])
def test_a_missing_adapter_is_an_error(source, tmp_path, adapter):
    adapters = torch.load(source / "adapters.pth", weights_only=True)
    del adapters[adapter]
    torch.save(adapters, source / "adapters.pth")
    with pytest.raises(ConversionError, match=r"adapters\.pth holds no (compressor|generator)"):
        convert_reference(source, tmp_path / "model", backbone=BASE)
    assert not (tmp_path / "model").exists()


def test_an_unknown_adapter_is_an_error(source, tmp_path):
    adapters = torch.load(source / "adapters.pth", weights_only=True)
    adapters["extra_adapter"] = adapters["decoder_adapter"]
    torch.save(adapters, source / "adapters.pth")
    with pytest.raises(ConversionError, match="unknown adapter 'extra_adapter'"):
        convert_reference(source, tmp_path / "model", backbone=BASE)


def test_an_adapter_of_another_shape_is_an_error(source, tmp_path):
    change(source / "config.json", lora_r=8)
    with pytest.raises(ConversionError, match=r"does not fit .* expected \[8"):
        convert_reference(source, tmp_path / "model", backbone=BASE)


@pytest.mark.parametrize("name", ["config.json", "adapters.pth", "decoder_first_last_layers.pth"])
def test_a_missing_file_is_named(source, tmp_path, name):
    (source / name).unlink()
    with pytest.raises(ConversionError, match=f"not a reference checkpoint.*{name}"):
        convert_reference(source, tmp_path / "model", backbone=BASE)


@pytest.mark.parametrize("name", ["adapters.pth", "decoder_first_last_layers.pth"])
@pytest.mark.parametrize("content", ["cut", "empty", "text"])
def test_a_damaged_file_is_named(source, tmp_path, name, content):
    file = source / name
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no"}[content])
    with pytest.raises(ConversionError, match=f"{name}: cannot read it as tensors"):
        convert_reference(source, tmp_path / "model", backbone=BASE)


class Trap:
    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(source, tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    content = {"encoder_adapter": Trap()}
    if write == "torch":
        torch.save(content, source / "adapters.pth")
    else:
        (source / "adapters.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(ConversionError, match="cannot read it as tensors"):
        convert_reference(source, tmp_path / "model", backbone=BASE)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compr_rate": 7}, "compression_rate"),
        ({"compr_rate": 4}, "is not that of the backbone"),
        ({"compr_rate": "x"}, "compression_rate"),
        ({"different_mem_tokens": False}, "is not that of the backbone"),
        ({"generation_top_k": 0}, "top_k"),
    ],
)
def test_settings_that_do_not_fit(source, tmp_path, changes, message):
    change(source / "config.json", **changes)
    with pytest.raises(ConversionError, match=message):
        convert_reference(source, tmp_path / "model", backbone=BASE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_configuration_of_another_kind(source, tmp_path, content):
    (source / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConversionError, match=r"config\.json"):
        convert_reference(source, tmp_path / "model", backbone=BASE)


@pytest.mark.parametrize("change_rows", [lambda t: t.flip(0), lambda t: t[:-1], lambda t: t * 1.5])
def test_another_backbone_is_an_error(source, tmp_path, change_rows):
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    weights = load_file(other / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = change_rows(weights[name]).contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    change(other / "config.json", vocab_size=len(weights["lm_head.weight"]))
    with pytest.raises(ConversionError, match="is not that of the backbone"):
        convert_reference(source, tmp_path / "model", backbone=other)


def test_a_backbone_with_padding_rows(source, tmp_path):
    """More embedding rows than the tokenizer has tokens, as many released backbones have."""
    padded = tmp_path / "padded"
    shutil.copytree(BASE, padded)
    weights = load_file(padded / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name][:40])])
    save_file(weights, padded / "model.safetensors", metadata={"format": "pt"})
    change(padded / "config.json", vocab_size=640)
    convert_reference(source, tmp_path / "padded model", backbone=padded)
    convert_reference(source, tmp_path / "model", backbone=BASE)
    texts = ["The river is long.", "A town."]
    expected = Clara.from_pretrained(tmp_path / "model").compress(texts).memory
    assert torch.equal(
        Clara.from_pretrained(tmp_path / "padded model").compress(texts).memory, expected
    )


def test_a_backbone_that_is_not_there(source, tmp_path):
    with pytest.raises(ConversionError, match="does not exist"):
        convert_reference(source, tmp_path / "model", backbone=tmp_path / "nowhere")


def test_a_used_target_is_left_alone(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exists and is not empty"):
        convert_reference(REFERENCE / "checkpoint", target, backbone=BASE)
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
