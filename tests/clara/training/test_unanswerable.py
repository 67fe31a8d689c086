"""Questions of training that get documents without their answer, and a refusal."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from clara.data.examples import (
    AnswerExample,
    DocumentQuestions,
    ExampleFile,
    RankingExample,
    ranking_example,
)
from clara.data.unanswerable import REFUSAL
from clara.training.arguments import ClaraTrainingArguments
from clara.training.collators import CompressionCollator
from clara.training.distillation import Distillation
from clara.training.encoder import Encoder
from clara.training.moments import Moment
from clara.training.run import run
from clara.training.settings import SettingsError
from clara.training.stages import ASSEMBLY
from clara.training.unanswerable import UnanswerableCollator

from .conftest import fact, ranking_rows
from .test_batches import answers_of

FACTS = [AnswerExample(question, (text,), town) for text, question, town in map(fact, range(24))]
NOW = Moment(3, 10, 5)


def drawn(examples, share, moment=NOW, data=FACTS):
    return UnanswerableCollator(lambda made: made, share, data)(examples, moment)


def rank(row):
    made = ranking_rows(24)[row]
    return RankingExample(
        made["question"], tuple(made["docs"]), tuple(made["pos_index"]), made["answer"]
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_is_what_is_asked_for(share):
    made = [each for step in range(100) for each in drawn(FACTS, share, Moment(step, 100, step))]
    refused = [each for each in made if each.answer == REFUSAL]
    assert len(refused) / len(made) == pytest.approx(share, abs=0.03)
    assert {each for each in made if each.answer != REFUSAL} <= set(FACTS)


def test_none_and_all():
    assert drawn(FACTS, 0.0) == FACTS
    assert {each.answer for each in drawn(FACTS, 1.0)} == {REFUSAL}


def test_what_is_drawn_depends_on_the_moment_alone():
    assert drawn(FACTS, 0.5) == drawn(FACTS, 0.5)
    assert drawn(FACTS, 0.5) != drawn(FACTS, 0.5, Moment(4, 10, 6))


def test_the_documents_are_others_and_do_not_hold_the_answer():
    for made, example in zip(drawn(FACTS, 1.0), FACTS, strict=True):
        assert made.question == example.question
        assert made.documents != example.documents
        assert made.documents in [each.documents for each in FACTS]
        assert example.answer not in made.documents[0]


def test_a_document_is_asked_only_what_it_cannot_answer():
    mine = DocumentQuestions(
        ("Kenya\nCoastline: 536 km\nArea: 580 sq km",),
        ("Coastline?", "Coastline of Kenya?", "Area of Kenya?", "Area?"),
        ("536 km", "536 km", "580 sq km", "580 sq km"),
    )
    other = DocumentQuestions(("Togo\nCoastline: 56 km",), ("Coastline?",), ("56 km",))
    (made,) = drawn([mine], 1.0, data=[other])
    # That asks for the coastline of whatever the document is about.
    wanted = ("Coastline of Kenya?", "Area of Kenya?", "Area?")
    assert made == DocumentQuestions(other.documents, wanted, (REFUSAL,) * 3)


def test_what_the_other_example_asks_too_is_left_out():
    mine = DocumentQuestions(
        ("Ada lives in Ayr.",), ("Which town?", "Which lake?"), ("Ayr", "Eyre")
    )
    other = DocumentQuestions(("Ben is at home at Bath.",), ("Which town?",), ("Bath",))
    (made,) = drawn([mine], 1.0, data=[other])
    assert made == DocumentQuestions(other.documents, ("Which lake?",), (REFUSAL,))
    one = AnswerExample("Which town?", mine.documents, "Ayr")
    assert drawn([one], 1.0, data=[other]) == [one]


def test_where_no_documents_are_found_the_example_stays():
    same = [AnswerExample(f"Who {n}?", (f"It is Ada, not {n}.",), "Ada") for n in range(5)]
    assert drawn(same, 1.0, data=same) == same
    assert drawn(FACTS[:1], 1.0, data=FACTS[:1]) == FACTS[:1]
    ranked = [rank(0)]
    assert drawn(ranked, 1.0, data=ranked) == ranked


def test_of_candidates_only_those_that_answer_are_replaced():
    data = [rank(row) for row in range(24)]
    for made, example in zip(drawn(data, 1.0, data=data), data, strict=True):
        assert (made.question, made.positives, made.answer) == (example.question, (), REFUSAL)
        assert len(set(made.documents)) == len(made.documents) == len(example.documents)
        assert not any(example.answer in text for text in made.documents)
        for place, (new, old) in enumerate(zip(made.documents, example.documents, strict=True)):
            answers = place in example.positives or example.answer in old
            assert (new != old) is answers


def test_candidates_among_which_the_answer_may_be_anywhere_stay():
    unknown = RankingExample("Who is meant?", ("It is Ada.", "It is Ben."), (), "Cid")
    assert drawn([unknown], 1.0) == [unknown]
    told = replace(unknown, answer="Ben")
    (made,) = drawn([told], 1.0)
    assert made.answer == REFUSAL
    assert made.documents[0] == "It is Ada."
    assert made.documents[1] in [each.documents[0] for each in FACTS]


def assembled(model, stage, data, folder, share):
    arguments = ClaraTrainingArguments(
        output_dir=str(folder), report_to="none", disable_tqdm=True, unanswerable=share
    )
    return ASSEMBLY[stage].assemble(model, arguments, [data, None])


@pytest.mark.parametrize("stage", ["instruct", "text"])
def test_gradients_are_those_of_refusals_to_other_documents(make_model, tmp_path, stage):
    model = make_model()
    parts = assembled(model, stage, FACTS, tmp_path / "all", 1.0)
    batch = parts.collator(FACTS[:6], NOW)
    assert [text.strip() for text in answers_of(model, batch)] == [REFUSAL] * 6
    plain = assembled(model, stage, FACTS, tmp_path / "none", 0.0)
    written = drawn(FACTS[:6], 1.0)
    gradients = []
    for made in (batch, plain.collator(written, NOW), plain.collator(FACTS[:6], NOW)):
        model.backbone.zero_grad()
        (parts.objective.train()(made)["ce"] / made.counts["tokens"]).backward()
        trained = model.adapters.parameters("generator").values()
        gradients.append(torch.cat([each.grad.flatten() for each in trained]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)


def test_end_to_end_answers_that_no_candidate_says_it(make_model, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "ranking.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ranking_rows(12)), encoding="utf-8")
    data = ExampleFile(file, ranking_example)
    model = make_model()
    parts = assembled(model, "end-to-end", data, tmp_path / "run", 1.0)
    batch = parts.collator(list(data), NOW)
    assert [text.strip() for text in answers_of(model, batch)] == [REFUSAL] * 12
    assert batch.positives == [()] * 12
    assert [len(names) for names in batch.candidates] == [len(each.documents) for each in data]
    sums = parts.objective.train()(batch)
    assert sums["ranked"] == 0  # without positives there is nothing to recall
    sums["ce"].backward()
    for name in ("generator", "query_reasoner"):
        trained = model.adapters.parameters(name).values()
        assert sum(each.grad.abs().sum() for each in trained) > 0


def test_rates_are_drawn_as_without_refusals(make_model, tmp_path):
    spans = make_model(memory_form="spans", compression_rate=4, rates=(1, 2, 4))
    data = [rank(row) for row in range(8)]
    arguments = ClaraTrainingArguments(
        output_dir=str(tmp_path), report_to="none", candidate_rates=[2, 4], unanswerable=0.5
    )
    parts = ASSEMBLY["end-to-end"].assemble(spans, arguments, [data, None])
    assert parts.collator.rates == (2, 4)
    assert parts.collator(data, NOW, rate=2).rate == 2
    assert {parts.collator(data[:2], Moment(s, 9, s)).rate for s in range(9)} == {2, 4}


def test_a_teacher_says_nothing_about_refusals(tiny_model, monkeypatch):
    asked = []
    monkeypatch.setattr(Distillation, "__init__", lambda self: None)
    monkeypatch.setattr(Distillation, "_add_missing", lambda self, given: asked.extend(given))
    encoder = Encoder(tiny_model.tokenizer, tiny_model.config, None)
    collator = CompressionCollator(encoder, distillation=Distillation())
    batch = collator(drawn(FACTS[:4], 1.0))
    assert asked == []
    assert (batch.taught, batch.counts["taught"]) == (None, 0)


def test_a_run_with_refusals_resumes_as_it_was_begun(settings):
    options = {"data": "ranking", "evaluation": True, "eval_strategy": "steps", "eval_steps": 2}
    whole = run("instruct", settings(**options, unanswerable=0.5))
    for name in ("checkpoint-4", "model"):
        shutil.rmtree(whole.model.parent / name)
    with pytest.raises(SettingsError, match=r"unanswerable is 0.2, the run has 0.5"):
        run("instruct", settings(**options, unanswerable=0.2), resume=True)
    rest = run("instruct", settings(**options, unanswerable=0.5), resume=True)
    assert rest.steps == 4
    assert rest.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("instruct", {"unanswerable": 1.5}, "unanswerable must be a number of at least 0 and at"),
        ("instruct", {"unanswerable": "some"}, "unanswerable must be a number, got 'some'"),
        ("pretrain", {"unanswerable": 0.1}, "unanswerable is for text, instruct and end-to-end"),
        (
            "end-to-end",
            {"unanswerable": 0.1, "negatives": 1, "negatives_every": 1},
            "unanswerable cannot be used with negatives",
        ),
    ],
)
def test_shares_that_are_refused(settings, stage, values, message):
    data = "pretrain" if stage == "pretrain" else "ranking"
    with pytest.raises(SettingsError, match=message):
        run(stage, settings(data=data, **values))
