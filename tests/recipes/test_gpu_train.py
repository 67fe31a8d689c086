"""`make gpu-train`, dry, on a CPU: what comes back, and how units go on from it."""

import json
import shutil
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clara import Clara


@pytest.fixture
def here(scripts, backbone, recipe, tmp_path, monkeypatch):
    """Places of the snapshot, the log and the runs of `train_weights.py`."""
    log = tmp_path / "training-log.md"
    log.write_text("| a | line |\n")
    units = yaml.safe_load(recipe.read_text())
    units["instruct"] |= {
        "output_dir": str(tmp_path / "runs" / "instruct"),
        "save_strategy": "steps",
    }
    units["instruct"] |= {"save_steps": 1, "max_steps": 1, "eval_on_start": False}
    (tmp_path / "spans.yaml").write_text(yaml.safe_dump(units))
    monkeypatch.setattr(scripts.weights, "RECIPE", tmp_path / "spans.yaml")
    monkeypatch.setattr(scripts.weights, "SNAPSHOT", tmp_path / "snapshots" / "tiny")
    monkeypatch.setattr(scripts.weights, "LOG", log)
    monkeypatch.setattr(scripts.weights, "smollm2_file", lambda: backbone[1])
    return scripts.weights


def test_units_go_on_from_what_came_back(scripts, came_back, here, backbone, tmp_path):
    result = json.loads((came_back / "result.json").read_text())
    assert result["ended"] == "all steps are done on a CPU"
    files = sorted(str(p.relative_to(came_back)) for p in came_back.rglob("*") if p.is_file())
    assert files == sorted(["result.json", *result["files"]])
    assert len(files) == 8
    run = tmp_path / "runs" / "instruct"
    run.mkdir(parents=True)
    here.LOG.write_text("| a day | instruct | 9 | 99 | 1.25 | | | | | a unit |\n")
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(came_back)]
    assert scripts.train.main(arguments) == 0
    hours = 1.25 + result["hours"]  # the budget counts what was there before
    assert here.logged("instruct").hours == pytest.approx(hours, abs=0.006)
    assert run.with_name("instruct.1").is_dir()
    assert not run.exists()
    cells = [cell.strip() for cell in here.LOG.read_text().splitlines()[-1].strip("|").split("|")]
    assert (cells[1], cells[2], cells[-1]) == ("instruct", "11", "all steps are done on a CPU")
    here.restore(here.SNAPSHOT, tmp_path / "restored")
    restored = Clara.from_pretrained(tmp_path / "restored", backbone=backbone[1])
    assert restored.config.backbone == str(backbone[1])
    assert here.unit("instruct", 5, {"max_steps": 12}) == "all steps are done"
    assert_began_at(run.with_name("snapshot"), run)


def assert_began_at(start, run):
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["path"] == str(start)
    assert not any(phase.get("averages_only") for phase in record["arguments"]["curriculum"])


def test_a_run_starts_from_the_snapshot(scripts, came_back, backbone, recipe, tmp_path):
    start, parts, joined = came_back / "snapshot", tmp_path / "parts", tmp_path / "joined"
    scripts.train.prepare(*backbone, recipe, start, parts, beside=0)
    manifest = scripts.parts.join_parts(parts, joined)
    assert manifest["snapshot"] == scripts.train.sums_of(start)
    assert len(manifest["snapshot"]) == 7
    # Steps that change nothing are no better than what the run starts from.
    settings = {"extends": str(recipe), "learning_rate": 0.0}
    still = tmp_path / "gpu.yaml"
    still.write_text(yaml.safe_dump({**settings, "instruct": {"learning_rates": None}}))
    places = (joined, manifest, tmp_path / "out", still, start)
    assert scripts.run.train(*places, time.monotonic() + 300) == "all steps are done on a CPU"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 0
    assert_began_at(joined / "start", joined / "run")
    for file in start.rglob("*.safetensors"):
        found = load_file(tmp_path / "out" / "snapshot" / file.relative_to(start))
        assert all(torch.equal(found[name], value) for name, value in load_file(file).items())


def test_a_run_that_is_out_of_time(scripts, parts, recipe, tmp_path, capsys, monkeypatch):
    """The alarm comes at a chosen moment: anywhere else it may find a lock of coverage taken."""
    manifest = scripts.parts.join_parts(parts, tmp_path / "joined")
    places = (tmp_path / "joined", manifest, tmp_path / "out", recipe, tmp_path / "none")

    def at_the_end(*arguments, **named):
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(scripts.run.BestByTheClock, "on_train_begin", at_the_end)
    ended = scripts.run.train(*places, time.monotonic() + 300)
    assert ended == "the end of its time in the middle of a step or an evaluation on a CPU"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["ended"] == ended
    assert scripts.train.main(["collect", str(tmp_path / "out")]) == 1
    assert "no step made the adapters better" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("result.json", lambda text: text.replace('"steps": 2', '"steps": 0'), "no step made the"),
        ("result.json", lambda text: text[:-10], "result.json: cannot be read"),
        ("result.json", lambda text: "[]", "result.json: is not what make gpu-train writes"),
        (
            "snapshot/config.json",
            lambda text: text + " ",
            "is damaged: result.json has another sum",
        ),
        ("snapshot/config.json", None, "config.json is missing"),
    ],
)
def test_what_came_back_damaged(scripts, came_back, here, tmp_path, capsys, name, change, told):
    shutil.copytree(came_back, tmp_path / "back")
    file = tmp_path / "back" / name
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text()))
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(tmp_path / "back")]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not here.SNAPSHOT.exists()


def test_a_snapshot_that_was_trained_meanwhile(scripts, came_back, here, capsys):
    here.SNAPSHOT.mkdir(parents=True)
    (here.SNAPSHOT / "config.json").write_text("newer")
    log = here.LOG.read_text()
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(came_back)]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not what the run started from" in line
    assert scripts.train.sums_of(here.SNAPSHOT).keys() == {"config.json"}
    assert (here.SNAPSHOT / "config.json").read_text() == "newer"
    assert here.LOG.read_text() == log
