"""Where exported models are written, and what is not written over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from clara.integrations import export
from clara.integrations.description import ExportError, read
from clara.integrations.export import export_merged

from .models import new_model


def test_an_earlier_export_is_replaced(model, written, tmp_path):
    target = tmp_path / "out"
    export_merged(model, target, max_shard_size="100KB")
    assert (target / "model.safetensors.index.json").is_file()
    export_merged(model, target)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {
        f.name: f.read_bytes() for f in written.iterdir()
    }
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def content(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def other_file(folder):
    (folder / "out" / "notes.txt").write_text("kept")
    return r"out: holds notes\.txt, which no export has written and which would be lost"


def other_folder(folder):
    (folder / "out" / "gguf").mkdir()
    (folder / "out" / "gguf" / "model.gguf").write_text("kept")
    return r"holds gguf/model\.gguf"


def a_link_in_it(folder):
    (folder / "out" / "linked").symlink_to(folder)
    return "holds linked"


def no_description(folder):
    (folder / "out" / "clara.json").unlink()
    return "exists already and is no earlier export"


def damaged_description(folder):
    (folder / "out" / "clara.json").write_text("{")
    return "exists already and is no earlier export"


def a_file(folder):
    shutil.rmtree(folder / "out")
    (folder / "out").write_text("kept")
    return "out: is a file; choose a new folder"


def a_link(folder):
    (folder / "out").rename(folder / "there")
    (folder / "out").symlink_to("there")
    return "out: is a link; name the folder itself"


def other_folder_in_its_way(folder):
    (folder / ".replaced-out").mkdir()
    (folder / ".replaced-out" / "notes.txt").write_text("kept")
    return r"\.replaced-out: exists already and is no earlier export"


def a_link_in_its_way(folder):
    (folder / "out").rename(folder / "there")
    (folder / ".replaced-out").symlink_to("there")
    return r"\.replaced-out: is a link"


@pytest.mark.parametrize(
    "damage",
    [
        other_file,
        other_folder,
        a_link_in_it,
        no_description,
        damaged_description,
        a_file,
        a_link,
        other_folder_in_its_way,
        a_link_in_its_way,
    ],
)
def test_what_is_no_earlier_export_stays(model, folder, tmp_path, damage):
    message = damage(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ExportError, match=message):
        export_merged(model, tmp_path / "out")
    assert content(tmp_path) == before


def test_what_a_kill_left_is_put_right(model, folder, tmp_path):
    folder.rename(tmp_path / ".replaced-out")
    export_merged(model, folder)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["", "."])
def test_the_current_folder_stays(model, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=f"{tmp_path}: is the current folder; name another one"):
        export_merged(model, place)
    assert os.getcwd() == str(tmp_path)


def test_places_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"file is not a folder"):
        export_merged(model, tmp_path / "file" / "deep" / "out")
    monkeypatch.setattr(export.os, "access", lambda path, mode: False)
    with pytest.raises(ExportError, match=r"out: cannot be written: no permission in "):
        export_merged(model, tmp_path / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_read_is_not_written_over(model, folder, tmp_path, tiny_backbone):
    for target in (folder, folder / "inside", tmp_path):
        with pytest.raises(ExportError, match=r"must lie outside .*out, which is read"):
            export_merged(model, target, apart_from=[folder])
    backbone = shutil.copytree(tiny_backbone("llama"), tmp_path / "backbone")
    with pytest.raises(ExportError, match=r"must lie outside .*backbone, which is read"):
        export_merged(new_model(backbone), backbone / "merged")


def test_a_full_disk(model, folder, tmp_path, monkeypatch):
    before = content(tmp_path)
    free = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(export.shutil, "disk_usage", lambda _: free)
        with pytest.raises(ExportError, match=r"no space left .*: [0-9,]+ bytes are needed, 1,000"):
            export_merged(model, folder)

    def full(self, place, **options):
        (Path(place) / "model.safetensors").write_bytes(b"half of it")
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ExportError, match=f"{target}: writing failed: No space left on device"):
            export_merged(model, target)
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_comes_meanwhile_stays(model, folder, monkeypatch):
    write = export._write_card

    def meanwhile(unfinished, described):
        (folder / "notes.txt").write_text("kept")
        write(unfinished, described)

    monkeypatch.setattr(export, "_write_card", meanwhile)
    with pytest.raises(ExportError, match=r"holds notes\.txt"):
        export_merged(model, folder)
    assert (folder / "notes.txt").read_text() == "kept"


KILLED = """
import os, signal, sys
from clara import Clara
from clara.integrations import export
model, target = Clara.from_pretrained(sys.argv[1]), sys.argv[2]
export._write_card = lambda folder, described: os.kill(os.getpid(), signal.SIGKILL)
export.export_merged(model, target)
"""


@pytest.mark.slow
@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_export_leaves_what_was_there(model, written, warm, tmp_path, existing):
    model.save_pretrained(tmp_path / "model")
    target = tmp_path / "place" / "out"
    if existing:
        shutil.copytree(written, target)
    before = {f.name: f.read_bytes() for f in target.iterdir()} if existing else {}
    command = [warm().python, "-c", KILLED, str(tmp_path / "model"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    (left,) = [each.name for each in target.parent.iterdir() if each.name != "out"]
    assert left.startswith(".")
    assert left.endswith(".tmp")
    assert target.exists() is existing
    assert not existing or {f.name: f.read_bytes() for f in target.iterdir()} == before
    export_merged(model, target)
    assert read(target)["fingerprint"] == model.fingerprint
