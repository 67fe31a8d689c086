import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from clara import Clara
from clara.cli.app import app
from tests.clara.cli.terminals import read_terminal

PAIR = {"data_type": "qa", "question": ["Who?"], "answers": ["Ada"], "docs": ["It was Ada."]}


@pytest.fixture
def settings(backbone, tmp_path):
    """A file of settings of a small run, with changes."""

    def write(records=(PAIR,) * 8, *, lines=None, **changes):
        data = tmp_path / "data.jsonl"
        shown = [json.dumps(r) for r in records] if lines is None else lines
        data.write_text("".join(line + "\n" for line in shown), encoding="utf-8")
        values = {
            "backbone": backbone,
            "document_length": 64,
            "compression_rate": 16,
            "lora_rank": 4,
            "train_data": str(data),
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "max_steps": 3,
            "logging_steps": 1,
            "save_steps": 1,
            "report_to": "none",
            **changes,
        }
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def train():
    """Run `clara train pretrain` in this process; what it says on the way is on `stderr`."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["train", "pretrain", *arguments])
        assert result.exit_code == code, result.output
        return result

    return run


def test_a_run(train, clara, settings, tmp_path):
    file = settings()
    done = train("--config", file)
    first, last = done.stderr.splitlines()
    assert re.fullmatch(r"train: step 1/3, loss [\d.]+, about 0:00:\d\d left", first)
    assert re.fullmatch(r"train: step 3/3, loss [\d.]+, 0:00:\d\d", last)
    assert "train: " not in done.stdout
    assert f"{tmp_path / 'run' / 'model'}: 3 steps, loss" in done.stdout
    Clara.from_pretrained(tmp_path / "run" / "model")
    done = train("--config", file, "--max-steps", "5", "--resume", "--json")
    result = json.loads(done.stdout)
    assert "resuming at step 3 of 5; changed: max_steps 3 -> 5" in done.stderr
    assert result["steps"] == 5
    assert result["model"] == str(tmp_path / "run" / "model")
    shown = json.loads(clara("info", "--json", str(tmp_path / "run")).stdout)
    assert (shown["kind"], shown["stage"], shown["finished"]) == ("training run", "pretrain", True)
    assert (shown["steps"], shown["max_steps"]) == (5, 5)
    assert shown["loss"] == pytest.approx(result["metrics"]["loss"])
    assert shown["model"] == str(tmp_path / "run" / "model")
    assert f"model: {tmp_path / 'run' / 'model'}" in clara("info", str(tmp_path / "run")).stdout
    done = clara("plot", str(tmp_path / "run"))
    assert done.stdout.strip() == str(tmp_path / "run" / "curves.png")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_events_are_told(train, settings):
    long = {**PAIR, "answers": ["word " * 300]}
    done = train(
        "--config",
        settings([PAIR] * 6 + [long] * 2),
        "--max-prompt-tokens",
        "200",
    )
    assert "prompt over the budget: " in done.stdout


@pytest.mark.parametrize(
    ("changes", "extra", "message", "code"),
    [
        ({"train_data": "missing.jsonl"}, (), "missing.jsonl: no such file", 1),
        ({"backbone": "/no/such"}, (), "'/no/such' does not exist", 1),
        ({"model": "/no/such"}, (), "'/no/such' does not exist", 1),
        (
            {"lines": ['{"data_type": "qa"', *[json.dumps(PAIR)]]},
            (),
            "data.jsonl:1: not valid JSON",
            1,
        ),
        ({"records": [{**PAIR, "data_type": "QA"}] * 2}, (), "field 'data_type' must be", 1),
        ({"max_prompt_tokens": 20}, (), "step 1: no usable example is left (prompt over", 1),
        (
            {"max_prompt_tokens": 20, "on_unusable": "error"},
            (),
            "max_prompt_tokens is 20",
            1,
        ),
        ({"compression_rate": 7}, (), "compression_rate 7 does not divide", 1),
        ({}, ("--learning-rat", "1"), "did you mean 'learning_rate'", 2),
        ({}, ("--learning-rate", "fast"), "learning_rate", 1),
        ({}, ("extra",), "unexpected argument 'extra'", 2),
        ({"patience": 2}, (), "patience needs load_best_model_at_end", 1),
        ({"eval_strategy": "steps"}, (), "eval_strategy needs eval_data", 1),
    ],
)
def test_one_line_for_what_is_wrong(refused, settings, changes, extra, message, code):
    file = settings(**changes)
    assert message in refused("train", "pretrain", "--config", file, *extra, code=code)


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"backbone": "/no/such"}, (), "backbone '/no/such' does not exist"),
        ({"train_data": "none.jsonl"}, (), "none.jsonl: no such file"),
        ({"train_data": "paper.pdf"}, (), "paper.pdf: is a PDF file; records are JSON lines"),
        ({"eval_data": "empty.jsonl"}, (), "empty.jsonl: holds no examples"),
        ({"eval_data": "/none"}, (), "/none: no such file"),
        ({}, ("--learning-rat", "1"), "did you mean 'learning_rate'"),
        ({}, ("--learning-rate", "nan"), "learning_rate must be a number"),
        ({}, ("--seed", "-1"), "seed must be a whole number of at least 0"),
        ({}, ("--compression-rate", "7"), "compression_rate 7 does not divide"),
        ({"on_unusable": "stop"}, (), "on_unusable must be one of skip, error; got 'stop'"),
        ({"report_to": "wandb"}, (), "report_to: wandb needs the package wandb"),
        ({"output_dir": "."}, (), "holds a run already"),
    ],
)
def test_settings_are_checked_before_torch_is_imported(
    settings, tmp_path, monkeypatch, refused, changes, extra, message
):
    """The import of the training fails here, so that nothing after it can be reached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "clara.training.run", None)
    monkeypatch.setattr("clara.training.reporters.find_spec", without("wandb"))
    code = 2 if "--learning-rat" in extra else 1
    line = refused("train", "pretrain", "--config", settings(**changes), *extra, code=code)
    assert message in line


def without(missing):
    return lambda name: None if name == missing else find_spec(name)


def test_a_mistyped_setting_loads_neither_torch_nor_transformers(settings):
    """They take seconds; a mistake should not."""
    program = (
        "import sys; from clara.training.reading import *\n"
        "from clara.training.settings import *\n"
        "try: read_settings(sys.argv[1], 'pretrain', {'learning_rat': 1})\n"
        "except SettingsError as error: print(error)\n"
        "check_early(read_settings(sys.argv[1], 'pretrain', {}))\n"
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    file = settings(document_length=None, compression_rate=None, lora_rank=None)
    plain = yaml.safe_load(Path(file).read_text())
    kept = {k: v for k, v in plain.items() if v is not None}
    Path(file).write_text(yaml.safe_dump(kept), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert "did you mean 'learning_rate'" in first
    assert second == "set()"


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({"max_steps": -1, "num_train_epochs": 0}, (), "num_train_epochs must be a number above 0"),
        ({"max_steps": 0}, (), "max_steps must be a whole number of at least 1"),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 9},
            (),
            "dataloader_drop_last leaves nothing to train on: train_data has 8 examples",
        ),
        (
            {"max_steps": -1, "num_train_epochs": 1, "warmup_steps": 0.03},
            ("--total-batch-size", "128"),
            "learn nothing: it has 1 step (train_data has 8 examples, a step takes 128)",
        ),
    ],
)
def test_a_run_that_cannot_learn_is_refused(settings, refused, tmp_path, changes, extra, message):
    line = refused("train", "pretrain", "--config", settings(**changes), *extra)
    assert message in line
    assert not (tmp_path / "run" / "model").exists()


def test_a_file_of_another_kind_is_refused_before_a_model_is_loaded(settings, refused, monkeypatch):
    monkeypatch.setattr("clara.training.run._model", lambda *arguments: pytest.fail("was loaded"))
    file = settings(lines=[json.dumps({"id": "a", "contents": "A text."})] * 8)
    assert "data.jsonl:1: field 'data_type' is missing" in refused(
        "train", "pretrain", "--config", file
    )


def test_a_batch_larger_than_the_data_is_said(settings, train):
    done = train("--config", settings(max_steps=1, total_batch_size=128))
    assert "train_data has 8 examples and a step takes 128" in done.stderr


def test_what_is_contradicted_is_refused_with_both_values(settings, train, tmp_path):
    file = settings()
    train("--config", file)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(PAIR) + "\n", encoding="utf-8")
    for extra, message in (
        (("--optim", "sgd"), "optim is sgd, the run has adamw_torch"),
        (("--learning-rate", "1e-2"), "learning_rate is 0.01, the run has 5e-05"),
        (("--seed", "7"), "seed is 7, the run has 42"),
        (("--train-data", str(other)), "train_data is "),
        (("--per-device-train-batch-size", "4"), "per_device_train_batch_size is 4, the run has 2"),
        (("--lora-rank", "8"), "lora_rank is 8, the run has 4"),
    ):
        done = train("--config", file, "--resume", "--max-steps", "4", *extra, code=1)
        (line,) = done.stderr.splitlines()
        assert message in line
        assert "cannot be resumed with other settings" in line


def test_a_run_is_not_overwritten(train, refused, settings):
    file = settings()
    train("--config", file)
    assert "holds a run already" in refused("train", "pretrain", "--config", file)


def test_no_such_stage(process, settings):
    done = process("train", "everything", "--config", settings())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_interrupt_leaves_the_last_checkpoint(start, train, settings, tmp_path):
    file = settings(max_steps=100_000)
    running = start("train", "pretrain", "--config", file)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoint-2").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert all(line.startswith("train: step ") for line in errors.splitlines())
    last = max(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    train("--config", file, "--resume", "--max-steps", str(last + 2))


@pytest.mark.slow
def test_a_terminal_gets_a_bar(start, settings):
    ours, theirs = pty.openpty()
    running = start("train", "pretrain", "--config", settings(max_steps=40), stderr=theirs)
    os.close(theirs)
    shown = read_terminal(ours)
    running.communicate(timeout=300)
    assert running.returncode == 0
    assert b"40/40" in shown
    assert b"loss" in shown
    assert b"tokens_per_second" in shown


def test_a_plot_of_nothing(refused, tmp_path):
    assert "is not a training run" in refused("plot", str(tmp_path))


def test_a_plot_of_runs_that_go_on_from_one_another(clara, refused, tmp_path):
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        run.mkdir()
        (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    names = [str(run) for run in runs]
    done = clara("plot", *names, "--begin", "0", "--begin", "1")
    assert done.stdout.strip() == str(runs[1] / "curves.png")
    assert (runs[1] / "curves.png").read_bytes().startswith(b"\x89PNG")
    (runs[1] / "curves.png").unlink()
    assert "for each of the 2 runs, got 1" in refused("plot", *names, "--begin", "3")
    assert "in ascending order, the first 0 or more: 3, 3" in refused(
        "plot", *names, "--begin", "3", "--begin", "3"
    )
    assert "none: is not a training run" in refused("plot", names[0], str(tmp_path / "none"))
    assert not (runs[1] / "curves.png").exists()
