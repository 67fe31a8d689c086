"""Rates and averages of a curriculum in memory form "spans", and controls at several rates."""

import pytest
import torch
from safetensors.torch import load_file

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.examples import AnswerExample
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.controls import Controls
from clara.training.curriculum import Curriculum, CurriculumError
from clara.training.encoder import Encoder
from clara.training.folder import read_log
from clara.training.moments import Moment
from clara.training.reconstruction import CurriculumCollator
from clara.training.run import run
from clara.training.settings import SettingsError

from .conftest import fact, random_model

EXAMPLES = [
    AnswerExample(question, (text,), answer) for text, question, answer in map(fact, range(6))
]


@pytest.fixture
def model(tiny_backbone):
    """With connectors that are not zero."""
    made = random_model(
        tiny_backbone("llama"), memory_form="spans", compression_rate=4, rates=(1, 2, 4, 8)
    )
    with torch.no_grad():
        for connector in made.connectors.values():
            connector.up.normal_(std=0.1)
    return made


@pytest.fixture
def collated(model):
    """A function from phases and a moment to the batch of `EXAMPLES`."""

    def go(phases, moment):
        encoder = Encoder(model.tokenizer, model.config, None)
        curriculum = Curriculum(model.config, phases)
        collate = CompressionCollator(encoder)
        return CurriculumCollator(collate, curriculum, model.tokenizer, 64)(EXAMPLES, moment)

    return go


def test_documents_have_the_memory_of_the_drawn_rate(model, collated):
    tokens = [len(e.ids) for e in model.tokenizer.encode_texts([e.documents[0] for e in EXAMPLES])]
    seen = set()
    for seed in range(12):
        rate = Curriculum(model.config).at(Moment(0, 10, seed)).rate
        seen.add(rate)
        batch = collated(None, Moment(0, 10, seed))
        packed = batch.documents.batch
        counts = dict(zip(packed.rows, packed.n_memory, strict=True))
        assert [counts[row] for row in range(6)] == [-(-n // rate) for n in tokens]
    assert len(seen) > 1
    assert seen <= {1, 2, 4, 8}


def test_averages_are_the_memory_of_a_connector_at_zero(model, collated):
    phases = [{"averages_only": True, "rates": [2]}]
    batch = collated(phases, Moment(0, 1, 0))
    objective = CompressionObjective(model, alignment_weight=0.0).eval()
    found = objective(batch)["ce"] / batch.counts["tokens"]
    with_compressor = objective(collated([{"rates": [2]}], Moment(0, 1, 0)))["ce"]
    assert found.item() != pytest.approx(with_compressor.item() / batch.counts["tokens"], rel=1e-3)
    with torch.no_grad():
        model.connectors.of(COMPRESSOR).up.zero_()
    memory = model.compress([e.documents[0] for e in EXAMPLES], compression_rate=2)
    wanted = model.answer_loss(
        [e.question for e in EXAMPLES],
        [memory[[row]] for row in range(6)],
        [e.answer for e in EXAMPLES],
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_averages_train_the_generator_and_make_no_pass_of_the_compressor(
    model, collated, monkeypatch
):
    batch = collated([{"averages_only": True}], Moment(0, 1, 0))
    objective = CompressionObjective(model, alignment_weight=0.1)
    monkeypatch.setattr(model, "encode_memory", lambda *_, **__: pytest.fail("was compressed"))
    sums = objective(batch)
    assert sums["mse"].item() == 0
    sums["ce"].backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert any(GENERATOR in name for name in trained)
    assert not any(COMPRESSOR in name for name in trained)
    assert batch.tokens_read == sum(batch.prompts.batch.lengths)


def test_a_rate_that_the_model_does_not_train(model):
    with pytest.raises(CurriculumError, match="that the model trains, 1, 2, 4, 8; got 3"):
        Curriculum(model.config, [{"rates": [2, 3]}])
    with pytest.raises(SettingsError, match="that the model trains, 1, 2, 4, 8; got 16"):
        Controls(model, EXAMPLES, 4, [4, 16])


def test_controls_at_several_rates(model):
    found = Controls(model, EXAMPLES, 6, [2, 8], batch_size=4).measure()
    questions = [e.question for e in EXAMPLES]
    for rate in (2, 8):
        memory = model.compress([e.documents[0] for e in EXAMPLES], compression_rate=rate)
        rows = [memory[[row]] for row in range(6)]
        loss = model.answer_loss(questions, rows, [e.answer for e in EXAMPLES])
        assert found[f"loss_memory@{rate}"] == pytest.approx(loss.item(), rel=1e-4)
        best = model.rank(questions, memory, 5).indices
        hits = [row in best[row, :1].tolist() for row in range(6)]
        assert found[f"recall@1@{rate}"] == pytest.approx(sum(hits) / 6)
    assert found["loss_memory@2"] != pytest.approx(found["loss_memory@8"], rel=1e-4)
    assert found["exact_match"] == (found["exact_match@2"] + found["exact_match@8"]) / 2


def test_a_run_from_averages_to_the_compressor(settings, tmp_path):
    """While memory is averages, neither the compressor nor its connector moves."""
    curriculum = [
        {"until": 3, "averages_only": True, "rates": [1, 2], "reconstruction": 1.0},
        {"rates": {2: 1, 4: 3}, "reconstruction": [0.5, 0.0]},
    ]
    made = settings(
        config={"memory_form": "spans", "compression_rate": 4, "rates": [1, 2, 4]},
        evaluation=True,
        max_steps=6,
        learning_rates={"connector": 1e-3},
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        evaluate_answers=4,
        evaluation_rates=[2, 4],
        metric_for_best_model="exact_match",
        load_best_model_at_end=True,
        curriculum=curriculum,
    )
    run("pretrain", made)
    folder = tmp_path / "run"
    files = {
        step: {
            f"{file.relative_to(folder / f'checkpoint-{step}')}:{name}": value
            for file in (folder / f"checkpoint-{step}").rglob("*.safetensors")
            if "optimizer" not in file.name and "random" not in file.name
            for name, value in load_file(file).items()
        }
        for step in (3, 6)
    }
    connectors = [name for name in files[3] if name.endswith("up")]
    assert connectors
    assert not any(files[3][name].any() for name in connectors)
    assert any(files[6][name].any() for name in connectors)
    moved = {name.split("/")[0] for name in files[3] if not files[3][name].equal(files[6][name])}
    assert {"compressor", "generator"} <= moved
    compressor = [name for name in files[3] if name.startswith("compressor/") and "lora_B" in name]
    assert compressor
    assert not any(files[3][name].any() for name in compressor)
    records = read_log(folder / "log.jsonl")
    scores = [r for r in records if "eval_exact_match@2" in r]
    assert [r["step"] for r in scores] == [3, 6]
    assert all(r["eval_loss_memory@4"] > 0 for r in scores)
    assert "grad_norm_connector" not in next(r for r in records if r["step"] == 1)
    assert "grad_norm_connector" in [r for r in records if "loss" in r][-1]
