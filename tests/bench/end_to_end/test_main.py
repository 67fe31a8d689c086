"""Answers and compression end to end run as far as a CPU goes, and say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import backbones
from bench.end_to_end import run as bench
from bench.end_to_end.__main__ import main
from bench.end_to_end.recording import Recording
from bench.end_to_end.ways import LOGIT_TOLERANCES, BatchWays, distance
from bench.program import COMMITTED
from bench.ways import MEMORY, MERGED, ONLINE, REFERENCE, TEXT
from clara.reports.results import Measurement, read_results

CPU = torch.device("cpu")
WAYS = {MEMORY, MERGED, ONLINE, TEXT, REFERENCE}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "out" / "end-to-end.json"
    copy = path.parent / "copy.json"
    arguments = ["--device", "cpu", "--backbone", "random:tiny", "--output", str(path)]
    status = main([*arguments, "--copy", str(copy)])
    assert path.read_text() == copy.read_text()
    return status, path


@pytest.fixture(scope="module")
def ways():
    backbone = backbones.load("random:tiny", CPU)
    model = backbone.clara(16, document_length=bench.TINY.limit)
    return BatchWays(backbone, model, bench.TINY.asked)


@pytest.mark.slow
def test_everything_is_measured(dry_run):
    status, path = dry_run
    assert status == 0
    results = read_results(path)
    for rate in bench.RATES:
        for case in (bench.FIRST, bench.WHOLE):
            for name in WAYS:
                found = results.find("question", case, name, rate=rate, backbone="random:tiny")
                assert found.parameters == {
                    "rate": rate,
                    "k": 2,
                    "documents": 30,
                    "batch": 3,
                    "backbone": "random:tiny",
                }
                assert found.quantities["questions"] == 3
                assert found.quantities.get("difference", 0) < 1e-4
            tokens = [
                results.find("question", case, name, rate=rate).quantities["prompt_tokens"]
                for name in (MEMORY, TEXT)
            ]
            # Two documents of 24 tokens against as many of their slots and separators.
            slots = 2 * (bench.TINY.limit // rate + 1)
            assert tokens[1] - tokens[0] == pytest.approx(2 * 24 - slots, abs=3)
        found = results.find("compress", bench.THROUGHPUT, bench.OURS, rate=rate)
        assert found.quantities["documents"] == bench.TINY.documents
    for case in (bench.THROUGHPUT, bench.FULL):
        found = results.find("compress", case, bench.REFERENCE_WAY, rate=16, backbone="random:tiny")
        assert found.quantities["difference"] < 1e-5
    full = results.find("compress", bench.FULL, bench.OURS)
    assert full.quantities["tokens"] == bench.TINY.documents * bench.TINY.limit


@pytest.mark.slow
def test_nf4_is_measured_or_said_to_be_missing(dry_run):
    _, path = dry_run
    of_nf4 = [m for m in read_results(path).measurements if m.parameters["backbone"].endswith("f4")]
    for case in (bench.THROUGHPUT, bench.FIRST, bench.WHOLE):
        assert any(each.case == case for each in of_nf4)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        assert {each.withheld for each in of_nf4} == {"bitsandbytes is not installed"}
        return
    withheld = {each.implementation: each.withheld for each in of_nf4 if each.withheld}
    assert withheld == {MERGED: "quantized weights cannot be merged"}


@pytest.mark.slow
def test_a_dry_run_is_marked_and_judges_nothing(dry_run):
    _, path = dry_run
    results = read_results(path)
    assert results.environment["dry_run"] is True
    assert results.promises == []
    assert results.environment["backbones"][0].startswith("random:tiny: random weights")
    assert str(Path(__file__).parent) not in path.read_text()


def test_a_dry_run_is_never_kept_as_a_result(capsys):
    for arguments in ([], ["--output", str(COMMITTED / "cpu" / "end-to-end.json")]):
        with pytest.raises(SystemExit):
            main(["--device", "cpu", *arguments])
    assert "a dry run is no result" in capsys.readouterr().err
    assert not (COMMITTED / "cpu").exists()


def test_a_second_backbone_is_added_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Recording, "measure_ceilings", lambda self, device: None)
    file = tmp_path / "end-to-end.json"

    def start(backbone, add, machine="one"):
        recorder = Recording(file, {})
        recorder.start({"device": machine, "date": "today"}, backbone, add, CPU)
        recorder.results.environment["backbones"].append(f"{backbone}: weights")
        for name in (backbone, f"{backbone}, nf4"):
            recorder.add(Measurement("s", "c", "i", {"rate": 4, "backbone": name}, samples=[1.0]))
        return recorder

    def names():
        return [each.parameters["backbone"] for each in read_results(file).measurements]

    start("random:a", add=True)
    start("random:b", add=True)
    assert names() == ["random:a", "random:a, nf4", "random:b", "random:b, nf4"]
    assert len(read_results(file).environment["backbones"]) == 2
    start("a", add=True)  # the same with its weights at hand
    assert names() == ["random:b", "random:b, nf4", "a", "a, nf4"]
    start("random:b", add=True, machine="another")
    assert names() == ["random:b", "random:b, nf4"]
    start("random:a", add=False)
    assert names() == ["random:a", "random:a, nf4"]


def test_ways_that_compute_something_else_are_told_apart(ways):
    apart = ways.differences()
    assert set(apart) == WAYS - {MEMORY}
    assert max(apart.values()) < 1e-4
    with torch.no_grad():
        for name, parameter in ways.reference.backbone.named_parameters():
            if ".generator." in name:
                parameter.mul_(1.5)
    apart = ways.differences()
    assert apart[REFERENCE] > 10 * LOGIT_TOLERANCES[torch.float32]
    assert max(value for name, value in apart.items() if name != REFERENCE) < 1e-4
    assert distance(torch.tensor([[float("nan"), 1.0]]), torch.ones(1, 2)) == float("inf")


def test_a_way_that_computes_something_else_gets_no_figure(ways, monkeypatch):
    recorder = Recording(None, {})
    monkeypatch.setattr(BatchWays, "differences", lambda self: {TEXT: 0.5, ONLINE: 0.0})
    monkeypatch.setattr(bench, "BatchWays", lambda *arguments: ways)
    run = bench.Run(CPU, recorder, bench.TINY, exact={MERGED: 0.2})
    run.answers(backbones.load("random:tiny", CPU), 16, 0.0)
    withheld = [m for m in recorder.results.measurements if m.withheld]
    assert {(m.case, m.implementation) for m in withheld} == {
        (case, name) for case in (bench.FIRST, bench.WHOLE) for name in (TEXT, MERGED)
    }
    assert withheld[0].withheld == "the first logits differ by 5.0e-01, more than 0.01"
    timed_ways = {m.implementation for m in recorder.results.measurements if m.samples}
    assert timed_ways == WAYS - {TEXT, MERGED}


def test_a_few_layers_are_compared_in_float32(monkeypatch):
    run = bench.Run(CPU, Recording(None, {}), bench.TINY)
    loaded = []
    monkeypatch.setattr(bench, "BatchWays", lambda *a: loaded.append(a[0]) or BatchWays(*a))
    assert run.check_exactly("random:tiny")
    assert set(run.exact) == WAYS - {MEMORY}
    assert max(run.exact.values()) < 1e-4
    assert loaded[0].model.dtype == torch.float32
    assert loaded[0].model.config.num_hidden_layers == bench.EXACT_LAYERS
    assert not run.check_exactly("random:nothing")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["end_to_end", "operators", "small"])
def test_it_needs_few_packages(program):
    """A bare machine has no pylance, pydantic, pytest-benchmark or matplotlib."""
    absent = "lance", "pydantic", "pytest_benchmark", "matplotlib", "pyarrow"
    code = f"""
import sys
for name in {absent!r}:
    sys.modules[name] = None
import bench.{program}.__main__
"""
    root = COMMITTED.parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_file_is_one_that_a_report_reads(dry_run):
    _, path = dry_run
    content = json.loads(path.read_text())
    assert content["format"] == "clara-benchmark/1"
    assert set(content["ceilings"]) == {"bandwidth", "matrix_rate"}
