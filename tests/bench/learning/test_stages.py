"""The learning task is what it says, and its stages go through the product's own runs."""

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.learning import task
from bench.learning.__main__ import draw, main
from bench.learning.stages import ABLATIONS, STEPS, Curve, score, settings_of, train
from clara import Clara
from clara.data.examples import ExampleFile, answer_example, ranking_example

SMALL = dict.fromkeys(STEPS, 2)


pytestmark = pytest.mark.usefixtures("one_thread")


class TestTask:
    def test_a_sheet(self):
        sheet = task.Sheet("a3 b7", (("k1", "v2"), ("k3", "v4"), ("k5", "v6"), ("k7", "v8")))
        assert sheet.text == "a3 b7 k1 v2 k3 v4 k5 v6 k7 v8"
        assert sheet.question(2) == ("a3 b7 k5", "v6")
        assert sheet.listed([3, 0, 1, 2]) == "k7 v8 k1 v2 k3 v4 k5 v6"

    def test_names_that_are_held_out_are_never_trained_on(self, tmp_path):
        task.write_data(tmp_path, dict.fromkeys(STEPS, 200), seed=0)
        trained = {
            " ".join(text.split()[:2])
            for name in STEPS
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
            for text in json.loads(line)["docs"]
        }
        rows = task.held_out(100)
        names = {" ".join(text.split()[:2]) for row in rows for text in row["docs"]}
        assert len(trained) > 100
        assert len(names) > 30
        assert not trained & names

    def test_an_answer_is_in_the_right_sheet_alone(self):
        for row in task.held_out(100):
            (gold,) = row["pos_index"]
            *name, key = row["question"].split()
            words = row["docs"][gold].split()
            assert words[:2] == name
            assert words[words.index(key) + 1] == row["answer"]
            assert sum(text.split()[:2] == name for text in row["docs"]) == 1

    def test_nothing_can_be_guessed(self):
        rows = task.held_out(2000, seed=3)
        values = Counter(row["answer"] for row in rows)
        assert max(values.values()) / len(rows) < 2 / len(task.VALUES)
        places = Counter(row["pos_index"][0] for row in rows)
        assert max(places.values()) / len(rows) < 1.3 / task.CANDIDATES
        known = Counter(
            row["docs"][row["pos_index"][0]].split().index(row["answer"]) for row in rows
        )
        assert max(known.values()) / len(rows) < 0.4  # no fact is asked more than others

    def test_records_are_what_the_stages_read(self, tmp_path):
        task.write_data(tmp_path, dict.fromkeys(STEPS, 50), seed=0)
        for name, parse in (
            ("text", answer_example),
            ("instruct", answer_example),
            ("end-to-end", ranking_example),
        ):
            assert len(ExampleFile(tmp_path / f"{name}.jsonl", parse)[:]) == 50

    def test_data_of_a_seed_is_the_same(self, tmp_path):
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            task.write_data(tmp_path / folder, {"text": 20}, seed=4)
        one, two = ((tmp_path / f / "text.jsonl").read_bytes() for f in ("one", "two"))
        assert one == two

    def test_the_tokenizer_knows_every_word(self, tmp_path):
        task.write_backbone(tmp_path / "backbone", width=16, layers=1)
        model = Clara.from_backbone(tmp_path / "backbone", task.config())
        sheet = task.Sheet.draw(random.Random(0), held_out=False)
        (encoded,) = model.tokenizer.encode_texts([f"{sheet.text} {task.WRITE}"])
        assert len(encoded.ids) == 11
        unknown = model.tokenizer.tokenizer.unk_token_id
        assert unknown not in encoded.ids
        assert len(set(encoded.ids)) == len(set(f"{sheet.text} {task.WRITE}".split()))


class TestStages:
    def test_they_run_and_are_resumed(self, tmp_path):
        seen = []
        curve = train(tmp_path, steps=SMALL, every=2, questions=8, report=seen.append)
        assert curve == seen
        assert [(r["stage"], r["step"]) for r in curve] == [(name, 2) for name in STEPS]
        assert all(0 <= r[k] <= 1 for r in curve for k in ("text", "memory", "recall", "answers"))
        again = train(tmp_path, steps=SMALL, every=2, questions=8, resume=True)
        assert again == curve
        draw(curve, tmp_path / "learning.png")
        assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")

    def test_steps_that_are_done_again_stand_once_in_the_curve(self, tmp_path):
        def record(stage, step, minutes):
            return {"stage": stage, "step": step, "minutes": minutes}

        file = tmp_path / "curve.jsonl"
        known = [record("text", 900, 9.0), record("instruct", 500, 1.0)]
        lines = [json.dumps(each) for each in (*known, record("instruct", 600, 1.2))]
        file.write_text("\n".join([*lines, '{"stage": "instr']))
        curve = Curve(file, "instruct", 100, print, [])
        began = curve.began
        curve.on_train_begin(None, SimpleNamespace(global_step=500), None)
        assert [json.loads(line) for line in file.read_text().splitlines()] == known
        assert curve.began == began - 60
        curve = Curve(file, "end-to-end", 100, print, [], began=5.0)
        curve.on_train_begin(None, SimpleNamespace(global_step=0), None)
        assert [json.loads(line) for line in file.read_text().splitlines()] == known
        assert curve.began == 5.0

    def test_data_is_there_whole_or_not_at_all(self, tmp_path, monkeypatch):
        def cut_off(folder, counts, seed, *, writing):
            (folder / "text.jsonl").write_text("{")
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("bench.learning.stages.task.write_data", cut_off)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, steps=SMALL)
        assert not (tmp_path / "data").exists()
        curve = tmp_path / "curve.jsonl"
        monkeypatch.setattr("bench.learning.stages.run", lambda *a, **k: curve.touch())
        assert train(tmp_path, steps=SMALL, resume=True) == []
        written = {file.stem: file for file in (tmp_path / "data").iterdir()}
        assert written.keys() == STEPS.keys()
        assert len(written["text"].read_text().splitlines()) == 128

    def test_an_ablation_changes_one_setting(self):
        for name, changes in ABLATIONS.items():
            assert len(changes) == (name != "none")
        plain = settings_of("instruct", Path("f"), None, 10, 0, {})
        changed = settings_of("instruct", Path("f"), None, 10, 0, ABLATIONS["no-mse"])
        assert {k for k, v in changed.arguments.items() if plain.arguments.get(k) != v} == {
            "alignment_weight"
        }
        assert changed.config == plain.config

    def test_without_pretraining(self, tmp_path):
        curve = train(tmp_path, ablation="no-pretraining", steps=SMALL, every=2, questions=4)
        assert [r["stage"] for r in curve] == ["text", "end-to-end"]

    def test_scores_are_of_generation_and_ranking(self, tmp_path, monkeypatch):
        task.write_backbone(tmp_path / "backbone", width=16, layers=1)
        model = Clara.from_backbone(tmp_path / "backbone", task.config())
        rows = task.held_out(6)
        wanted = [row["answer"] for row in rows]
        monkeypatch.setattr(model, "answer_from_text", lambda *a, **k: [*wanted[:3], "", "", ""])
        monkeypatch.setattr(model, "generate", lambda *a, **k: [f" {w} " for w in wanted])
        found = score(model, rows)
        assert (found.text, found.memory, found.answers) == (0.5, 1.0, 1.0)
        assert 0 <= found.recall <= 1


def test_the_command(tmp_path, monkeypatch, capsys):
    arguments = ["learning", "--steps", "2", "--output", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--ablation", "frozen-query-reasoner"])
    rows = task.held_out(8)
    monkeypatch.setattr("bench.learning.stages.task.held_out", lambda count: rows)
    assert main() == 1  # nothing is learnt in two steps
    printed = capsys.readouterr().out
    assert "not reached: answers" in printed
    result = json.loads((tmp_path / "frozen-query-reasoner" / "result.json").read_text())
    assert result["ablation"] == "frozen-query-reasoner"
    assert {"minutes", "threads", "seed", "text", "memory", "recall", "answers"} < result.keys()
