"""`recipes/mean_memory.py`: one vector for each document, close to the mean of its memory."""

import json
from pathlib import Path

import pytest
import torch

from clara import Clara
from clara.training.batches import candidate_id
from clara.training.candidates import CandidateMemory

SPANS = {"memory_form": "spans", "compression_rate": 4, "rates": [1, 4, 16], "span_slope": 0.1}


@pytest.fixture
def script(scripts):
    return scripts.mean_memory


@pytest.fixture
def texts():
    words = ["Kenya", "Chad", "Peru", "coast", "river", "border", "peak", "island", "railway"]
    return [" ".join(words[row:] + words[: row // 2]) + f" {row} km." for row in range(8)]


def write(file, texts):
    rows = [{"question": "Who?", "docs": texts[:5], "pos_index": [0]}]
    rows.append({"question": "Where?", "docs": texts[3:], "pos_index": [1]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_vectors_are_close_to_the_mean_of_memory(script, texts, tmp_path, capsys, save_drawn):
    source, index = save_drawn(tmp_path / "model", document_length=32, **SPANS), tmp_path / "index"
    file = write(tmp_path / "ranking.jsonl", texts)
    arguments = [str(source), str(index), file]
    assert script.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"added": 8}

    model = Clara.from_pretrained(source, device="cpu")
    memory = CandidateMemory(model, index, rate=16)
    found = memory.read([candidate_id(text) for text in texts])
    assert found.texts == texts
    assert found.counts == [-(-tokens // 16) for tokens in found.token_counts]
    assert max(found.counts) == 2  # the vector twice
    rates = [model.compress(texts, compression_rate=rate).padded for rate in script.RATES]
    real = torch.stack([each.vectors("mean") for each in rates]).mean(0)
    # With all documents measured, what is added is right on average.
    torch.testing.assert_close(found.padded.vectors("mean").mean(0), real.mean(0))
    assert torch.cosine_similarity(found.padded.vectors("mean"), real).min() > 0.8
    # A model whose connector adds nothing has these vectors exactly.
    with torch.no_grad():
        model.connectors.of("compressor").up.zero_()
    passages = model.passages(texts, "truncate")
    for rate in script.RATES:
        plain = model.compress(texts, compression_rate=rate).padded.vectors("mean")
        torch.testing.assert_close(script.mean_of_spans(model, passages, rate), plain)

    # What is there stays; new documents come beside it.
    texts.append("Fiji: an island.")
    assert script.main([*arguments, write(tmp_path / "more.jsonl", texts)]) == 0
    assert json.loads(capsys.readouterr().out) == {"added": 1}
    # The stage that trains on it compresses nothing.
    assert CandidateMemory(model_of(source), index, rate=16).add(texts) == 0


def model_of(folder):
    return Clara.from_pretrained(folder, device="cpu")


def test_a_long_document_is_cut_as_it_is_when_compressed(script, tmp_path, save_drawn):
    model = model_of(save_drawn(tmp_path / "model", document_length=32, **SPANS))
    long = " ".join(f"word {n}" for n in range(60))
    file = write(tmp_path / "ranking.jsonl", [long, *(f"text {n}" for n in range(7))])
    script.write_index(model, tmp_path / "index", [file])
    found = CandidateMemory(model, tmp_path / "index", rate=16).read([candidate_id(long)])
    assert found.token_counts == [32]
    assert long.startswith(found.texts[0])


@pytest.mark.parametrize("case", ["learned", "no file"])
def test_bad_input(script, texts, tmp_path, capsys, case, save_drawn):
    source = save_drawn(tmp_path / "model", **({} if case == "learned" else SPANS))
    file = write(tmp_path / "ranking.jsonl", texts)
    if case == "no file":
        Path(file).unlink()
    assert script.main([str(source), str(tmp_path / "index"), file]) == 1
    told = capsys.readouterr().err
    assert ("memory_form spans" if case == "learned" else "no such file") in told
    assert told.count("\n") == 1
    assert not (tmp_path / "index").exists()
