import json
import os
import pty
import signal
import time

import pytest
import yaml

from clara import Clara

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


def test_a_run(process, clara, settings, tmp_path):
    file = settings()
    done = process("train", "pretrain", "--config", file)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"{tmp_path / 'run' / 'model'}: 3 steps, loss" in done.stdout
    Clara.from_pretrained(tmp_path / "run" / "model")
    done = clara(*("train", "pretrain", "--config", file, "--max-steps", "5", "--resume", "--json"))
    result = json.loads(done.stdout)
    assert result["steps"] == 5
    assert result["model"] == str(tmp_path / "run" / "model")
    done = clara("plot", str(tmp_path / "run"))
    assert done.stdout.strip() == str(tmp_path / "run" / "curves.png")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_events_are_told(clara, settings):
    long = {**PAIR, "answers": ["word " * 300]}
    done = clara(
        "train",
        "pretrain",
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


def test_a_run_is_not_overwritten(clara, refused, settings):
    file = settings()
    clara("train", "pretrain", "--config", file)
    assert "holds a run already" in refused("train", "pretrain", "--config", file)


def test_no_such_stage(process, settings):
    done = process("train", "everything", "--config", settings())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_leaves_the_last_checkpoint(start, clara, settings, tmp_path):
    file = settings(max_steps=100_000)
    running = start("train", "pretrain", "--config", file)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint-2").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors == ""
    last = max(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    clara("train", "pretrain", "--config", file, "--resume", "--max-steps", str(last + 2))


def test_a_terminal_gets_a_bar(start, settings):
    ours, theirs = pty.openpty()
    running = start("train", "pretrain", "--config", settings(max_steps=40), stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # what Linux says at the end of a pseudo-terminal
            break
        if not block:
            break
        shown += block
    os.close(ours)
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"40/40" in shown
    assert b"loss" in shown
    assert b"tokens_per_second" in shown


def test_a_plot_of_nothing(refused, tmp_path):
    assert "is no training run" in refused("plot", str(tmp_path))
