"""Parts of `make gpu-train-parts`: what is in them, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from clara.backbone.digest import backbone_digest

from .conftest import PART


def test_the_other_side_has_the_same_weights(scripts, backbone, parts, tmp_path):
    manifest = scripts.parts.join_parts(parts, tmp_path / "joined")
    sizes = [(parts / part["name"]).stat().st_size for part in manifest["parts"]]
    assert len(sizes) >= 3
    assert max(sizes) <= PART
    joined, folder = tmp_path / "joined" / "backbone", backbone[1]
    assert (joined / "packed.safetensors").stat().st_size < backbone[0].stat().st_size * 1.1
    scripts.parts.unpack_weights(joined / "packed.safetensors", joined / "model.safetensors")
    found, expected = (load_file(each / "model.safetensors") for each in (joined, folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert backbone_digest(str(joined)) == manifest["backbone_digest"]
    assert (joined / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("total", "beside", "sizes", "per_call"),
    [
        (1, 0, [1], 1),
        (95 << 20, 6 << 20, [24903680] * 4, 2),
        (95 << 20, 26 << 20, [16602454] * 5 + [16602450], 2),
        (10 << 20, 62 << 20, [1 << 20] * 10, 1),
    ],
)
def test_as_few_calls_as_possible(scripts, total, beside, sizes, per_call):
    planned = scripts.parts.plan(total, beside)
    assert planned.sizes == sizes
    assert planned.per_call == per_call
    assert max(sizes) <= 24 << 20
    assert beside + per_call * max(sizes) <= 64 << 20


def test_a_working_tree_that_fills_a_call(scripts):
    with pytest.raises(ValueError, match=r"the working tree alone has 63\.5 MiB; a call takes 64"):
        scripts.parts.plan(1, 127 << 19)


def spoilt(parts, folder, how):
    shutil.copytree(parts, folder)
    part = folder / "part-01"
    content = part.read_bytes()
    if how == "missing":
        part.unlink()
    elif how == "short":
        part.write_bytes(content[:-1])
    elif how == "changed":
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "part-01 is missing; there are "),
        ("short", "part-01 is damaged: it has "),
        ("changed", "part-01 is damaged: its SHA-256 is not the manifest's"),
        ("no manifest", "manifest.json is missing: make gpu-train-parts writes it"),
    ],
)
def test_nothing_starts_without_all_parts(scripts, parts, tmp_path, capsys, how, told):
    folder = spoilt(parts, tmp_path / "parts", how)
    arguments = ["--parts", str(folder), "train", "--output", str(tmp_path / "out")]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_another_snapshot_than_that_of_the_parts(scripts, parts, tmp_path, capsys):
    (tmp_path / "snapshot").mkdir()
    arguments = ["--parts", str(parts), "--snapshot", str(tmp_path / "snapshot"), "train"]
    assert scripts.train.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "is not what it was when the parts were made" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_gpu(scripts, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--parts", str(parts), "--snapshot", str(tmp_path / "none"), "train"]
    assert scripts.train.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "there is no GPU that torch" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "421"])
def test_seven_minutes_are_the_most(scripts, seconds, capsys):
    with pytest.raises(SystemExit):
        scripts.train.main(["train", "--seconds", seconds])
    assert "--seconds must be above 0 and at most 420" in capsys.readouterr().err
