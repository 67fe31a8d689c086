from __future__ import annotations

import os
import pty
import re
import shutil

import pytest

from clara import Clara, ClaraConfig
from clara.backbone import packaged
from clara.backbone.adapters import ADAPTERS
from clara.cli.demo import print_comparison, print_tallies
from clara.cli.examples import EXAMPLES
from clara.cli.inspection import is_trained
from clara.data.records import Question
from clara.evaluation import demonstration
from clara.evaluation.demonstration_questions import sample
from clara.model import shipped
from clara.model.answers import Answer, RankedDocument
from clara.terminal.printing import UNTRAINED


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder without models."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_demo_ends_by_itself(process, backbone, tmp_path):
    result = process("demo", "--documents", "4", "--backbone", backbone, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    printed = result.stdout
    assert re.findall(r"^Question (\d) of 4: ", printed, re.MULTILINE) == list("1234")
    assert printed.count("the document says ") == 4
    assert "model's own retrieval chooses the passages" in printed
    assert "bare backbone, which was not trained" in printed
    assert re.search(r"^4 questions in [\d.]+ s:$", printed, re.MULTILINE)
    assert f"Backbone: {backbone}\n" in printed
    assert printed.count(UNTRAINED) == 1
    numbers = re.search(
        r"Compressed 4 passages .* ([\d,]+) tokens of text became (\d+) memory tokens, ([\d.]+)x",
        printed,
    )
    tokens = int(numbers[1].replace(",", ""))
    assert float(numbers[3]) == pytest.approx(tokens / int(numbers[2]), abs=0.05)
    for way in ("from memory tokens", "from plain text"):
        assert printed.count(f"\n{way} ") == 4 + 1  # and in the count of right answers


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
    assert "the document says" not in printed  # nobody knows
    assert "questions in" not in printed
    assert len(re.findall(r"\S+/\S+/\d+ -?\d\.\d{3}", printed)) == 2 * 2


def test_bad_input(refused, clara, backbone, elsewhere):
    for count in ("0", "97"):
        assert "--documents" in refused("demo", "--documents", count, code=2)
    assert "model folder 'none' does not exist" in refused("demo", "--model", "none")
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
    arguments = ["--documents", "2", "--question", "q", "--model", str(models / "other")]
    printed = clara("demo", *arguments, "--backbone", backbone).stdout
    assert f"Adapters: trained, from {models / 'other'}\n" in printed


def test_the_model_that_comes_with_the_project_comes_first(model, elsewhere, backbone, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", elsewhere / "package")
    ours = elsewhere / "package" / "weights" / "models" / shipped.FACTBOOK
    for folder in (ours, elsewhere / "models" / "newer"):
        shutil.copytree(model, folder)
    found = demonstration.find_checkpoint(elsewhere / "models", backbone, lambda folder: True)
    assert found == ours
    found = demonstration.find_checkpoint(elsewhere / "models", "another", lambda folder: True)
    assert found is None


def test_what_reads_text_alone_or_was_refused_is_no_model(model, elsewhere, backbone, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", elsewhere / "package")
    models = elsewhere / "models"
    ours = elsewhere / "package" / "weights" / "models" / shipped.FACTBOOK
    for folder in (ours, models / "reader"):
        shutil.copytree(model, folder)
        (folder / "compressor" / "adapter_model.safetensors").unlink()
    for name in (".refused.unfinished", ".refused.old"):
        shutil.copytree(model, models / name)
    assert demonstration.find_checkpoint(models, backbone, lambda folder: True) is None
    shutil.copytree(model, models / "whole")
    assert demonstration.find_checkpoint(models, backbone, lambda folder: True) == models / "whole"


def test_the_newest_trained_folder_is_taken(model, elsewhere, backbone, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", elsewhere / "package")
    models = elsewhere / "models"
    for place, name in enumerate(("old", "new", "newest")):
        shutil.copytree(model, models / name)
        os.utime(models / name / "config.json", (place, place))
    found = demonstration.find_checkpoint(models, backbone, lambda folder: folder.name != "newest")
    assert found == models / "new"


def test_the_example_of_the_help_asks_what_its_passages_answer():
    (example,) = EXAMPLES["demo"]
    count, question = re.search(r'--documents (\d+) --question "(.*)"', example).groups()
    assert question in [each.question for each in sample(int(count))[1]]


@pytest.mark.usefixtures("without_shipped_models")
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
    for name in ADAPTERS:
        (folder / name).mkdir()
        (folder / name / "adapter_model.safetensors").touch()
    found = demonstration.find_checkpoint(tmp_path, other, lambda folder: True)
    assert found == (folder if same else None)


def test_default_backbone(monkeypatch):
    assert demonstration.default_backbone().endswith(".gguf")
    monkeypatch.setattr("clara.files.smollm2.installed_copy", lambda: None)
    assert demonstration.default_backbone() == packaged.SMOLLM2


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


def result(question, memory, text, seconds=1.0):
    documents = [
        RankedDocument("a/b/0", "a/b/0", None, 0.75, "the text"),
        RankedDocument("c/d/1#2", "c/d/1", None, 0.5, "other"),
    ]
    answer = Answer(memory, documents, 80, 400, {"generate": 1000 * seconds})
    return demonstration.Comparison(question, answer, seconds, text, 3 * seconds)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("colours", [False, True])
def test_right_and_wrong_are_told_in_words_and_colours(capsys, monkeypatch, columns, colours):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR" if colours else "NO_COLOR", "1")
    monkeypatch.delenv("NO_COLOR" if colours else "FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    long = "It is 580 km, \x1b[31m" + "and so on " * 20
    print_comparison(result("How long?", "580 km", long), ("580 km",), ("c/d/1",), 3, 10)
    print_comparison(result("How wide?", "58 km", ""), ("580 km",), (), 4, 10)
    printed = capsys.readouterr().out
    assert ("\x1b[32m" in printed) is colours
    plain = re.sub("\x1b\\[[0-9;]*m", "", printed)
    assert plain.replace("\n", "").isprintable()
    assert all(len(line) <= columns for line in plain.splitlines())
    assert re.search(r"^Question 3 of 10: How long\?$", plain, re.MULTILINE)
    assert re.search(r"^the document says  +580 km +$", plain, re.MULTILINE)
    assert re.search(
        r"^from memory tokens +right +580 km +1\.00 s +80 tokens$", plain, re.MULTILINE
    )
    assert re.search(r"^from plain text +in it +It is 580 km, \ufffd\[31m", plain, re.MULTILINE)
    assert re.search(r"^read: a/b/0 0\.750, c/d/1#2 0\.500 \(says it\)$", plain, re.MULTILINE)
    assert re.search(r"^from memory tokens +wrong +58 km ", plain, re.MULTILINE)
    assert re.search(r"^from plain text +wrong +\(empty answer\) ", plain, re.MULTILINE)


def test_answers_are_counted(capsys):
    results = [
        result("a", "580 km", "It is 580 km."),
        result("b", "It is 7.", "7", 2.0),
        result("c", "8", "nothing", 4.0),
    ]
    golds = [("580 km",), ("7",), ("8", "eight")]
    memory, text = demonstration.tallies(results, golds)
    assert memory == demonstration.Tally(right=2, in_it=1, seconds=2.0, prompt_tokens=80)
    assert text == demonstration.Tally(right=1, in_it=1, seconds=6.0, prompt_tokens=400)
    known = [Question(f"q{n}", "", each, ("c/d/1",) if n else ()) for n, each in enumerate(golds)]
    print_tallies(results, known, 12.34)
    printed = capsys.readouterr().out
    assert "3 questions in 12.3 s:" in printed
    assert re.search(r"^from memory tokens +2 of 3 +1 +2\.00 s +80 tokens$", printed, re.MULTILINE)
    assert "For 2 of 3 questions a passage that says the answer was read." in printed
    assert "“right”: the answer alone." in printed
    print_tallies([], [], 0.0)
    assert capsys.readouterr().out == ""
