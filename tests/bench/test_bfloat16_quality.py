"""What bfloat16 and int8 change: errors, agreement and the command."""

import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from bench import bfloat16_quality
from bench.bfloat16_quality import INT8, draw_adapters, main, memory_error, same_first
from bench.runs import read_runs
from clara import Clara, ClaraConfig

BACKBONE = Path(__file__).resolve().parents[1] / "data" / "reference" / "base"
PLACES = ("river", "mill", "harbour", "bridge", "market", "church")
RECORDS = [
    {
        "question": f"Where is the {place}?",
        "docs": [f"The {place} lies north of the town.", f"Nobody has seen the {place} since."],
        "pos_index": [0],
        "answer": "north",
    }
    for place in PLACES
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "ranking.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return file


def test_adapters_have_the_norm_that_was_asked_for():
    config = ClaraConfig(dtype="float32", document_length=64)
    model = Clara.from_backbone(str(BACKBONE), config, device="cpu")
    draw_adapters(model, 1e-2)
    for layer in model.backbone.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            for name in ("compressor", "generator"):
                change = layer.get_delta_weight(name)
                assert change.norm() / weight.norm() == pytest.approx(1e-2, rel=1e-4)


def test_a_common_part_of_memory_hides_no_error():
    exact = torch.tensor([[[1.0, 1000.0]], [[-1.0, 1000.0]]])
    found = torch.tensor([[[1.5, 1000.0]], [[-1.5, 1000.0]]])
    assert memory_error(found, exact) == pytest.approx(0.5)
    assert memory_error(exact, exact) == 0


def test_only_decided_questions_count():
    documents = torch.tensor([[1.0, 0.0], [0.9999, 0.01], [0.0, 1.0]])
    questions = torch.tensor([[1.0, 0.004], [0.0, 1.0], [0.1, 1.0]])
    turned = [*documents[[0, 1]].tolist(), [0.0, -1.0]]
    assert same_first((questions, documents), (questions, documents)) == ([0, 2, 2], 2, 2)
    assert same_first((questions, documents), (questions, torch.tensor(turned)))[1:] == (2, 0)


def test_the_command_keeps_what_is_finished(data, tmp_path, capsys):
    output = tmp_path / "quality.jsonl"
    options = ["--backbone", str(BACKBONE), "--name", "tiny", "--data", str(data)]
    options += ["--documents", "8", "--questions", "6", "--answers", "2", "--threads", "1"]
    options += ["--output", str(output)]
    assert main([*options, "--norms", "0.01"]) == 0
    assert main([*options, "--norms", "0.01", "0.05"]) == 0
    runs = read_runs(output)
    assert [run.names["norm"] for run in runs] == [0.01, 0.05]
    for run in runs:
        assert 0 < run.found["error"] < 0.1
        assert 0 < run.found["peft"] < 0.1
        assert run.found["error"] != run.found["int8 error"] < 0.1
        for name in ("", INT8):
            assert 0 <= run.found[f"{name}same first"] <= run.found["decided"] <= 6
            assert 0 <= run.found[f"{name}same answers"] <= 2
    capsys.readouterr()
    assert main(["--table", "--output", str(output)]) == 0
    assert f"| tiny | 0.01 | {runs[0].found['error']:.4f} | " in capsys.readouterr().out
    assert main([*options, "--documents", "1000"]) == 1
    assert "has 12 documents, --documents is 1000" in capsys.readouterr().err


def test_a_trained_model_is_measured_as_it_is(data, tmp_path, monkeypatch):
    """In memory form "spans", whose documents differ in length."""
    config = ClaraConfig(memory_form="spans", compression_rate=2, document_length=64)
    model = Clara.from_backbone(str(BACKBONE), config.replace(dtype="float32"), device="cpu")
    draw_adapters(model, 1e-2)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(bfloat16_quality, "draw_adapters", None)
    output = tmp_path / "quality.jsonl"
    options = ["--model", str(tmp_path / "model"), "--name", "spans", "--data", str(data)]
    options += ["--documents", "4", "--questions", "2", "--answers", "1", "--threads", "1"]
    assert main([*options, "--output", str(output)]) == 0
    (run,) = read_runs(output)
    assert run.names == {"memory": "spans", "norm": "as trained"}
    assert run.found["peft"] is None
    assert 0 < run.found["error"] < 0.1
    assert 0 < run.found["int8 error"] < 0.1


def test_bad_options(capsys):
    for given, said in (
        (["--model", "there"], "--model and --backbone need --name"),
        (["--documents", "1"], "--documents must be at least 2, got 1"),
        (["--norms", "0"], "--norms must be positive, got [0.0]"),
    ):
        with pytest.raises(SystemExit):
            main(given)
        assert said in capsys.readouterr().err
