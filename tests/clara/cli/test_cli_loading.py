import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara.backbone.int8 import Int8Linear
from clara.cli.errors import CommandError
from clara.cli.loading import load_model
from clara.cli.options import Quantization
from clara.cli.paths import check_device
from clara.model import shipped


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_processor_is_always_there(device):
    check_device(device)


def test_cuda_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(CommandError, match="'cuda:2' is not there: 2 CUDA devices are visible"):
        check_device("cuda:2")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(CommandError, match="CPU-only"):
        check_device("cuda")


def test_quantized_backbone(model):
    loaded = load_model(model, quantization=Quantization.nf4)
    assert loaded.config.quantization == "nf4"
    assert loaded.backbone.is_quantized
    loaded = load_model(model, quantization=Quantization.int8)
    assert loaded.config.quantization == "int8"
    assert any(isinstance(module, Int8Linear) for module in loaded.backbone.modules())


def test_another_backbone_is_told(model, backbone, tmp_path, capsys):
    other = shutil.copytree(backbone, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    load_model(model)
    assert capsys.readouterr().err == ""
    load_model(model, backbone=str(other))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{model}: made with another backbone than '{other}'")


def test_the_model_that_comes_with_the_project_is_the_default(
    clara, refused, model, index, tmp_path, monkeypatch
):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "clara")
    line = refused("ask", "--index", index, "Where?", code=2)
    assert line == (
        "error: --model is missing, and the trained weights smollm2-135m-factbook are not in "
        f"{tmp_path}/clara/weights/models: name a model folder or an id of the hub; clara init "
        "makes an untrained one"
    )
    assert "--model" in refused("index", "migrate", index, code=2)
    shutil.copytree(model, tmp_path / "clara" / "weights" / "models" / shipped.FACTBOOK)
    # A folder that happens to be called the same is not taken in its place.
    (tmp_path / "here" / shipped.FACTBOOK).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    by_name = clara("ask", "--index", index, "Where?", "--json").stdout
    named = clara("ask", "--index", index, "Where?", "--json", "--model", model).stdout
    assert json.loads(by_name)["answer"] == json.loads(named)["answer"]
    (tmp_path / "here" / shipped.FACTBOOK).rmdir()
    found = json.loads(clara("info", shipped.FACTBOOK, "--json").stdout)
    assert found["path"] == str(tmp_path / "clara" / "weights" / "models" / shipped.FACTBOOK)
