"""Questions that are answered in every evaluation."""

from functools import partial

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.data.examples import AnswerExample, PretrainingExample, RankingExample
from clara.model.encoding import answer_cross_entropy
from clara.text.packing import PackedPrompts
from clara.text.prompts import build_text_prompt
from clara.training.collators import CompressionCollator, TextCollator
from clara.training.compression import CompressionObjective
from clara.training.controls import Controls
from clara.training.encoder import Encoder
from clara.training.folder import describe, read_log
from clara.training.run import run
from clara.training.settings import (
    RunSettings,
    SettingsError,
    check_early,
    check_evaluation,
)
from clara.training.text import TextObjective

from .conftest import fact

LONGEST = 68  # tokens of a generated answer where an expected one has 64 or more


def questions(count=6):
    return [
        AnswerExample(question, (text,), f"{answer} in the north")
        for text, question, answer in map(fact, range(count))
    ]


def loss_of(objective, collator, examples):
    batch = collator(examples)
    with torch.no_grad():
        return float(objective.eval().sums(batch)["ce"]) / batch.counts["tokens"]


@pytest.fixture
def model(make_model):
    return make_model()


def test_losses_are_those_of_training(model):
    """From memory by the stage's own objective, from text by that of the text stage."""
    examples = questions()
    found = Controls(model, examples, 6, batch_size=4).measure()
    encoder = Encoder(model.tokenizer, model.config, None)
    wanted = loss_of(CompressionObjective(model), CompressionCollator(encoder), examples)
    assert found["loss_memory@16"] == pytest.approx(wanted, rel=1e-4)
    bare = TextObjective(model, train_backbone=True)  # computes without an adapter
    wanted = loss_of(bare, TextCollator(encoder), examples)
    assert found["loss_text"] == pytest.approx(wanted, rel=1e-4)
    asked, answers = [e.question for e in examples], [e.answer for e in examples]
    prompts = model.memory_prompts(asked, [[]] * len(examples), answers)
    packed = PackedPrompts.of(prompts)
    with torch.no_grad():
        loss = answer_cross_entropy(model, packed, torch.empty(0, model.hidden_size))
    wanted = loss.item() / len(packed.targets)
    assert found["loss_none"] == pytest.approx(wanted, rel=1e-4)


def test_another_memory_is_that_of_another_text(model):
    """Two questions about each document: the next question may be about the same."""
    examples = [
        AnswerExample(f"Question {row}: where?", (fact(row // 2)[0],), f"Town {row}")
        for row in range(6)
    ]
    controls = Controls(model, examples, 6)
    texts = [controls._documents[row] for rows in controls._own for row in rows]
    assert sorted(texts) == sorted(fact(row // 2)[0] for row in range(6))
    for own, other in zip(controls._own, controls._other, strict=True):
        assert own != other
    found = controls.measure()
    memory = model.compress(controls._documents)
    loss = model.answer_loss(
        controls._questions, [memory[rows] for rows in controls._other], controls._answers
    )
    assert found["loss_other@16"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["loss_other@16"] != pytest.approx(found["loss_memory@16"], rel=1e-4)


@pytest.mark.parametrize("source", ["@16", "_none", "_text"])
def test_exact_matches_are_counted_where_they_are(model, source):
    """The expected answers are what the model writes from one source."""
    asked = questions(4)
    texts = [e.question for e in asked]
    if source == "_text":
        written = model.answer_from_text(
            texts, [e.documents for e in asked], max_new_tokens=LONGEST
        )
    else:
        memory = model.compress([e.documents[0] for e in asked])
        rows = [[row] if source == "@16" else [] for row in range(4)]
        written = model.generate(texts, [memory[r] for r in rows], max_new_tokens=LONGEST)
    assert all(
        len(model.tokenizer.encode_texts([text])[0].ids) >= 64 and text.strip() for text in written
    )
    examples = [
        AnswerExample(e.question, e.documents, text) for e, text in zip(asked, written, strict=True)
    ]
    found = Controls(model, examples, 4, batch_size=3).measure()
    assert found[f"exact_match{source}"] == 1.0
    assert found["exact_match"] == found["exact_match@16"]
    others = {name for name in found if name.startswith("exact_match")} - {f"exact_match{source}"}
    assert min(found[name] for name in others) < 1.0


def test_recall_is_that_of_cosines(model):
    examples = questions(12)
    found = Controls(model, examples, 12).measure()
    queries = model.encode_queries([e.question for e in examples]).flatten(1).double()
    memory = model.compress([e.documents[0] for e in examples]).memory.flatten(1).double()
    scores = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(memory).T
    ranks = (scores > scores.diagonal()[:, None]).sum(1)
    for k in (1, 5):
        assert found[f"recall@{k}@16"] == pytest.approx(float((ranks < k).double().mean()))
    assert found["recall@5@16"] > 0
    # A question that is its document, in the same space, is nearest to it.
    with torch.no_grad():
        model.adapters.copy(COMPRESSOR, QUERY_REASONER)
    same = [AnswerExample(e.documents[0], e.documents, e.answer) for e in examples]
    assert Controls(model, same, 12).measure()["recall@1@16"] == 1.0


def test_the_model_is_left_as_it_was(make_model):
    model = make_model(lora_dropout=0.5)
    objective = CompressionObjective(model)
    objective.train()
    controls = Controls(model, questions(), 4)
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    wanted = {name: p.requires_grad for name, p in objective.named_parameters()}
    random = torch.get_rng_state()
    one, two = controls.measure(), controls.measure()
    assert one == two  # no dropout
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in objective.modules())
    assert {name: p.requires_grad for name, p in objective.named_parameters()} == wanted
    assert all(torch.equal(p, before[name]) for name, p in objective.named_parameters())
    assert all(p.grad is None for p in objective.parameters())


def test_what_has_changed_in_training_is_seen(make_model):
    """No cache of an earlier evaluation is used."""
    model = make_model()
    controls = Controls(model, questions(), 4)
    first = controls.measure()
    model.train()
    with torch.no_grad():
        for parameter in model.adapters.parameters("generator").values():
            parameter.add_(0.05)
    later = controls.measure()
    fresh = Controls(model, questions(), 4).measure()
    assert later == fresh
    assert later["loss_memory@16"] != first["loss_memory@16"]


def test_a_backbone_that_trains_answers_anew_from_text(make_model):
    model = make_model()
    controls = Controls(model, questions(), 4)
    first = controls.measure()["loss_text"]
    CompressionObjective(model, train_backbone=True)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight.mul_(1.5)
    later = controls.measure()["loss_text"]
    assert later != pytest.approx(first, rel=1e-4)
    assert later == pytest.approx(Controls(model, questions(), 4).measure()["loss_text"])


def test_questions_of_all_kinds_of_examples(model):
    examples = [
        PretrainingExample("qa", ("Who?", "Where?"), ("Ada", "Ayr"), ("Ada is in Ayr.",)),
        PretrainingExample("paraphrase", ("Again.",), ("In Bath is Ben.",), ("Ben is in Bath.",)),
        RankingExample("Who is in Cork?", ("Cid is in Cork.", "Dora is in Deal."), (0,), "Cid"),
        RankingExample("Who is in Deal?", ("Eve is in Ely.",), (), "Dora"),
        AnswerExample("Who is in Ely?", ("Eve is in Ely.", " "), "Eve"),
        AnswerExample("Who is in Frome?", ("Finn is in Frome.", "Gus is in Gort."), "Finn"),
        AnswerExample("Who is in Hull?", ("Hal is in Hull.",), " "),
    ]
    controls = Controls(model, examples, 10)
    asked = dict(zip(controls._questions, controls._texts, strict=True))
    assert asked.pop("Who is in Cork?") == ("Cid is in Cork.",)
    assert asked.pop("Who is in Frome?") == ("Finn is in Frome.", "Gus is in Gort.")
    assert set(asked) in ({"Who?"}, {"Where?"})
    assert len(controls) == 3
    assert 0 <= controls.measure()["recall@5@16"] <= 1


def test_the_same_questions_in_every_run_and_from_all_over_the_data(model):
    examples = questions(24)
    one, two = (Controls(model, examples, 5)._questions for _ in range(2))
    assert one == two
    assert len(set(one)) == 5
    assert {e.question for e in examples[12:]} & set(one)
    assert {e.question for e in examples[:12]} & set(one)


def test_text_is_what_the_compressor_reads(model):
    long = "The river runs past the old mill and under the bridge. " * 12
    examples = [AnswerExample("Who?", (long,), "Ada"), *questions(3)]
    controls = Controls(model, examples, 4)
    (read,) = (texts for texts in controls._texts if texts[0].startswith("The river"))
    assert long.startswith(read[0])
    assert len(model.tokenizer.encode_texts([read[0]])[0].ids) <= 65


def test_prompts_over_the_budget_are_left_out(model):
    examples = questions(4)
    prompts = [
        build_text_prompt(model.tokenizer, model.config.prompt, e.documents, e.question)
        for e in examples
    ]
    budget = max(len(prompt.ids) for prompt in prompts) + LONGEST
    assert len(Controls(model, examples, 4, max_prompt_tokens=budget)) == 4
    longest = sum(len(prompt.ids) + LONGEST == budget for prompt in prompts)
    assert len(Controls(model, examples, 4, max_prompt_tokens=budget - 1)) == 4 - longest


@pytest.mark.parametrize(
    "examples",
    [
        questions(1),
        [AnswerExample(f"Who {row}?", ("It is Ada.",), "Ada") for row in range(4)],
        [PretrainingExample("paraphrase", (), ("In Ayr is Ada.",), ("Ada is in Ayr.",))] * 3,
    ],
)
def test_data_that_has_nothing_to_compare(model, examples):
    with pytest.raises(SettingsError, match="evaluate_answers: eval_data has no two questions"):
        Controls(model, examples, 4)


def test_rates_that_the_model_does_not_train(model):
    with pytest.raises(SettingsError, match=r"evaluation_rates must be of .*, 16; got 4"):
        Controls(model, questions(), 4, [4, 16])
    assert "loss_memory@16" in Controls(model, questions(), 2, [16]).measure()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation_rates": [4]}, "evaluation_rates needs evaluate_answers"),
        ({"metric_for_best_model": "exact_match"}, "exact_match needs evaluate_answers"),
        ({"metric_for_best_model": "eval_exact_match@4"}, "eval_exact_match@4 needs evaluate_"),
    ],
)
def test_settings_that_are_none(values, message):
    with pytest.raises(SettingsError, match=message):
        check_evaluation({"evaluate_answers": 0, **values})


@pytest.fixture
def settings(settings):
    """With five questions in every evaluation."""
    return partial(
        settings,
        evaluation=True,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=2,
        evaluate_answers=5,
    )


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "end-to-end"])
def test_every_evaluation_of_a_run_has_controls(settings, tmp_path, stage):
    data = "pretrain" if stage == "pretrain" else "ranking"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "exact_match"}
    outcome = run(stage, settings(data=data, **best))
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if "eval_loss" in r]
    assert [record["step"] for record in records] == [2, 4]
    shares = ["eval_exact_match", "eval_exact_match@16", "eval_exact_match_other@16"]
    shares += ["eval_exact_match_none", "eval_exact_match_text"]
    shares += ["eval_recall@1@16", "eval_recall@5@16"]
    losses = ["eval_loss_memory@16", "eval_loss_other@16", "eval_loss_none", "eval_loss_text"]
    for record in records:
        assert all(0 <= record[name] <= 1 for name in shares)
        assert all(record[name] > 0 for name in losses)
    assert records[0]["eval_loss_text"] == pytest.approx(records[1]["eval_loss_text"])
    shown = describe(tmp_path / "run")["scores"]
    assert set(shares + losses) <= shown.keys()
    assert outcome.metrics["eval_exact_match"] == records[1]["eval_exact_match"]


def test_the_best_checkpoint_has_the_highest_mean_exact_match(settings, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.4])
    measure = Controls.measure
    monkeypatch.setattr(
        Controls, "measure", lambda self: measure(self) | {"exact_match": next(scores)}
    )
    made = settings(
        eval_steps=1,
        save_steps=1,
        max_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="exact_match",
    )
    outcome = run("instruct", made)
    folders = [outcome.model, *(tmp_path / "run" / f"checkpoint-{step}" for step in (2, 3))]
    kept, best, last = (Clara.from_pretrained(each).adapters.state(GENERATOR) for each in folders)
    assert all(torch.equal(kept[name], value) for name, value in best.items())
    assert not all(torch.equal(kept[name], value) for name, value in last.items())


def test_a_run_goes_on_as_without_controls(settings, tmp_path):
    """Evaluations draw no random numbers and leave dropout on."""
    logs = []
    for name, number in (("with", 5), ("without", 0)):
        made = settings(evaluate_answers=number, output_dir=str(tmp_path / name))
        run("pretrain", made)
        logs.append([r["loss"] for r in read_log(tmp_path / name / "log.jsonl") if "loss" in r])
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_settings_that_do_not_go_together(settings):
    made = settings()
    for stage in ("text", "contrastive"):
        with pytest.raises(SettingsError, match=f"{stage} trains no answers from memory"):
            run(stage, settings(data="ranking"))
    without = {**vars(made), "eval_data": None}
    with pytest.raises(SettingsError, match="evaluate_answers needs eval_data"):
        check_early(RunSettings(**without))
    some = {**made.arguments, "evaluate_answers": 0, "evaluate_examples": 5}
    for check in (check_early, lambda settings: run("pretrain", settings)):
        with pytest.raises(SettingsError, match="evaluate_examples needs eval_data"):
            check(RunSettings(**{**without, "arguments": some}))
    with pytest.raises(SettingsError, match=r"evaluation_rates must be of those .*, 16; got 4"):
        run("pretrain", settings(evaluation_rates=[4]))


def test_what_the_compressor_adds_is_told(make_model):
    """None before the connector is trained, and none where it gives all slots the same."""
    model = make_model(memory_form="spans", compression_rate=2)
    controls = Controls(model, questions(), 6, [2])
    assert controls.measure()["added@2"] == 0.0

    connector = model.connectors.of(COMPRESSOR)
    torch.manual_seed(0)
    with torch.no_grad():
        connector.up.copy_(torch.randn_like(connector.up))
    memory = model.compress(controls._documents, compression_rate=2)
    saved = connector.up.detach().clone()
    with torch.no_grad():
        connector.up.zero_()
        means = model.compress(controls._documents, compression_rate=2)
        connector.up.copy_(saved)
    rows, averages = (
        torch.cat([m[:n] for m, n in zip(each.memory, each.counts)]) for each in (memory, means)
    )
    added = rows - averages
    wanted = (added - added.mean(0)).norm(dim=1).mean() / rows.norm(dim=1).mean()
    assert controls.measure()["added@2"] == pytest.approx(float(wanted), rel=1e-4)
    assert wanted > 0.1
