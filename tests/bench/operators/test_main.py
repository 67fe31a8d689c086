"""The operators' benchmarks run as far as a CPU goes, and say so."""

import argparse
import gc
import importlib
from collections import Counter

import pytest
import torch

from bench.operators import LIMITS
from bench.operators import __main__ as program
from bench.operators.case import Setting
from bench.operators.suite import cases
from bench.program import COMMITTED
from bench.recording import Recorder
from clara.reports.results import Measurement, read_results

FULL = Setting(torch.device("cpu"), tiny=False)
TINY = Setting(torch.device("cpu"), tiny=True)
CEILINGS = {"bandwidth": 1e9, "matrix_rate": 1e9}


@pytest.fixture(scope="module")
def compiler():
    """What baselines are compiled with, imported and left out of every later search for garbage,
    of which each case begins with two."""
    importlib.import_module("torch._inductor.compile_fx")
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", params=LIMITS)
def dry_run(request, compiler, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "out" / "results.json"
    copy = path.parent / "copy.json"
    arguments = ["--device", "cpu", "--output", str(path), "--copy", str(copy)]
    status = program.main([*arguments, "--suite", request.param])
    assert path.read_text() == copy.read_text()
    return request.param, status, read_results(path)


@pytest.mark.slow
def test_every_case_agrees_with_its_baselines(dry_run):
    suite, status, results = dry_run
    assert status == 0
    assert results.of("operators") == [m for m in results.measurements if m.samples]
    measured = {each.case.partition(",")[0] for each in results.measurements}
    assert measured == set(LIMITS[suite])
    ours = {each.case_key for each in results.measurements if each.implementation == "ours"}
    tolerances = {case.full_name: case.tolerance for name in measured for case in cases(name, TINY)}
    for each in results.measurements:
        assert each.case_key in ours
        if each.implementation == "varlen":
            assert each.withheld == "varlen_attn needs a GPU"
        else:
            assert len(each.samples) == 2, each.withheld
            low, high = each.spread
            assert low <= each.median <= high
        if each.implementation == "empty kernel":  # there is nothing to compare
            assert each.quantities == {}
        elif each.samples:
            assert each.quantities["bytes"] > 0
        if each.implementation not in ("ours", "empty kernel") and each.samples:
            tolerance = tolerances[each.case]
            if suite == "operators":  # a dry run computes in float32
                tolerance = min(tolerance, 1e-4)
            assert each.quantities["difference"] <= tolerance, each.case


@pytest.mark.slow
def test_a_dry_run_is_marked_and_judges_nothing(dry_run):
    _, _, results = dry_run
    assert results.environment["dry_run"] is True
    assert results.promises == []
    assert set(results.ceilings) == {"bandwidth", "matrix_rate"}


def test_a_dry_run_is_never_kept_as_a_result(capsys):
    for arguments in ([], ["--output", str(COMMITTED / "cpu" / "kernels.json")]):
        with pytest.raises(SystemExit):
            program.main(["--device", "cpu", *arguments])
    assert "a dry run is no result" in capsys.readouterr().err
    assert not (COMMITTED / "cpu").exists()


def test_an_operator_belongs_to_its_suite(tmp_path, capsys):
    options = ["--device", "cpu", "--output", str(tmp_path / "r.json"), "--suite", "scoring"]
    with pytest.raises(SystemExit):
        program.main([*options, "--operator", "sparsemax"])
    assert "--operator sparsemax is not one of --suite scoring" in capsys.readouterr().err


def promised(suite):
    found = {}
    for name in LIMITS[suite]:
        for case in cases(name, FULL):
            assert case.operator == name
            assert case.bytes > 0
            for target in case.targets:
                assert (target.at_least is None) != (target.at_most is None)
                assert not target.of or target.of in case.baselines
                found.setdefault(name, {}).setdefault(target.what, []).append(case.name)
    return found


def test_every_promise_is_measured_by_full_size_cases():
    assert {name: len(what) for name, what in promised("operators").items()} == {
        "cosine_scores": 3,
        "select_topk": 3,
        "sparsemax": 2,
        "memory_alignment_loss": 2,
        "memory_attention": 4,
    }


def test_promised_searches_are_measured_at_full_size():
    found = promised("scoring")
    counts = {name: {what: len(c) for what, c in by.items()} for name, by in found.items()}
    assert counts == {
        "cosine_topk_few": {
            "B <= 8: 85% of copy bandwidth": 16,
            "workspace of at most 64 MiB": 16,
        },
        "cosine_topk_many": {
            "workspace of at most 64 MiB": 8,
            "bfloat16, D=576: 2 times matmul and topk": 1,
            "bfloat16, D=32768: 0.8 times matmul and topk": 1,
            "bfloat16, D=32768: 45% of the matrix rate": 1,
        },
    }
    many = found["cosine_topk_many"]
    assert many["bfloat16, D=576: 2 times matmul and topk"] == ["bfloat16, B=256, N=1000000, D=576"]


def test_no_two_cases_of_a_file_have_one_name():
    for limits in LIMITS.values():
        names = Counter(case.full_name for name in limits for case in cases(name, FULL))
        assert names.most_common(1)[0][1] == 1


@pytest.fixture
def options():
    return argparse.Namespace(device="cpu", suite="operators", only="")


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(tmp_path / "kernels.json", {}, [tmp_path / "copy.json"])
    recorder.results.ceilings = CEILINGS
    recorder.save()
    return recorder


def test_each_operator_is_measured_in_a_process_of_its_own(recorder, options, tmp_path):
    options.only = "64 columns"
    assert program.measure_apart("sparsemax", recorder, 60, options)
    assert program.measure_apart("rank_and_select", recorder, 60, options)
    assert [(each.case, each.implementation) for each in recorder.results.measurements] == [
        ("sparsemax, float32, 64 columns, forward", "ours"),
        ("sparsemax, float32, 64 columns, forward", "sort"),
        ("sparsemax, float32, 64 columns, backward", "ours"),
        ("sparsemax, float32, 64 columns, backward", "sort"),
    ]
    assert read_results(tmp_path / "copy.json") == recorder.results


def test_one_that_hangs_or_breaks_costs_only_itself(recorder, options, monkeypatch):
    assert not program.measure_apart("sparsemax", recorder, 1.0, options)
    hangs = ["-c", "import time; time.sleep(60)"]
    with monkeypatch.context() as patched:
        patched.setattr(program, "STARTING", 0.0)
        assert not program.measure_apart("cosine_scores", recorder, 1.0, options, hangs)
    breaks = ["-c", "raise SystemExit(7)"]
    assert not program.measure_apart("quantization", recorder, 60.0, options, breaks)
    some_failed = ["-c", f"raise SystemExit({program.SOME_FAILED})"]
    assert not program.measure_apart("select_topk", recorder, 60.0, options, some_failed)
    assert recorder.results.measurements == [
        Measurement("operators", name, "ours", withheld=reason)
        for name, reason in (
            ("sparsemax", "not run, out of time"),
            ("cosine_scores", "stopped after 1 s"),
            ("quantization", "its process ended with 7"),
        )
    ]


def test_what_fails_or_is_missing_stops_nothing_else(recorder, monkeypatch, capsys):
    from .toys import broken, missing, toy

    found = [
        toy(torch.exp, {"right": torch.exp}, name="right"),
        toy(torch.exp, {"wrong": torch.sin, "right": torch.exp}, name="wrong"),
        toy(missing, {}, name="missing"),
        toy(broken, {}, name="broken"),
    ]
    monkeypatch.setattr(program, "cases", lambda name, setting: found)
    setting = Setting(torch.device("cpu"), tiny=True)
    assert not program.measure_operator("toy", setting, recorder, "", 60.0)
    assert program.measure_operator("toy", setting, Recorder(None, {}), "missing", 60.0)
    ours = {m.case: m.withheld for m in recorder.results.measurements if m.implementation == "ours"}
    assert ours == {
        "toy, right": "",
        "toy, wrong": "ours and a baseline do not compute the same",
        "toy, missing": "toy is not there",
        "toy, broken": "RuntimeError: out of memory",
    }
    printed = capsys.readouterr().out
    assert "toy, missing: missing: toy is not there" in printed
    assert "toy, broken: FAILED: RuntimeError: out of memory" in printed


def test_a_case_is_not_begun_when_time_is_up(recorder, monkeypatch):
    from .toys import toy

    monkeypatch.setattr(program, "cases", lambda name, setting: [toy(torch.exp, {})])
    assert program.measure_operator("toy", FULL, recorder, "", -1.0)
    (found,) = recorder.results.measurements
    assert found.withheld == "not run, out of time"
