"""Runs examples/factbook.py as a reader of the documentation does."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clara.backbone.loading import convert_gguf
from clara.data import read_documents, read_questions
from clara.data.factbook import smollm2_file

FEW = [str(Path(__file__).parent / "thirteen_countries"), os.environ.get("PYTHONPATH", "")]
THIRTEEN = os.pathsep.join(filter(None, FEW))
SCRIPT = Path(__file__).parents[1] / "examples" / "factbook.py"


def run(folder, *arguments, python=sys.executable, **environment):
    return subprocess.run(
        [python, str(SCRIPT), "--output", str(folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    """A tokenizer on disk whose every word and punctuation mark is one token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_chunks_fit_smollm2(warm, tmp_path):
    done = run(tmp_path / "factbook", python=warm().python)
    assert done.returncode == 0, done.stderr
    documents = list(read_documents(tmp_path / "factbook" / "docs.jsonl"))
    questions = list(read_questions(tmp_path / "factbook" / "questions.jsonl"))
    assert f"docs.jsonl: {len(documents)}\n" in done.stdout
    assert f"questions.jsonl: {len(questions)}\n" in done.stdout

    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(smollm2_file()))
    texts = [document.text for document in documents]
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert 200 < max(counts) <= 256
    assert sum(counts) / len(counts) > 128  # packed, not a line each

    folded = {document.id: " ".join(document.text.casefold().split()) for document in documents}
    for question in questions:
        for name in question.positives:
            assert all(a.casefold() in folded[name] for a in question.golden_answers), question


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(tmp_path, small_tokenizer):
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        options = ["--tokenizer", small_tokenizer, "--max-tokens", "128"]
        done = run(folder, *options, PYTHONHASHSEED=str(seed), PYTHONPATH=THIRTEEN)
        assert done.returncode == 0, done.stderr
    first, second = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert len(first) == 5
    assert first == second


@pytest.mark.slow
def test_an_error_of_the_script_has_no_traceback(warm, tmp_path):
    done = run(tmp_path, "--tokenizer", tmp_path / "absent", python=warm().python)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("factbook: ")
    assert "Traceback" not in done.stderr


def test_errors_are_one_line(tmp_path, small_tokenizer, monkeypatch):
    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert len(stop.value.code.splitlines()) == 1
        return stop.value.code

    assert refused("--tokenizer", str(tmp_path / "absent")).startswith("factbook: ")
    reason = "factbook: max_tokens = 3 leaves no room"
    assert refused("--tokenizer", str(small_tokenizer), "--max-tokens", "3").startswith(reason)
