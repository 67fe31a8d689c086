"""Texts that do not fit the backbone's positions with their memory, in memory form "spans"."""

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from clara.data.examples import AnswerExample, DocumentQuestions, RankingExample
from clara.training.candidates import CandidateMemory
from clara.training.collators import RankingCollator, TextCollator
from clara.training.controls import Controls
from clara.training.encoder import Encoder, SkippedExampleError
from clara.training.moments import Moment
from clara.training.questions import Asking
from clara.training.reconstruction import DrawingCollator
from clara.training.run import run
from clara.training.settings import SettingsError

from .conftest import fact, random_model

LONG = "The river has a long course through the hills and ends in a lake. " * 5


@pytest.fixture(scope="module")
def folder(random_backbone):
    return random_backbone(LlamaConfig, max_position_embeddings=220)


@pytest.fixture
def model(folder):
    return random_model(
        folder, memory_form="spans", compression_rate=1, rates=(1, 4), document_length=200
    )


def encoder(model, budget=None, **options):
    return Encoder(model.tokenizer, model.config, budget, positions=220, **options)


def test_the_long_text_fits_at_a_higher_rate_alone(model):
    (tokens,) = model.tokenizer.encode_texts([LONG])
    assert 2 * len(tokens.ids) > 220 > len(tokens.ids) * 5 // 4 + 4
    assert len(encoder(model).passages([LONG], "document", 4)) == 1
    with pytest.raises(SkippedExampleError, match=r"a document and its memory have \d+ tokens"):
        encoder(model).passages([LONG], "document", 1)
    assert not model.always_fits(1)
    assert model.always_fits(128)


def test_training_leaves_such_examples_out(settings, folder, tmp_path):
    rows = [*map(fact, range(5)), (LONG, "Where does it end?", "in a lake")]
    data = tmp_path / "data.jsonl"
    lines = [json.dumps({"question": q, "docs": [text], "answer": a}) for text, q, a in rows]
    data.write_text("\n".join(lines) + "\n")
    made = settings(
        config={"memory_form": "spans", "compression_rate": 16, "document_length": 200},
        per_device_train_batch_size=3,
        curriculum=[{"rates": [1]}],
    )
    made = replace(made, backbone=str(folder), train_data=str(data))
    outcome = run("instruct", made)
    assert outcome.steps == 4
    assert outcome.events["document empty or too long"] == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["arguments"]["alignment_weight"] == 0.0  # 0.1 in memory form "learned"


def test_controls_ask_what_fits_at_every_rate(model):
    examples = [AnswerExample(q, (text,), a) for text, q, a in map(fact, range(4))]
    long = [
        AnswerExample("Where does it end?", (LONG,), "in a lake"),
        AnswerExample("What is it?", ("A mill.",), "a long answer " * 60),
    ]
    controls = Controls(model, [*examples, *long], 10, [1, 4])
    assert len(controls) == 4
    assert set(controls.measure()) >= {"exact_match@1", "exact_match_other@4"}


def test_controls_leave_out_memory_that_is_longer_than_its_text(folder):
    """In memory form "learned" two short documents may have more memory tokens than positions."""
    model = random_model(folder, compression_rate=1, document_length=100)
    short = [AnswerExample(q, (text, "A mill."), a) for text, q, a in map(fact, range(2))]
    with pytest.raises(SettingsError, match="no two questions"):
        Controls(model, short, 4)


def test_a_candidate_without_memory_is_left_out(model, tmp_path):
    candidates = CandidateMemory(model, tmp_path / "index")
    assert candidates.add([LONG, "A mill."]) == 1
    assert len(candidates.unusable) == 1


def test_candidates_of_another_rate_are_refused(model, folder, tmp_path):
    CandidateMemory(model, tmp_path / "index").add(["A mill."])
    settings = {"memory_form": "spans", "rates": (1, 4)}
    for changed, message in (
        (
            {"compression_rate": 4, "document_length": 200},
            "with compression_rate 1, this run has 4",
        ),
        ({"compression_rate": 1, "document_length": 90}, "with document_length 200, this run has"),
    ):
        other = random_model(folder, **settings, **changed)
        assert other.fingerprint == model.fingerprint
        with pytest.raises(ValueError, match=message):
            CandidateMemory(other, tmp_path / "index")


def test_with_negatives_any_candidate_may_be_selected(model):
    example = RankingExample("Who?", ("Ada.", "Ben."), (0,), "Ada")
    alone = RankingCollator(encoder(model, 200), 2)
    assert alone([example]).counts == {"questions": 1, "tokens": alone([example]).counts["tokens"]}
    found = RankingCollator(encoder(model, 200), 2, any_candidate=True)([example])
    assert found.events == {"prompt over the budget": 1}


def test_other_questions_are_drawn_in_other_steps(model):
    many = DocumentQuestions(
        ("A mill.",), tuple(f"What {n}?" for n in range(30)), tuple(str(n) for n in range(30))
    )
    collate = DrawingCollator(TextCollator(encoder(model), Asking(4)))
    asked = {
        tuple(collate([many], Moment(step, 9, step)).prompts.batch.ids.tolist())
        for step in range(6)
    }
    assert len(asked) == 6
    again = collate([many], Moment(3, 9, 3)).prompts.batch.ids.tolist()
    assert tuple(again) in asked
