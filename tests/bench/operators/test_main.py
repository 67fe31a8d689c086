"""The operators' benchmarks run as far as a CPU goes, and say so."""

import argparse
import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from bench.operators import LIMITS
from bench.operators import __main__ as bench_operators
from bench.operators.case import Case, Run, Setting, Target, Unavailable, operator
from bench.results import COMMITTED, Results, table, targets

SETTING = Setting(torch.device("cpu"), tiny=True)
CEILINGS = {"copy_bytes_per_s": 1e9, "matrix_flops_per_s": 1e9}
FULL = Setting(torch.device("cpu"), tiny=False)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "out" / "kernels.json"
    copy = path.parent / "copy.json"
    arguments = ["--device", "cpu", "--output", str(path), "--copy", str(copy)]
    status = bench_operators.main(arguments)
    assert path.read_text() == copy.read_text()
    return status, json.loads(path.read_text())


@pytest.mark.slow
def test_every_case_agrees_with_its_baselines(dry_run):
    status, content = dry_run
    assert status == 0
    assert content["notes"] == []
    assert {case["operator"] for case in content["cases"]} == set(LIMITS)
    for case in content["cases"]:
        where = f"{case['operator']}, {case['case']}: {case['status']}"
        assert case["status"] == "measured" or case["status"].startswith("missing"), where
        if case["status"] != "measured":
            continue
        assert case["ours"]["p20_s"] <= case["ours"]["median_s"] <= case["ours"]["p80_s"]
        for name, side in case["baselines"].items():
            if name == "varlen":
                assert side == {"missing": "varlen_attn needs a GPU"}
            elif name != "empty kernel":
                assert side["difference"] <= 1e-4, where
                assert side["ratio"] == side["median_s"] / case["ours"]["median_s"]


@pytest.mark.slow
def test_a_dry_run_is_marked_and_reaches_nothing(dry_run):
    _, content = dry_run
    assert content["dry_run"]
    assert content["targets"]
    assert all(target["reached"] is None for target in content["targets"])
    assert "A dry run on CPU" in table(content).splitlines()[-1]


def test_a_dry_run_is_never_kept_as_a_result(capsys):
    for arguments in ([], ["--output", str(COMMITTED / "cpu" / "kernels.json")]):
        with pytest.raises(SystemExit):
            bench_operators.main(["--device", "cpu", *arguments])
    assert "a dry run is no result" in capsys.readouterr().err
    assert not (COMMITTED / "cpu").exists()


def test_every_promise_is_measured_by_full_size_cases():
    promised = {}
    for name in LIMITS:
        for case in importlib.import_module(f"bench.operators.{name}").cases(FULL):
            assert case.operator == name
            assert case.bytes > 0
            for target in case.targets:
                assert (target.at_least is None) != (target.at_most is None)
                assert not target.of or target.of in case.baselines
                promised.setdefault(name, set()).add(target.what)
    assert {name: len(what) for name, what in promised.items()} == {
        "cosine_scores": 3,
        "select_topk": 3,
        "sparsemax": 2,
        "memory_alignment_loss": 2,
        "memory_attention": 4,
    }


def case(ours, baselines, **options):
    prepare = {name: lambda x, f=f: Run(lambda: f(x)) for name, f in baselines.items()}
    return Case(
        operator="toy",
        name="toy",
        inputs=lambda seed: torch.randn(100, generator=torch.Generator().manual_seed(seed)),
        ours=lambda x: Run(lambda: ours(x)),
        baselines=prepare,
        bytes=800,
        **options,
    )


def missing(x):
    raise Unavailable("toy is not there")


def broken(x):
    raise RuntimeError("out of memory\nmore")


def test_sides_that_differ_are_not_timed():
    found = bench_operators.measure(
        case(torch.exp, {"wrong": torch.sin, "right": torch.exp}), SETTING, CEILINGS
    )
    assert found["status"] == "error: ours and a baseline do not compute the same"
    assert "differs from ours" in found["baselines"]["wrong"]["error"]
    assert found["ours"] == {}
    nan = bench_operators.measure(
        case(torch.exp, {"nan": lambda x: x * math.nan}), SETTING, CEILINGS
    )
    assert nan["status"].startswith("error")
    assert nan["baselines"]["nan"]["difference"] == math.inf


def test_what_fails_or_is_missing_stops_nothing_else():
    found = bench_operators.measure(
        case(torch.exp, {"gone": missing, "broken": broken, "right": torch.exp}), SETTING, CEILINGS
    )
    assert found["status"] == "measured"
    assert found["baselines"]["gone"] == {"missing": "toy is not there"}
    assert found["baselines"]["broken"] == {"error": "RuntimeError: out of memory"}
    assert found["baselines"]["right"]["ratio"] > 0
    assert bench_operators.measure(case(missing, {}), SETTING, CEILINGS)["status"] == (
        "missing: toy is not there"
    )
    assert bench_operators.measure(case(broken, {}), SETTING, CEILINGS)["status"] == (
        "error: RuntimeError: out of memory"
    )
    with pytest.raises(Unavailable, match="clara_kernels has no nonsense"):
        operator("nonsense")


def entry(measured, name="a", **limits):
    limits = {"at_least": None, "at_most": None, **limits}
    target = {"what": "fast", "measured": measured, **limits}
    return {"operator": "toy", "case": name, "targets": [target]}


def test_a_promise_is_as_good_as_its_worst_case():
    (found,) = targets([entry(3.0, at_least=2), entry(2.5, "b", at_least=2)])
    assert (found["measured"], found["case"], found["reached"]) == (2.5, "b", True)
    (found,) = targets([entry(3.0, at_least=2), entry(1.9, "b", at_least=2)])
    assert found["reached"] is False
    (found,) = targets([entry(3.0, at_least=2), entry(None, "b", at_least=2)])
    assert (found["measured"], found["reached"]) == (3.0, None)
    (found,) = targets([entry(None, at_least=2), entry(1.0, "b", at_least=2)])
    assert (found["measured"], found["reached"]) == (1.0, False)
    (found,) = targets([entry(0.5, at_most=1), entry(0.9, "b", at_most=1)])
    assert (found["measured"], found["case"], found["reached"]) == (0.9, "b", True)
    (found,) = targets([entry(1.1, at_most=1)])
    assert found["reached"] is False
    (found,) = targets([entry(None, at_most=1)])
    assert (found["measured"], found["reached"]) == (None, None)


def test_what_is_measured():
    ours = {"median_s": 3.0, "copy_share": 0.5, "extra_bytes": 10}
    found = {"ours": ours, "baselines": {"slow": {"median_s": 1.0, "ratio": 1 / 3}}}
    toy = case(torch.exp, {}, candidate_bytes=1000)

    def measured(*arguments):
        target = Target("", *arguments, at_least=1.0)
        return bench_operators._measured(target, found, toy, {"copy_bytes_per_s": 400.0})

    assert measured("bandwidth") == 0.5
    assert measured("ratio", "slow") == 1 / 3
    assert measured("ratio", "absent") is None
    assert measured("beyond", "slow") == 1.0  # 2 s more, 800 bytes at 400 B/s
    assert measured("extra memory") == 0.01


def test_each_operator_is_measured_in_a_process_of_its_own(tmp_path):
    results = Results(tmp_path / "kernels.json", [tmp_path / "copy.json"])
    results.start(dry_run=True, ceilings=CEILINGS)
    options = argparse.Namespace(device="cpu", only="64 columns")
    bench_operators._measure_apart("sparsemax", results, 60, options)
    bench_operators._measure_apart("rank_and_select", results, 60, options)
    assert results.content["notes"] == []
    assert [case["case"] for case in results.content["cases"]] == [
        "float32, 64 columns, forward",
        "float32, 64 columns, backward",
    ]
    assert json.loads((tmp_path / "copy.json").read_text()) == results.content


def test_one_that_hangs_costs_only_itself(tmp_path, monkeypatch):
    results = Results(tmp_path / "kernels.json")
    results.start(dry_run=True)
    options = argparse.Namespace(device="cpu", only="")
    bench_operators._measure_apart("sparsemax", results, 1.0, options)
    assert results.content["notes"] == ["sparsemax: not run, out of time"]
    script = Path(tmp_path / "hangs.py")
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(bench_operators, "__file__", str(script))
    bench_operators._measure_apart("sparsemax", results, 5.0, options)
    assert results.content["notes"][1] == "sparsemax: stopped after 5 s"
