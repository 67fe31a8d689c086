"""The steps of `make gpu-check`, with stand-ins where a GPU would be."""

import json
import sys

import pytest

from bench import gpu_check

GPU = {"torch": "2.11.0", "cuda": "13.0", "gpu": "NVIDIA H100", "capability": [9, 0]}


def step(name, code, limit=20, **options):
    return gpu_check.Step(name, "log", [sys.executable, "-c", code], limit, **options)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that claims a GPU, has no compiler, and writes to `tmp_path`."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu_check, "probe", lambda: GPU)
    monkeypatch.setattr(gpu_check, "find_tool", lambda *names: None)
    return tmp_path


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "PROBE", "raise RuntimeError('no NVIDIA driver')")
    assert gpu_check.main(["kernels"]) == 1
    assert capsys.readouterr().err.endswith("sees a GPU: RuntimeError: no NVIDIA driver\n")


def test_unknown_part(capsys):
    assert gpu_check.main(["scores"]) == 2
    assert (
        "PART must be one of kernels, scoring, end-to-end, model, got 'scores'"
        in capsys.readouterr().err
    )


def test_a_failing_step_does_not_stop_the_next(machine, monkeypatch, capsys):
    steps = [
        step("one", "raise SystemExit('broken')"),
        step("two", "import time; print('begun', flush=True); time.sleep(60)", limit=1),
        step("three", "import clara_kernels; print('path', clara_kernels.__file__)"),
    ]
    monkeypatch.setattr(gpu_check, "PARTS", {"kernels": lambda out: steps})
    assert gpu_check.main(["kernels"]) == 1
    printed = capsys.readouterr().out
    assert "build: skipped, there is no nvcc" in printed
    assert "one: FAILED" in printed
    assert "  broken" in printed
    assert "  stopped after 1 s" in printed
    assert "three: passed" in printed
    assert f"failed: one, two (logs in {machine})" in printed
    log = (machine / "log").read_text()
    assert all(f"== {name}: " in log for name in ("one", "two", "three"))


def test_nothing_begins_when_time_is_up(machine, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "PARTS", {"kernels": lambda out: [step("one", "")]})
    monkeypatch.setattr(gpu_check, "PART_SECONDS", 5)
    assert gpu_check.main([]) == 1
    assert "one: not run, out of time" in capsys.readouterr().out


def test_benchmarks_are_told_their_limit_and_their_table_is_last(machine, monkeypatch, capsys):
    content = {"cases": [], "notes": ["toy: stopped"], "dry_run": False}
    target = {"operator": "toy", "what": "fast", "at_least": 2, "at_most": None}
    content["targets"] = [{**target, "measured": 2.5, "case": "a case", "reached": True}]
    code = f"""
import pathlib, sys
assert sys.argv[1] == "--limit" and 0 < float(sys.argv[2]) <= 10
pathlib.Path({str(machine)!r}, "kernels.json").write_text({json.dumps(content)!r})
"""
    steps = [step("bench", code, tell_limit=True)]
    monkeypatch.setattr(gpu_check, "PARTS", {"kernels": lambda out: steps})
    assert gpu_check.main(["kernels"]) == 0
    *_, target_line, note, last = capsys.readouterr().out.splitlines()
    assert target_line.split() == ["toy", "fast", ">=", "2", "2.5", "yes", "a", "case"]
    assert note == "toy: stopped"
    assert last == f"all passed (logs in {machine})"


def test_the_extension_is_built_for_this_gpu_alone(machine, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu_check, "find_tool", lambda name, first=None: f"/cuda/bin/{name}")

    def run(step, limit, paths, out):
        ran.append(step)
        return True

    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.main([]) == 0
    assert ran[0].environment == {
        "CLARA_CUDA": "ON",
        "CLARA_CUDA_ARCHS": "90",
        "CUDACXX": "/cuda/bin/nvcc",
    }
    assert "--no-index" in ran[0].command
    names = [step.name for step in ran]
    assert names == [
        *("build", "describe", "gpu tests", "small calls", "memcheck", "kernel benchmarks"),
        *("racecheck", "search tests", "small searches", "memcheck", "search benchmarks"),
        *("racecheck", "SmolLM2-135M end to end", "Mistral-7B end to end"),
        *("tests", "model benchmarks"),
    ]
    memcheck = ran[4]
    assert memcheck.command[:3] == ["/cuda/bin/compute-sanitizer", "--tool", "memcheck"]
    assert memcheck.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = next(step for step in ran if step.name == "tests").command
    assert not any(argument.endswith("clara_kernels") for argument in tests)
    assert any(argument.endswith("clara_kernels/test_build.py") for argument in tests)


def test_each_part_leaves_few_files(tmp_path):
    """What comes back from a machine elsewhere may be limited to eight files."""
    for part in gpu_check.PARTS.values():
        steps = part(tmp_path)
        assert len({step.log for step in steps} | {"build.log", *gpu_check.RESULTS}) <= 8


def test_every_test_of_an_operator_belongs_to_one_part(tmp_path):
    run = {}
    for name in ("kernels", "scoring"):
        tests = next(step for step in gpu_check.PARTS[name](tmp_path) if "tests" in step.name)
        run[name] = {word.rpartition("/")[2] for word in tests.command if "/test_" in word}
    folder = gpu_check.ROOT / "tests" / "clara_kernels"
    assert run["kernels"] | run["scoring"] == {path.name for path in folder.rglob("test_*.py")}
    assert not run["kernels"] & run["scoring"]
    assert "test_cosine_topk.py" in run["scoring"]
    assert "test_cosine_scores.py" in run["kernels"]


def test_results_of_search_are_shown(machine, monkeypatch, capsys):
    content = {"cases": [], "notes": ["search was measured"], "targets": [], "dry_run": False}
    command = [
        sys.executable,
        "-c",
        f"""
import pathlib, sys
pathlib.Path(sys.argv[1]).write_text({json.dumps(content)!r})
""",
    ]

    def scoring(out):
        bench = next(step for step in steps(out) if step.name == "search benchmarks")
        assert bench.tell_limit
        return [gpu_check.Step("bench", "log", [*command, bench.command[-1]], 20)]

    steps = gpu_check.PARTS["scoring"]
    monkeypatch.setattr(gpu_check, "PARTS", {"scoring": scoring})
    assert gpu_check.main(["scoring"]) == 0
    assert "search was measured" in capsys.readouterr().out
    assert (machine / "scoring.json").exists()


def test_both_backbones_are_measured_end_to_end_into_one_file(tmp_path):
    steps = gpu_check.PARTS["end-to-end"](tmp_path)
    names = [step.command[step.command.index("--backbone") + 1] for step in steps]
    assert names == ["smollm2-135m", "random:mistral-7b"]
    for each in steps:
        assert each.tell_limit
        assert each.command[each.command.index("--copy") + 1] == str(tmp_path / "end-to-end.json")
    assert ["--add" in step.command for step in steps] == [False, True]
    assert sum(step.limit for step in steps) < gpu_check.PART_SECONDS


def test_what_is_shown_of_answers_end_to_end(tmp_path, capsys):
    where = {"rate": 16, "backbone": "random:toy"}
    common = {"parameters": where, "unit": "s", "quantities": {}, "withheld": "", "samples": []}
    measured = [
        {"case": "first", "implementation": "memory", "samples": [0.1, 0.3, 0.2]},
        {"case": "first", "implementation": "text", "withheld": "differs"},
        {"case": "peak", "implementation": "text", "unit": "bytes", "samples": [3 * 2**20]},
        {
            "case": "throughput",
            "implementation": "ours",
            "samples": [2.0],
            "quantities": {"documents": 10},
        },
    ]
    promise = {"what": "fast", "measured": 5.5, "at_least": 5.0, "outcome": "kept"}
    content = {
        "measurements": [common | each for each in measured],
        "environment": {"backbones": ["random:toy: random weights"]},
        "promises": [promise],
    }
    file = tmp_path / "end-to-end.json"
    file.write_text(json.dumps(content))
    gpu_check.print_results(file)
    assert capsys.readouterr().out.splitlines() == [
        "random:toy, 16x, first: memory 200.0 ms; text withheld, differs",
        "random:toy, 16x, peak: text 3 MiB",
        "random:toy, 16x, throughput: ours 2000.0 ms (5 documents/s)",
        "random:toy: random weights",
        "fast: 5.50 (promised at least 5), kept",
    ]


def test_steps_name_files_that_exist(tmp_path):
    for part in gpu_check.PARTS.values():
        for each in part(tmp_path):
            scripts = [word for word in each.command if word.endswith(".py")]
            assert scripts
            assert all((gpu_check.ROOT / script).exists() for script in scripts)


def test_files_that_run_together(tmp_path, capsys):
    code = "import pytest\n@pytest.mark.gpu\ndef test_it():\n    assert {}\n"
    files = {"test_one.py": True, "test_two.py": False, "test_three.py": True}
    for name, passes in files.items():
        (tmp_path / name).write_text(code.format(passes))
    paths = [str(tmp_path / name) for name in files]
    assert gpu_check.run_together(paths[:1]) == 0
    assert capsys.readouterr().out.endswith("1 files passed\n")
    assert gpu_check.run_together(paths) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("failed: test_two.py\n")
    assert printed.count("1 passed") == 2


def test_a_test_that_lacks_an_optional_package_is_skipped(tmp_path, capsys):
    test = tmp_path / "test_sample.py"
    test.write_text(
        "import pytest\n"
        "def test_optional():\n    raise ModuleNotFoundError('no', name='lance.file')\n"
        "def test_other():\n    raise ModuleNotFoundError('no', name='numpy')\n"
    )
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:cov", "-c", "/dev/null", str(test)]
    assert gpu_check.run_pytest(options) == 1
    assert "1 failed, 1 skipped" in capsys.readouterr().out
    test.write_text("import lance_absent_for_sure\n")
    assert gpu_check.run_pytest(options) != 0
