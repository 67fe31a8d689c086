"""The comparison of forms of memory: the same texts for all, the losses it says, and going on."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from bench.forms import __main__ as program
from bench.forms.training import Place, Size, losses, prepare, settings_of, train
from bench.forms.windows import passages, windows
from bench.memory_forms import FORMS
from bench.runs import RunFile, read_runs
from clara import Clara, ClaraConfig
from clara.data.values import DataError
from clara.training.prompts import RECONSTRUCTION_TASK

SIZE = Size(steps=2, batch=2, window=8, held_out=3, every=1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(backbone, tmp_path):
    """The tiny backbone, and records as `clara data factbook` writes them."""
    data = tmp_path / "factbook"
    data.mkdir()
    for split, first in (("train", 0), ("validation", 20)):
        records = [
            {
                "docs": [f"Country {n}: Geography\nCoastline: {n * 7} km\nRivers: {n}, all short"],
                "questions": ["Coastline?"],
                "answers": [f"{n * 7} km"],
            }
            for n in range(first, first + 8)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (data / f"documents.{split}.jsonl").write_text(lines)
    return Place(backbone, data, tmp_path / "work")


def test_windows_have_as_many_tokens_as_they_should(place):
    tokenizer = place.tokenizer()
    texts = passages(place.data / "documents.train.jsonl")
    assert len(texts) == 8
    drawn = windows(tokenizer, texts, 8, random.Random(0))
    pieces = [next(drawn) for _ in range(20)]
    assert {len(each.ids) for each in tokenizer.encode_texts(pieces)} == {8}
    assert all(any(piece in text for text in texts) for piece in pieces)
    assert len(set(pieces)) > 8
    with pytest.raises(DataError, match="no passage has 500 tokens"):
        next(windows(tokenizer, texts, 500, random.Random(0)))


def test_forms_differ_in_nothing_but_memory(place):
    file, held_out = prepare(0, SIZE, place)
    same = set()
    for form in FORMS:
        settings = settings_of(form, 4, 0, SIZE, place, file, place.work / "run")
        arguments = dict(settings.arguments)
        arguments.pop("curriculum", None)
        arguments.pop("learning_rates", None)
        same.add(json.dumps([arguments, settings.train_data, settings.backbone], sort_keys=True))
        config = ClaraConfig(**{**settings.config, "dtype": "float32"})
        memory = Clara.from_backbone(place.backbone, config).compress(held_out)
        assert memory.counts == [2, 2, 2]  # 8 tokens at 4 a vector
        assert memory.token_counts == [8, 8, 8]
    assert len(same) == 1


def test_losses_are_those_of_the_memory_they_name(backbone):
    config = ClaraConfig(memory_form="spans", compression_rate=4, lora_rank=2, dtype="float32")
    model = Clara.from_backbone(backbone, config)
    with torch.no_grad():  # so that there is something to read in memory
        for parameter in model.adapters.parameters("generator").values():
            parameter.normal_(std=0.2)
    texts = [f"Coastline of country {n}: {n}" for n in (11, 22, 33)]
    found = losses(model, texts)
    means = dict.fromkeys(found, 0.0)
    for row, text in enumerate(texts):
        for name, read in (("right", [text]), ("other", [texts[(row + 1) % 3]]), ("none", [])):
            memory = [each[:count] for each, count in memory_of(model, read)]
            with torch.no_grad():
                means[name] += float(model.answer_loss([RECONSTRUCTION_TASK], [memory], [text])) / 3
    assert found == pytest.approx(means, rel=1e-4)
    assert len({round(value, 3) for value in found.values()}) == 3


def memory_of(model, texts):
    if not texts:
        return []
    made = model.compress(texts)
    return list(zip(made.memory, made.counts, strict=True))


@pytest.mark.parametrize("form", ["learned", "spans"])
def test_a_training(place, form):
    found = train(form, 2, 1, SIZE, place)
    assert [record["step"] for record in found["losses"]] == [1, 2]
    assert all(0 < record[n] < 20 for record in found["losses"] for n in ("right", "other", "none"))
    assert found["positions"] > 0
    (model,) = place.work.glob("*/model")
    connectors = model / "connectors.safetensors"
    assert connectors.exists() == (form == "spans")
    if form == "spans":
        assert load_file(connectors)["compressor.up"].any()
    assert train(form, 2, 1, SIZE, place) == found  # a call that was killed before it was kept


def test_the_command_goes_on_with_what_is_missing(place, tmp_path, capsys, monkeypatch):
    output = tmp_path / "forms.jsonl"
    arguments = ["--rates", "4", "--seeds", "1", "--threads", "1", "--output", str(output)]
    arguments += ["--backbone", str(place.backbone), "--data", str(place.data)]
    arguments += ["--work", str(place.work), "--steps", "2", "--batch", "2", "--window", "8"]
    arguments += ["--held-out", "3", "--every", "1"]
    removed = []
    monkeypatch.setattr(program, "rmtree", removed.append)
    assert program.main([*arguments, "--forms", "averages"]) == 0
    (first,) = read_runs(output)
    assert first.names == {"form": "averages", "rate": 4, "seed": 0}
    (folder,) = removed
    connectors = load_file(folder / "model" / "connectors.safetensors")
    assert not connectors["compressor.up"].any()  # memory is averages and no more
    trained = []
    monkeypatch.setattr(program, "train", lambda *names: trained.append(names[:3]) or first.found)
    assert program.main([*arguments, "--forms", "spans", "averages"]) == 0
    assert trained == [("spans", 4, 0)]
    assert len(read_runs(output)) == 2
    capsys.readouterr()
    assert program.main(["--table", "--output", str(output)]) == 0
    last = first.found["losses"][-1]
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split(" | ")[-3:-1] == [f"right / another's, step {s}" for s in (1, 2)]
    assert rows[-1].startswith("| 4 | span means alone (W = 0) | 1 |")
    assert f"| {last['right']:.2f} / {last['other']:.2f} | {last['none']:.2f} |" in rows[-1]
    assert program.main([*arguments[:-1], "2"]) == 1  # measured every 2 steps
    assert "holds runs with every 1, not 2; choose another file" in capsys.readouterr().err


def test_a_training_of_another_version_is_refused_with_a_line(place, tmp_path, capsys, monkeypatch):
    def stale(*names):
        raise ValueError("config.json: unknown setting 'rows'\nsettings are many")

    monkeypatch.setattr(program, "train", stale)
    output = tmp_path / "forms.jsonl"
    arguments = ["--output", str(output), "--work", str(place.work), "--backbone", "x"]
    assert program.main(arguments) == 1
    assert capsys.readouterr().err == (
        "error: config.json: unknown setting 'rows' settings are many\n"
    )
    assert not output.exists()


def test_the_order_and_number_of_trainings():
    order = program.wanted(FORMS, (4, 8, 2, 16), None)
    assert len(order) == len(set(order)) == 3 * (3 + 3 + 1 + 1)
    assert order[:4] == [*((form, 4, 0) for form in FORMS), ("learned", 8, 0)]
    assert {seed for _, rate, seed in order if rate in (2, 16)} == {0}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rates", "5"], "--rates must divide --window 32, got 5"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--held-out", "1"], "--held-out must be at least 2"),
        (["--steps", "3"], "other settings than the published ones need --output"),
    ],
)
def test_options_that_cannot_be(options, reason, capsys):
    with pytest.raises(SystemExit):
        program.main(options)
    assert reason in capsys.readouterr().err


def test_runs_of_something_else_are_refused(tmp_path):
    file = tmp_path / "runs.jsonl"
    RunFile(file, "learning", {}, {}).add({"form": "spans"}, {"steps": 20})
    assert program.main(["--output", str(file), "--backbone", "x"]) == 1
