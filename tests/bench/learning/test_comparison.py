"""The comparison of forms of memory on the small task."""

import pytest

from bench.learning import comparison, task
from bench.learning.comparison import CASES, Case, Size, main
from bench.learning.shapes import USUAL, VECTORS, Shape
from bench.memory_forms import FORMS
from bench.runs import read_runs
from clara import Clara
from clara.training.run import run

SIZE = Size(text_steps=1, most=2, every=1, questions=4)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_sheet_has_as_many_vectors_in_every_form(tmp_path):
    task.write_backbone(tmp_path / "backbone", width=16, layers=1)
    text = task.held_out(1)[0]["docs"][0]
    for vectors in VECTORS:
        for form in FORMS:
            config = task.config(**Shape(form, vectors).config())
            made = Clara.from_backbone(tmp_path / "backbone", config).compress([text])
            assert made.counts == [vectors]
            assert made.token_counts == [task.WORDS]
    assert task.config(**USUAL.config()) == task.config()


def test_what_is_compared():
    cases = [(case.shape.form, case.shape.vectors) for case in CASES if case.ablation == "none"]
    assert sorted(cases) == sorted((form, vectors) for form in FORMS for vectors in VECTORS)
    assert len({case.folder for case in CASES}) == len(CASES)


def test_the_teacher_of_an_ablation_is_the_text_stage(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(comparison, "run", lambda *a, **k: asked.append(a) or run(*a, **k))
    found = comparison.teach(Case(Shape("spans", 3), "distillation"), 0, SIZE, tmp_path)
    assert [record["step"] for record in found["curve"]] == [1, 2]
    text, instruct = (settings for _, settings in asked)
    assert text.arguments["output_dir"] == instruct.arguments["teacher"] == str(tmp_path / "text")
    assert any((tmp_path / "spans-3-distillation" / "instruct" / "teacher").iterdir())
    assert instruct.arguments["save_minutes"] == 2  # long before the step at which stages save


def test_the_command_goes_on_with_what_is_missing(tmp_path, capsys, monkeypatch):
    output = tmp_path / "learning.jsonl"
    options = ["--seeds", "1", "--threads", "1", "--work", str(tmp_path), "--output", str(output)]
    cases = [Case(Shape("spans", 3), "no-writing"), Case(Shape("averages", 3))]
    monkeypatch.setattr(comparison, "CASES", cases[:1])
    assert main(options, SIZE) == 0
    (first,) = read_runs(output)
    expected = {"form": "spans", "vectors": 3, "ablation": "no-writing", "seed": 0}
    assert first.names == expected
    assert [record["step"] for record in first.found["curve"]] == [1, 2]
    assert first.found["steps"] is None  # nothing is learnt in two steps
    assert not (tmp_path / "seed-0" / cases[0].folder).exists()
    monkeypatch.setattr(comparison, "CASES", cases)
    reached = Size(text_steps=1, most=2, every=1, questions=4, goal=0.6)
    monkeypatch.setattr(comparison, "exact_from_memory", lambda model, asked: 0.75)
    assert main(options, reached) == 0
    second = read_runs(output)[1]
    assert second.names == {"form": "averages", "vectors": 3, "ablation": "none", "seed": 0}
    assert second.found == {"steps": 1, "curve": [{"step": 1, "memory": 0.75}]}
    capsys.readouterr()
    assert main(["--table", "--output", str(output)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[-2] == "| 3 | span means alone (W = 0) |  | 1 | 1 | 0.75 |"
    assert rows[-1].startswith("| 3 | W · final state + span mean | no-writing | not reached |  |")
