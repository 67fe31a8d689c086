"""`clara export`, and `clara info` of what it wrote."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from clara import Clara
from clara.cli.inspection import inspect

from ..random_adapters import draw_adapters


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A model folder whose adapters change what the backbone computes."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    draw_adapters(Clara.from_pretrained(model), seed=1).save_pretrained(folder)
    return str(folder)


def test_a_trained_model(clara, trained, tmp_path):
    target = tmp_path / "deep" / "out"
    printed = clara("export", "--model", trained, "--merged", str(target)).stdout
    first, second = printed.splitlines()
    assert first.startswith(f"{target}: base with the generator merged, in bfloat16, ")
    assert second.startswith("rounding to bfloat16 changed the weights by 0.")
    assert {v.dtype for v in load_file(target / "model.safetensors").values()} == {torch.bfloat16}

    found = json.loads(clara("info", str(target), "--json").stdout)
    assert found.pop("bytes") == sum(file.stat().st_size for file in target.iterdir())
    assert found == {
        "kind": "exported model",
        "path": str(target),
        "backbone": "base",
        "trained": True,
        "dtype": "bfloat16",
        "quantization": None,
        "memory_form": "learned",
        "compression_rate": 16,
        "rates": None,
        "document_length": 64,
        "memory_tokens": 4,
        "hidden_size": 48,
        "fingerprint": Clara.from_pretrained(trained).fingerprint,
    }
    assert "kind: exported model\n" in clara("info", str(target)).stdout


def test_a_dtype_and_json(clara, trained, tmp_path):
    target = str(tmp_path / "out")
    options = ["--merged", target, "--dtype", "float32", "--quantization", "int8", "--json"]
    found = json.loads(clara("export", "--model", trained, *options).stdout)
    assert found == {
        "path": target,
        "backbone": "base",
        "dtype": "float32",
        "trained": True,
        "rounding": 0.0,
        "files": [*sorted(set(os.listdir(target)) - {"clara.json"}), "clara.json"],
        "bytes": sum(file.stat().st_size for file in os.scandir(target)),
    }
    assert json.loads((tmp_path / "out" / "clara.json").read_text())["quantization"] == "int8"
    printed = clara("export", "--model", trained, *options[:-1]).stdout
    assert len(printed.splitlines()) == 1  # nothing was rounded


def test_an_untrained_model_is_remarked_upon(clara, model, tmp_path):
    result = clara("export", "--model", model, "--merged", str(tmp_path / "out"), quiet=False)
    (line,) = result.stderr.splitlines()
    assert line.startswith("the generator is untrained")
    assert inspect(tmp_path / "out")["trained"] is False


def test_it_refuses(refused, model, backbone, tmp_path):
    target = str(tmp_path / "out")
    line = refused("export", "--model", "/no/such", "--merged", target)
    assert "model folder '/no/such' does not exist" in line
    own = shutil.copytree(model, tmp_path / "model")
    for place in (own, own / "merged", tmp_path):
        line = refused("export", "--model", str(own), "--merged", str(place))
        assert "must lie outside" in line
    assert "config.json" in os.listdir(own)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("kept")
    line = refused("export", "--model", model, "--merged", str(tmp_path / "taken"))
    assert "taken: exists already and is no earlier export" in line
    line = refused("export", "--model", model, "--merged", target, "--backbone", "/no/such")
    assert "/no/such" in line
    assert "dtype" in refused(
        "export", "--model", model, "--merged", target, "--dtype", "int8", code=2
    )
    assert "--merged" in refused("export", "--model", model, code=2)
    assert not os.path.exists(target)


def test_info_of_a_damaged_export(refused, tmp_path):
    (tmp_path / "clara.json").write_text('{"clara_export": 9}')
    assert "clara_export 9 is not supported" in refused("info", str(tmp_path))
