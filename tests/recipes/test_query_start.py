"""`recipes/query_start.py`: a query reasoner that ranks, and everything else as it was."""

import json
import subprocess
import sys

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.data.examples import contrastive_example, open_examples

SPANS = {"memory_form": "spans", "compression_rate": 4, "rates": [1, 2, 4, 8, 16]}
COUNTRIES = ["Kenya", "Chad", "Peru", "Oman", "Fiji", "Cuba", "Mali", "Togo", "Iran", "Laos"]
LABELS = ["Coastline", "Railways", "Highest point", "Population"]


@pytest.fixture
def script(scripts, monkeypatch):
    monkeypatch.setattr(scripts.query_start, "STEPS", 100)
    monkeypatch.setattr(scripts.query_start, "BATCH", 16)
    return scripts.query_start


def text(country, label):
    number = 3 * COUNTRIES.index(country) + 7 * LABELS.index(label)
    return f"{country}: Facts\n{label}: {number} units"


@pytest.fixture
def examples(tmp_path):
    """The file of questions: the same label of other countries, and other labels of the same."""
    rows = []
    for at, country in enumerate(COUNTRIES):
        for label in LABELS:
            near = [text(country, other) for other in LABELS if other != label]
            near += [text(COUNTRIES[(at + step) % 10], label) for step in (1, 2, 3)]
            place = (at + len(rows)) % 7
            docs = [*near[:place], text(country, label), *near[place:]]
            question = f"{label} of {country}?"
            rows.append({"question": question, "docs": docs, "pos_index": [place]})
    file = tmp_path / "ranking.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_rest_of_the_model_stays(script, examples, tmp_path, capsys, save_drawn):
    source, target = save_drawn(tmp_path / "model", **SPANS), tmp_path / "new"
    assert script.main([str(source), str(target), "--examples", str(examples)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["questions"], told["held_out"]) == (40, 4)
    assert told["step"] % script.EVERY == 0

    old, new = (Clara.from_pretrained(folder, device="cpu") for folder in (source, target))
    rows = open_examples(str(examples), "train", contrastive_example)[:]
    assert new.config == old.config
    assert new.fingerprint == old.fingerprint
    for adapter in (COMPRESSOR, GENERATOR):
        for name, weight in old.adapters.state(adapter).items():
            assert torch.equal(new.adapters.state(adapter)[name], weight)
    for name, row in old.memory_tokens.state_dict().items():
        assert torch.equal(new.memory_tokens.state_dict()[name], row)
    assert torch.equal(new.connectors.of(COMPRESSOR).up, old.connectors.of(COMPRESSOR).up)
    state = new.adapters.state(QUERY_REASONER)
    assert not any(weight.any() for name, weight in state.items() if "lora_B" in name)

    # Another process reads the folder and makes the same memory and the same queries.
    code = (
        "import sys, torch; from clara import Clara; "
        "model = Clara.from_pretrained(sys.argv[1], device='cpu'); "
        "memory = model.compress([sys.argv[2]], compression_rate=4).memory; "
        "torch.save((memory, model.encode_queries([sys.argv[3]])), sys.argv[4])"
    )
    question, document = rows[0].question, rows[0].documents[0]
    values = [str(target), document, question, str(tmp_path / "values.pt")]
    subprocess.run([sys.executable, "-c", code, *values], check=True)
    memory, queries = torch.load(tmp_path / "values.pt", weights_only=True)
    torch.testing.assert_close(memory, old.compress([document], compression_rate=4).memory)
    torch.testing.assert_close(queries, new.encode_queries([question]))


def test_a_start_that_was_not_written_to_the_end_is_none(
    script, examples, tmp_path, save_drawn, monkeypatch, capsys
):
    def half(model, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")

    source, target = save_drawn(tmp_path / "model", **SPANS), tmp_path / "new"
    with monkeypatch.context() as full:
        full.setattr(Clara, "save_pretrained", half)
        assert script.main([str(source), str(target), "--examples", str(examples)]) == 1
    assert capsys.readouterr().err == "error: no space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ranking.jsonl"]


def test_features_are_what_the_model_computes(script, examples, tmp_path, save_drawn):
    model = Clara.from_pretrained(save_drawn(tmp_path / "model", **SPANS), device="cpu")
    rows = open_examples(str(examples), "train", contrastive_example)[:12]
    script.untrained(model)
    features = script.features_of(model, rows)
    up = model.connectors.of(QUERY_REASONER).up
    expected = model.encode_queries([row.question for row in rows])[:, 0]
    torch.testing.assert_close(features.states @ up.T + features.means, expected)
    texts = list(dict.fromkeys(text for row in rows for text in row.documents))
    for rate, vectors in zip(script.RATES, features.vectors, strict=True):
        real = model.compress(texts, compression_rate=rate).padded.vectors("mean")
        assert torch.cosine_similarity(vectors, real).mean() > 0.9
    for row, candidates in zip(rows, features.candidates.tolist(), strict=True):
        assert texts[candidates[0]] == row.documents[row.positives[0]]
        others = [text for at, text in enumerate(row.documents) if at not in row.positives]
        assert [texts[at] for at in candidates[1:]] == others


def test_a_map_is_found_that_holds_for_other_subjects(script, monkeypatch):
    """Documents lie where a map takes the questions' states, and vary little in that direction."""
    monkeypatch.setattr(script, "STEPS", 400)
    monkeypatch.setattr(script, "LEARNING_RATE", 0.02)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    states, means = drawn(400, 16) + 1.0, drawn(400, 16)
    spread = torch.logspace(-1, 1, 16)
    vectors = torch.nn.functional.normalize((states @ drawn(16, 16)) * spread + 20.0, dim=1)
    wrong = torch.randint(400, (400, 5), generator=generator)
    candidates = torch.cat([torch.arange(400)[:, None], wrong], 1)
    features = script.Features(states, means, [vectors, vectors], candidates)
    held = torch.arange(400) % 10 == 0
    found, step, before, after = script.fitted(features, held)
    assert step > 0
    assert before.at_1 < 0.5
    assert after.at_1 > 0.8
    queries = states[held] @ found.T + means[held]
    assert features.recall(queries, held.nonzero()[:, 0]) == after


def test_scores_and_loss_leave_out_padding_and_the_own_answer(script, monkeypatch):
    monkeypatch.setattr(script, "TEMPERATURE", 1.0)
    vectors = torch.eye(3)
    candidates = torch.tensor([[0, 1, -1], [2, 0, 1], [0, 2, 1]])
    zeros = torch.zeros(3, 3)
    features = script.Features(zeros, zeros, [vectors], candidates)
    queries, rows = torch.tensor([[2.0, 0, 0], [0, 0, 3.0], [0, 1.0, 0]]), torch.arange(3)
    scores = torch.tensor([[1.0, 0, -1], [1, 0, 0], [0, 0, 1]])
    assert torch.equal(features.scores(queries, rows, 0), scores)
    assert features.recall(queries, rows) == (pytest.approx(2 / 3), 1.0)
    # Behind each question's own candidates come the answers of the others: 0, 2 and 0.
    others = torch.tensor([[-1.0, 0, -1], [0, -1, 0], [-1, 0, -1]])
    logits = torch.cat([scores, others], 1)
    expected = (logits.logsumexp(1) - logits[:, 0]).mean()
    torch.testing.assert_close(features.loss(queries, rows, 0), expected)


def test_all_questions_on_a_subject_are_held_out_together(script):
    subjects = [script.subject(text(country, "Railways")) for country in COUNTRIES * 3]
    held = script.held_out(subjects).tolist()
    assert sum(held) == 3
    assert len({subject for subject, out in zip(subjects, held, strict=True) if out}) == 1


@pytest.mark.parametrize(
    ("settings", "change", "error"),
    [
        (SPANS, "target", "exists; name a new folder"),
        ({}, None, "needs memory_form spans"),
        ({**SPANS, "connector_rank": 2}, None, "with connector_rank null"),
        (SPANS, "one subject", "at least two"),
        (SPANS, "no file", "no such file"),
        (SPANS, "no list", "field 'docs'"),
    ],
)
def test_bad_input(script, examples, tmp_path, capsys, settings, change, error, save_drawn):
    source, target = save_drawn(tmp_path / "model", **settings), tmp_path / "new"
    if change == "target":
        target.mkdir()
        (target / "precious").write_text("kept")
    if change == "one subject":
        examples.write_text(examples.read_text().splitlines()[0] + "\n")
    if change == "no file":
        examples.unlink()
    if change == "no list":
        examples.write_text('{"question": "Who?", "docs": "Ada", "pos_index": [0]}\n')
    assert script.main([str(source), str(target), "--examples", str(examples)]) == 1
    told = capsys.readouterr().err
    assert error in told
    assert told.count("\n") == 1
    assert target.exists() == (change == "target")
    assert change != "target" or (target / "precious").read_text() == "kept"
