"""The steps of `make gpu-check`, with stand-ins where a GPU would be."""

import sys
from importlib.util import find_spec

import pytest

from bench import gpu_check
from clara.reports.results import Measurement, Promise, Results

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


RESULTS = Results(
    {"dry_run": False},
    measurements=[Measurement("operators", "toy", "ours", withheld="stopped after 5 s")],
    promises=[Promise.judged("toy, fast", 2.5, at_least=2)],
)


def test_benchmarks_are_told_their_limit_and_their_results_are_last(machine, monkeypatch, capsys):
    RESULTS.write(machine / "written.json")
    code = f"""
import pathlib, sys
assert sys.argv[1] == "--limit" and 0 < float(sys.argv[2]) <= 10
here = pathlib.Path({str(machine)!r})
(here / "kernels.json").write_text((here / "written.json").read_text())
"""
    steps = [step("bench", code, tell_limit=True)]
    monkeypatch.setattr(gpu_check, "PARTS", {"kernels": lambda out: steps})
    assert gpu_check.main(["kernels"]) == 0
    *_, case, promise, counted, last = capsys.readouterr().out.splitlines()
    assert case == "operators: toy: ours withheld, stopped after 5 s"
    assert promise == "toy, fast: 2.5 (promised 2)"
    assert counted == "1 of 1 promises are kept"
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
    RESULTS.write(machine / "written.json")
    code = f"""
import pathlib, sys
pathlib.Path(sys.argv[1]).write_text(pathlib.Path({str(machine)!r}, "written.json").read_text())
"""
    command = [sys.executable, "-c", code]

    def scoring(out):
        bench = next(step for step in steps(out) if step.name == "search benchmarks")
        assert bench.tell_limit
        copy = bench.command[bench.command.index("--copy") + 1]
        return [gpu_check.Step("bench", "log", [*command, copy], 20)]

    steps = gpu_check.PARTS["scoring"]
    monkeypatch.setattr(gpu_check, "PARTS", {"scoring": scoring})
    assert gpu_check.main(["scoring"]) == 0
    assert "stopped after 5 s" in capsys.readouterr().out
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


def test_steps_name_programs_and_files_that_exist(tmp_path):
    for part in gpu_check.PARTS.values():
        for each in part(tmp_path):
            module = each.command[each.command.index("-m") + 1]
            assert module.startswith("bench.")
            is_package = find_spec(module).submodule_search_locations is not None
            assert not is_package or find_spec(f"{module}.__main__") is not None
            scripts = [word for word in each.command if word.endswith(".py")]
            assert all((gpu_check.ROOT / script).exists() for script in scripts)


def test_programs_find_the_source_tree_behind_what_was_built(tmp_path, monkeypatch):
    site = tmp_path / "site" / "clara"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("")
    code = "import sys, clara, bench; print(clara.__file__, bench.__file__, '' in sys.path)"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert gpu_check.run(step("one", code), 60, [str(site.parent)], tmp_path)
    built, ours, here = (tmp_path / "log").read_text().split()[-3:]
    assert built == str(site / "__init__.py")
    assert ours == str(gpu_check.ROOT / "bench" / "__init__.py")
    assert here == "False"


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
