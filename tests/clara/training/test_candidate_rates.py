"""Candidates whose memory has several compression rates, in end-to-end and contrastive training."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from clara.data.examples import ExampleFile, ranking_example
from clara.training.arguments import ClaraTrainingArguments
from clara.training.batches import candidate_id
from clara.training.candidates import CandidateMemory, index_folders
from clara.training.collators import RankingCollator, RatesCollator
from clara.training.encoder import Encoder
from clara.training.folder import checkpoints, describe, read_log
from clara.training.moments import Moment
from clara.training.run import run
from clara.training.settings import SettingsError, check_early, check_rates
from clara.training.stages import ASSEMBLY
from clara.training.trainer import ClaraTrainer

from .conftest import random_model, ranking_rows

RATES = [2, 8]
SPANS = {"memory_form": "spans", "compression_rate": 4, "rates": (1, 2, 4, 8)}
TOTAL = {"end-to-end": "tokens", "contrastive": "questions"}


@pytest.fixture
def make_model(tiny_backbone):
    """With connectors that are not zero; the same each time."""

    def make(**settings):
        torch.manual_seed(0)
        made = random_model(tiny_backbone("llama"), **{**SPANS, "temperature": 0.5, **settings})
        with torch.no_grad():
            for connector in made.connectors.values():
                connector.up.normal_(std=0.1)
        return made

    return make


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "ranking.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in ranking_rows(7)), encoding="utf-8")
    return made


@pytest.fixture
def data(file):
    return ExampleFile(file, ranking_example)


@pytest.fixture
def assembled(make_model, data, tmp_path):
    """A function that prepares a stage as a run does; gives model, arguments and parts."""

    def go(name="run", stage="end-to-end", config=None, **arguments):
        model = make_model(**(config or {}))
        made = ClaraTrainingArguments(
            output_dir=str(tmp_path / name), report_to="none", disable_tqdm=True, **arguments
        )
        return model, made, ASSEMBLY[stage].assemble(model, made, [data, None])

    return go


def texts_of(data):
    return list(dict.fromkeys(text for example in data for text in example.documents))


def test_every_rate_has_an_index_of_what_compress_returns(assembled, data, tmp_path):
    model, _, parts = assembled(candidate_rates=RATES)
    folder = tmp_path / "run" / "candidates"
    assert sorted(path.name for path in folder.iterdir()) == ["rate-2", "rate-8"]
    texts = texts_of(data)
    for rate in RATES:
        wanted = model.compress(texts, compression_rate=rate).padded.documents()
        index = parts.objective._candidates[rate]
        assert index.index.path == str(folder / f"rate-{rate}")
        found = index.read([candidate_id(text) for text in texts])
        assert found.texts == texts
        torch.testing.assert_close(found.padded.documents(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["end-to-end", "contrastive"])
def test_a_batch_is_as_in_a_run_of_its_rate_alone(assembled, data, stage):
    _, _, both = assembled("both", stage, candidate_rates=RATES)
    losses = []
    for rate in RATES:
        _, _, one = assembled(f"one-{rate}", stage, {"compression_rate": rate})
        mine = both.objective.eval()(both.collator(list(data), Moment(0, 1, 0), rate=rate))
        alone = one.objective.eval()(one.collator(list(data)))
        assert mine.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5)
        losses.append(alone[next(iter(one.objective.terms))].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_negatives_have_the_rate_of_their_batch(assembled, data):
    _, _, parts = assembled(candidate_rates=RATES, negatives=2, negatives_every=1)
    objective = parts.objective.train()
    asked = []
    for rate, memory in objective._candidates.items():
        search, read = memory.search, memory.read
        memory.search = lambda *a, rate=rate, search=search: asked.append(rate) or search(*a)
        memory.read = lambda names, rate=rate, read=read: asked.append(rate) or read(names)
    for rate in RATES:
        objective(parts.collator(list(data), Moment(0, 1, 0), rate=rate))
    assert asked == [2, 2, 8, 8]


def test_the_moment_draws_the_rate(assembled, data):
    _, _, parts = assembled(candidate_rates=[8, 2])
    moments = [Moment(step, 20, step) for step in range(20)]
    drawn = [parts.collator(list(data)[:1], moment).rate for moment in moments]
    assert set(drawn) == {2, 8}
    assert drawn == [parts.collator(list(data)[:1], moment).rate for moment in moments]


def test_budgets_are_those_of_the_batchs_rate(make_model, data):
    """A prompt that is one token too long at rate 2 fits at rate 8."""
    model = make_model()
    example = data[0]
    (short,) = RankingCollator(_encoder(model, None), 2)([example]).prompts.batch.lengths
    tokens = [len(each.ids) for each in model.tokenizer.encode_texts(list(example.documents))]
    longest = short + sum(sorted(-(-count // 2) for count in tokens)[-2:]) - 2
    for budget, fits in ((longest, {2: True, 8: True}), (longest - 1, {2: False, 8: True})):
        by_rate = {r: RankingCollator(_encoder(model, budget), 2, rate=r) for r in RATES}
        collate = RatesCollator(by_rate)
        for rate in RATES:
            batch = collate([example], Moment(0, 1, 0), rate=rate)
            assert bool(batch.counts) is fits[rate]
            assert batch.events["prompt over the budget"] == (not fits[rate])


def _encoder(model, budget):
    return Encoder(model.tokenizer, model.config, budget)


@pytest.mark.parametrize("stage", ["end-to-end", "contrastive"])
def test_an_evaluation_goes_through_every_rate(assembled, data, stage):
    _, arguments, parts = assembled(
        stage=stage, candidate_rates=RATES, per_device_eval_batch_size=3
    )
    trainer = ClaraTrainer(parts.objective, arguments, parts.collator, data, data)
    found, again = trainer.evaluate(), trainer.evaluate()
    assert [again[f"eval_loss@{rate}"] for rate in RATES] == [
        found[f"eval_loss@{rate}"] for rate in RATES
    ]
    objective, (term,) = parts.objective.eval(), parts.objective.terms
    sums, counts, recalls = [], [], []
    for rate in RATES:
        batch = parts.collator(list(data), Moment(0, 1, 0), rate=rate)
        with torch.no_grad():
            figures = objective(batch)
        sums.append(float(figures[term]))
        counts.append(batch.counts[TOTAL[stage]])
        recalls.append(float(figures["recall@1"]) / 7)
        assert found[f"eval_loss@{rate}"] == pytest.approx(sums[-1] / counts[-1], rel=1e-4)
        assert found[f"eval_{term}@{rate}"] == found[f"eval_loss@{rate}"]
        assert found[f"eval_recall_candidates@1@{rate}"] == pytest.approx(recalls[-1])
    assert found["eval_loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert found["eval_recall@1"] == pytest.approx(sum(recalls) / 2)
    assert sums[0] != pytest.approx(sums[1], rel=1e-4)


@pytest.fixture
def spans_run(settings, file):
    """A function that makes settings of a run with candidates of two rates."""

    def make(name="run", **arguments):
        made = settings(name, config=SPANS, **{"candidate_rates": RATES, **arguments})
        return replace(made, train_data=str(file), eval_data=str(file))

    return make


def test_a_resumed_run_draws_the_same_rates(spans_run, tmp_path):
    """With another number of processes that load data, too."""
    options = {"per_device_train_batch_size": 2}
    run("end-to-end", spans_run("whole", **options))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "model")
    first, last = checkpoints(tmp_path / "parts")
    shutil.rmtree(last)
    assert first.name == "checkpoint-2"
    with pytest.raises(SettingsError, match=r"candidate_rates is \[8\], the run has \[2, 8\]"):
        run("end-to-end", spans_run("parts", candidate_rates=[8], **options), resume=True)
    run("end-to-end", spans_run("parts", dataloader_num_workers=1, **options), resume=True)
    whole, parts = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts"))
    whole, parts = ([r for r in log if "loss" in r] for log in (whole, parts))
    assert [r["step"] for r in parts] == [1, 2, 3, 4]
    assert {2, 8} == {min(RATES, key=lambda r: abs(r - x["effective_compression"])) for x in whole}
    for name in ("loss", "recall@1", "effective_compression"):
        assert [r[name] for r in parts] == pytest.approx([r[name] for r in whole], rel=1e-5)


def test_questions_are_answered_at_the_rates_of_the_candidates(spans_run, tmp_path):
    run(
        "end-to-end",
        spans_run(
            max_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            evaluate_answers=3,
            per_device_eval_batch_size=24,
        ),
    )
    scores = describe(tmp_path / "run")["scores"]
    for rate in RATES:
        names = (f"eval_exact_match@{rate}", f"eval_recall@1@{rate}", f"eval_loss@{rate}")
        assert {*names, f"eval_recall_candidates@1@{rate}"} <= scores.keys()


def test_the_order_of_rates_says_nothing(tmp_path):
    made = ClaraTrainingArguments(output_dir=str(tmp_path), candidate_rates=[16, 4])
    assert made.candidate_rates == [4, 16]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (4, r"must be a list .* such as \[4, 16\], got 4"),
        ([], "must be a list"),
        ([4, 4], "must be a list of different"),
        ([0], r"must be .* whole numbers of at least 1, .*got \[0\]"),
        ([True], r"must be .* got \[True\]"),
    ],
)
@pytest.mark.parametrize("name", ["candidate_rates", "evaluation_rates"])
def test_lists_that_are_none(name, rates, message):
    with pytest.raises(SettingsError, match=f"^{name} {message}"):
        check_rates({name: rates})


def test_what_is_refused_before_a_model_is_loaded(settings, spans_run, monkeypatch):
    monkeypatch.setattr("clara.training.run._model", lambda *_: pytest.fail("was loaded"))
    untrained = spans_run(candidate_rates=[2, 16])
    learned = settings(data="ranking", candidate_rates=[16])
    trained = "candidate_rates must be of those that the model trains, 1, 2, 4, 8; got 16"
    one_rate = "candidate_rates needs memory_form: spans; memory of this model has one rate, 16"
    for made, message in ((untrained, trained), (learned, one_rate)):
        with pytest.raises(SettingsError, match=f"^{message}$"):
            check_early(made)
        for stage in ("end-to-end", "contrastive"):
            with pytest.raises(SettingsError, match=f"^{message}$"):
                run(stage, made)
    for stage in ("pretrain", "instruct", "text"):
        with pytest.raises(SettingsError, match=f"contrastive: {stage} has no candidates"):
            run(stage, spans_run())


class TestFolders:
    def test_where_indexes_are(self, tmp_path):
        root = tmp_path / "candidates"
        assert index_folders(root, [4]) == {4: root}
        several = {4: root / "rate-4", 16: root / "rate-16"}
        assert index_folders(root, [4, 16]) == several
        root.mkdir()
        (root / ".rate-4.tmp").mkdir()  # of a killed process
        assert index_folders(root, [4, 16]) == several
        (root / "rate-4").mkdir()
        assert index_folders(root, [4, 16]) == several
        assert index_folders(root, [16]) == {16: root / "rate-16"}

    def test_an_index_of_one_rate_is_not_one_of_several(self, make_model, tmp_path):
        model, root = make_model(), tmp_path / "index"
        CandidateMemory(model, root).add(["A mill."], show_progress_bar=False)
        assert index_folders(root, [4]) == {4: root}
        message = f"{root}: holds no indexes of candidates named rate-N, as candidate_rates 2, 8"
        with pytest.raises(ValueError, match=re.escape(message)):
            index_folders(root, [2, 8])
        with pytest.raises(ValueError, match=r"with compression_rate 4, this run has 8; choose"):
            CandidateMemory(model, root, rate=8)
