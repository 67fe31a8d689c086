"""The chain writes what the product reads, skips what is done, and sees what it should."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.learning import task
from bench.learning.stages import STEPS, settings_of
from bench.quality import __main__, chain, told
from bench.quality.chain import Chain, ChainError, clara
from bench.quality.questions import DOCUMENTS, QUESTIONS, write_questions
from bench.quality.size import SEED_OF_QUESTIONS, SIZES
from clara.evaluation.layouts import read_dataset
from clara.evaluation.registry import RANKERS, SYSTEMS

TINY = SIZES["tiny"]


def entry(name, ranker, reads, *, system="clara", control=None):
    keys = {"entry": name, "system": system, "ranker": ranker, "reads_memory": reads}
    return {**keys, "control": control}


def summed_up(made, *entries):
    made.evaluation.mkdir(parents=True, exist_ok=True)
    summary = {"questions": 512, "documents": 4000, "entries": list(entries)}
    (made.evaluation / "summary.json").write_text(json.dumps(summary))


def test_questions_are_read_as_they_are_drawn(tmp_path):
    write_questions(tmp_path / "data", 20, seed=3)
    rows = task.held_out(20, seed=3)
    read = read_dataset(tmp_path / "data" / QUESTIONS, tmp_path / "data" / DOCUMENTS)
    assert len(read.questions) == 20
    for question, row in zip(read.questions, rows, strict=True):
        assert question.question == row["question"]
        assert question.golden_answers == (row["answer"],)
        assert [read.documents[name].text for name in question.candidates] == row["docs"]
        assert [read.documents[name].text for name in question.positives] == [
            row["docs"][place] for place in row["pos_index"]
        ]
    assert set(read.documents) == {name for q in read.questions for name in q.candidates}


def test_what_is_evaluated_was_neither_trained_on_nor_looked_at(tmp_path):
    write_questions(tmp_path / "data", 100, SEED_OF_QUESTIONS)
    task.write_data(tmp_path, dict.fromkeys(STEPS, 500), seed=0)
    records = [
        json.loads(line)
        for stage in STEPS
        for line in (tmp_path / f"{stage}.jsonl").read_text().splitlines()
    ]
    trained = {" ".join(text.split()[:2]) for record in records for text in record["docs"]}
    read = read_dataset(tmp_path / "data" / QUESTIONS, tmp_path / "data" / DOCUMENTS)
    texts = {document.text for document in read.documents.values()}
    assert len(trained) > 100
    assert not trained & {" ".join(text.split()[:2]) for text in texts}
    assert not texts & {text for row in task.held_out(512) for text in row["docs"]}


def test_the_tiny_size_trains_as_the_learning_task_does():
    assert TINY.steps == STEPS
    assert TINY.proves
    assert not SIZES["smoke"].proves
    assert set(chain.SYSTEMS) <= set(SYSTEMS)
    assert set(chain.RANKERS) <= set(RANKERS)


def test_the_baseline_is_told_what_instruction_tuning_is(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(chain, "run", lambda *a, **k: asked.append((a, k)))
    made = Chain(tmp_path, TINY, seed=7)
    made.train_baseline()
    (((stage, settings), options),) = asked
    told_to_instruct = settings_of("instruct", made.learning, None, STEPS["instruct"], 7, {})
    assert (stage, options) == ("text", {"resume": True})
    assert settings.train_data == told_to_instruct.train_data
    assert settings.backbone == str(made.learning / "text" / "model" / "backbone")
    differs = {k for k, v in settings.arguments.items() if told_to_instruct.arguments[k] != v}
    assert differs == {"output_dir"}
    assert not settings.arguments["train_backbone"]
    (made.learning / "text-tuned" / "model").mkdir(parents=True)
    made.train_baseline()
    assert len(asked) == 1


def test_whether_memory_is_read_is_what_the_evaluation_says(tmp_path):
    made = Chain(tmp_path, TINY, 0)
    others = [
        entry("clara@8+random", "random", False),
        entry("clara-shuffled@8+gold", "gold", None, control="shuffled"),
        entry("text+gold", "gold", None, system="text"),
    ]
    own, gold = entry("clara@8+clara", "clara@8", True), entry("clara@8+gold", "gold", True)
    summed_up(made, own, gold, *others)
    made.check()
    summed_up(made, {**own, "reads_memory": False}, gold, *others)
    with pytest.raises(ChainError, match=r"answers do not come from memory: clara@8\+clara$"):
        made.check()
    replace(made, size=SIZES["smoke"]).check()
    summed_up(made, *others)
    with pytest.raises(ChainError, match="no entry"):
        made.check()


def test_a_command_that_fails_is_an_error_of_the_chain(monkeypatch, capsys):
    asked = []

    def fail(program, env):
        asked.append((program, env["OMP_NUM_THREADS"]))
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(chain.subprocess, "run", fail)
    monkeypatch.setattr(chain.torch, "get_num_threads", lambda: 3)
    with pytest.raises(ChainError, match=r"^clara evaluate --limit 'two words': ended with"):
        clara(["evaluate", "--limit", "two words"])
    ((program, threads),) = asked
    assert program[-3:] == ["evaluate", "--limit", "two words"]
    assert threads == "3"
    assert "clara evaluate --limit 'two words'" in capsys.readouterr().out


class TestProgram:
    @pytest.fixture
    def done(self, monkeypatch):
        """Steps that were done, none of which does anything."""
        done = []

        def steps(made):
            def do(name):
                done.append(name)
                if name == "evaluation":
                    ours = [entry("a", "clara@8", True), entry("b", "gold", True)]
                    summed_up(made, *ours)

            names = ("questions", "training", "text baseline", "evaluation", "report")
            return {name: lambda name=name: do(name) for name in names}

        monkeypatch.setattr(Chain, "steps", property(steps))
        monkeypatch.setattr(told, "describe", lambda folder: {"steps": 5, "hours": 0.05})
        return done

    def test_minutes_are_those_of_the_call_that_finished_a_step(self, tmp_path, done, capsys):
        options = ["--output", str(tmp_path), "--threads", "1"]
        assert __main__.main(options) == 0
        kept = (tmp_path / "steps.jsonl").read_bytes()
        assert __main__.main(options) == 0
        assert done == [*Chain(tmp_path, TINY, 0).steps] * 2
        assert (tmp_path / "steps.jsonl").read_bytes() == kept
        page = (tmp_path / "chain.md").read_text()
        assert page in capsys.readouterr().out
        assert "| text | the backbone's own weights, on text | 5 | 64 | 3.0 |" in page
        assert "512 questions were evaluated with 4000 sheets." in page
        assert "| evaluation | 0.0 |" in page
        assert "nothing" not in page

    def test_the_page_of_a_check_says_so(self, tmp_path, done):
        options = ["--size", "smoke", "--output", str(tmp_path), "--threads", "1"]
        assert __main__.main(options) == 0
        assert "its figures mean nothing" in (tmp_path / "chain.md").read_text()

    def test_a_folder_of_another_seed_is_refused(self, tmp_path, done, capsys):
        options = ["--output", str(tmp_path), "--threads", "1"]
        assert __main__.main(options) == 0
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
        done.clear()
        assert __main__.main([*options, "--seed", "1"]) == 1
        assert done == []
        assert "seed 0, not 1; choose another" in capsys.readouterr().err
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before

    def test_usage(self, capsys):
        with pytest.raises(SystemExit):
            __main__.main(["--threads", "0"])
        assert "--threads must be at least 1, got 0" in capsys.readouterr().err
