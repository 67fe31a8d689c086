"""First stages on disk: written once, read in another process, damaged files refused."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara_kernels import Corpus, Faiss, MeanPooled, RandomProjection
from clara_kernels.two_stage import first_stage

MAKE = {
    "mean int8": lambda corpus: MeanPooled(corpus, 4),
    "mean float16": lambda corpus: MeanPooled(corpus, 4, torch.float16),
    "projection int8": lambda corpus: RandomProjection(corpus, 10, 2**64 - 5),
    "projection bfloat16": lambda corpus: RandomProjection(corpus, 10, 7, torch.bfloat16),
    "faiss flat": lambda corpus: Faiss("Flat", corpus),
    "faiss ivf": lambda corpus: Faiss("IVF4,SQ8", corpus),
}
STAGES = {"MeanPooled": MeanPooled, "RandomProjection": RandomProjection}

LOAD = """
import sys, torch, clara_kernels
torch.set_num_threads(1)
folder = sys.argv[1]
given = torch.load(f"{folder}/given.pt")
found = {}
for name, kind in given["kinds"].items():
    first = getattr(clara_kernels, kind).load(f"{folder}/stages/{name}")
    found[name] = first.candidates(given["queries"], 30)
torch.save(found, f"{folder}/found.pt")
"""


@pytest.mark.slow
def test_another_process_finds_the_same(warm, tmp_path):
    corpus, queries = Corpus(torch.randn(120, 32)), torch.randn(5, 32)
    firsts = {name: make(corpus) for name, make in MAKE.items()}
    (tmp_path / "stages").mkdir()
    for name, first in firsts.items():
        (tmp_path / "stages" / name).write_text("what was there before")
        first.save(tmp_path / "stages" / name)
    assert {path.name for path in (tmp_path / "stages").iterdir()} == set(MAKE)
    kinds = {name: type(first).__name__ for name, first in firsts.items()}
    torch.save({"queries": queries, "kinds": kinds}, tmp_path / "given.pt")
    command = [warm().python, "-c", LOAD, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt")
    for name, first in firsts.items():
        assert found[name].equal(first.candidates(queries, 30)), name


@pytest.mark.parametrize("name", [name for name in MAKE if "faiss" not in name])
def test_what_is_loaded_is_what_was_saved(tmp_path, name):
    first = MAKE[name](Corpus(torch.randn(12, 32)))
    first.save(str(tmp_path / "stage"))
    loaded = type(first).load(tmp_path / "stage")
    assert loaded.codes.rows.equal(first.codes.rows)
    assert loaded.codes.inverse_norms.equal(first.codes.inverse_norms)
    assert (loaded.width, len(loaded)) == (32, 12)
    vectors = torch.randn(3, 32)
    assert loaded.reduce(vectors).equal(first.reduce(vectors))
    assert list(load_file(tmp_path / "stage")) == ["codes"]


@pytest.mark.parametrize("name", STAGES)
def test_files_that_are_no_stage(tmp_path, name):
    stage, path = STAGES[name], tmp_path / "stage"
    codes = {"codes": torch.ones(3, 4, dtype=torch.int8)}
    good = {"format": first_stage._FORMAT, "kind": name, "width": "8"}
    own = {"memory_tokens": "2"} if name == "MeanPooled" else {"seed": "1"}
    save_file(codes, path, metadata=good | own)
    assert len(stage.load(path)) == 3
    bad_own = {"memory_tokens": "3"} if name == "MeanPooled" else {"seed": "-1"}
    for tensors, metadata in (
        (codes, None),
        (codes, good),
        (codes, good | {"kind": "Other"} | own),
        (codes, good | {"format": "2"} | own),
        (codes, good | {"width": "x"} | own),
        (codes, good | {"width": "3"} | own),
        (codes, good | bad_own),
        ({"other": codes["codes"]}, good | own),
        ({"codes": torch.ones(3, 4, 5)}, good | own),
        ({"codes": torch.full((3, 4), torch.nan)}, good | own),
        ({"codes": torch.ones(3, 4).double()}, good | own),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match=f"^path '{path}' must be a saved {name}: ") as caught:
            stage.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*STAGES, "Faiss"])
def test_damaged_and_missing_files(tmp_path, name):
    stage, path = (STAGES | {"Faiss": Faiss})[name], tmp_path / "stage"
    with pytest.raises(FileNotFoundError, match=f"^path '{path}' does not exist$"):
        stage.load(path)
    first = {
        "MeanPooled": "mean int8",
        "RandomProjection": "projection int8",
        "Faiss": "faiss flat",
    }
    MAKE[first[name]](Corpus(torch.randn(50, 32))).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:20], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^path '{path}' must be a") as caught:
            stage.load(path)
        assert "\n" not in str(caught.value)


def test_an_index_of_another_metric(tmp_path):
    faiss = pytest.importorskip("faiss")
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "stage"))
    with pytest.raises(ValueError, match=r"^index must be by inner product, got metric 1$"):
        Faiss.load(tmp_path / "stage")


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "stage"
    path.write_text("before")

    def fail(codes, temporary, metadata):
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        MeanPooled(Corpus(torch.randn(5, 4)), 2).save(path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["stage"]


def test_safetensors_is_asked_for_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = r"^first stages are saved with safetensors: pip install safetensors$"
    with pytest.raises(ModuleNotFoundError, match=message):
        MeanPooled(Corpus(torch.randn(5, 4)), 2).save(tmp_path / "stage")
