from __future__ import annotations

import os
import pty
import re
import shutil
from functools import cache

import pytest

from clara import Clara, ClaraConfig
from clara.cli.inspection import is_trained
from clara.data.factbook import FactbookError
from clara.evaluation import demonstration
from clara.terminal.printing import UNTRAINED

from ...plugins.untraced import untraced


@pytest.fixture(scope="module", autouse=True)
def factbook_read_once():
    """Reading it takes seconds, and twice as many where coverage looks on."""
    with pytest.MonkeyPatch.context() as patch:
        read = cache(untraced(demonstration.load_factbook))
        patch.setattr(demonstration, "load_factbook", read)
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder without models; the demonstration has three countries."""
    monkeypatch.setattr(demonstration, "COUNTRIES", demonstration.COUNTRIES[:3])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_demo_ends_by_itself(process, backbone, tmp_path):
    result = process("demo", "--documents", "4", "--backbone", backbone, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    printed = result.stdout
    assert printed.count("Question: ") == demonstration.QUESTIONS
    assert f"Backbone: {backbone}\n" in printed
    assert printed.count(UNTRAINED) == 1
    numbers = re.search(
        r"Compressed 4 sections .* ([\d,]+) tokens of text became 64 memory tokens, ([\d.]+)x",
        printed,
    )
    tokens = int(numbers[1].replace(",", ""))
    assert float(numbers[2]) == pytest.approx(tokens / 64, abs=0.05)
    assert printed.count("from memory tokens") >= 1
    assert printed.count("from plain text") == printed.count("Question: ")


def test_given_questions_replace_the_built_in_ones(clara, backbone, elsewhere):
    questions = ["Where is Iceland?", "What is [bold]\x1b[31mred?"]
    arguments = [part for each in questions for part in ("--question", each)]
    printed = clara(
        "demo", "--documents", "4", "--top-k", "2", "--backbone", backbone, *arguments
    ).stdout
    assert printed.replace("\n", "").isprintable()
    assert "\nQuestion: Where is Iceland?\n" in printed
    assert "\nQuestion: What is [bold]\ufffd[31mred?\n" in printed
    assert printed.count("Question: ") == 2
    assert "In the documents" not in printed
    assert len(re.findall(r"^ *-?\d\.\d{4}  \S+/\S+/\d", printed, re.MULTILINE)) == 2 * 2


def test_bad_input(refused, clara, backbone, elsewhere):
    assert "--documents" in refused("demo", "--documents", "0", code=2)
    assert "--top-k" in refused("demo", "--top-k", "0", code=2)
    assert "question is empty" in refused("demo", "--question", " ", code=2)
    result = clara("demo", "--backbone", "/no/such", code=1)
    assert result.stderr == "error: backbone folder '/no/such' does not exist\n"


@pytest.mark.slow
def test_questions_typed_in(start, backbone, tmp_path):
    ours, theirs = pty.openpty()
    running = start("demo", "--documents", "4", "--backbone", backbone, stdin=theirs, cwd=tmp_path)
    os.close(theirs)
    os.write(ours, b"Where is Kenya?\n\n")
    printed, errors = running.communicate(timeout=300)
    os.close(ours)
    assert (running.returncode, errors) == (0, "")
    assert "Question: Where is Kenya?\n" in printed
    assert printed.count("Your question") == 2


def test_sample_answers_its_questions():
    documents, questions = demonstration.factbook_sample(lambda text: len(text) // 4, 48, 256)
    assert len(documents) == 48
    assert len({document.id for document in documents}) == 48
    assert len({document.id.split("/")[0] for document in documents}) == 12
    assert len(questions) == demonstration.QUESTIONS
    assert len({question.id.split("/")[0] for question in questions}) == 3
    texts = {document.id: document.text for document in documents}
    for question in questions:
        for answer in question.golden_answers:
            assert all(answer.lower() in texts[name].lower() for name in question.positives)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12, 13])
def test_few_documents_are_those_that_answer_questions(count):
    documents, questions = demonstration.factbook_sample(lambda text: len(text) // 4, count, 256)
    names = {document.id for document in documents}
    assert len(documents) == len(names) == count
    assert len(questions) == min(count, demonstration.QUESTIONS)
    for question in questions:
        assert set(question.positives) & names


def test_trained_checkpoint_is_found_and_used(
    clara, backbone, model, reference_checkpoint, elsewhere
):
    models = elsewhere / "models"
    shutil.copytree(model, models / "untrained")
    clara("convert", reference_checkpoint, str(models / "other"), "--backbone", backbone)
    config = ClaraConfig.load(models / "other" / "config.json")
    config.replace(backbone="someone/another-model").save(models / "other" / "config.json")
    (models / "noise").mkdir()
    (models / "noise" / "config.json").write_text("{")
    assert demonstration.find_checkpoint(models, backbone, is_trained) is None

    clara("convert", reference_checkpoint, str(models / "ours"), "--backbone", backbone)
    assert demonstration.find_checkpoint(models, backbone, is_trained) == models / "ours"
    printed = clara("demo", "--documents", "2", "--backbone", backbone, "--question", "q").stdout
    assert "Adapters: trained, from models/ours\n" in printed
    assert UNTRAINED not in printed


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "/x/SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("/models/SmolLM2-135M-Instruct/", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", False),
    ],
)
def test_names_of_one_backbone(tmp_path, one, other, same):
    folder = tmp_path / "model"
    folder.mkdir()
    ClaraConfig(backbone=one).save(folder / "config.json")
    found = demonstration.find_checkpoint(tmp_path, other, lambda folder: True)
    assert found == (folder if same else None)


def test_default_backbone(monkeypatch):
    def absent():
        raise FactbookError("not installed")

    assert demonstration.default_backbone().endswith(".gguf")
    monkeypatch.setattr(demonstration, "smollm2_file", absent)
    assert demonstration.default_backbone() == demonstration.HUB_ID


def test_comparison_measures_both_answers(model):
    loaded = Clara.from_pretrained(model)
    documents = loaded.compress(["A first text.", "A second text.", "A third."])
    found = demonstration.compare(loaded, documents, "What is first?", 2)
    best = [[each.text for each in found.answer.documents]]
    assert len(best[0]) == 2
    (expected,) = loaded.answer_from_text(["What is first?"], best, max_new_tokens=32)
    assert found.text_answer == expected.strip()
    assert found.memory_seconds > 0
    assert found.text_seconds > 0
    assert found.answer.prompt_tokens == loaded.prompt_tokens("What is first?", 2)
