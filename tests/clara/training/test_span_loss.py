"""What memory slots say about the tokens of their own spans."""

from collections import Counter

import pytest
import torch

from clara.backbone.adapters import COMPRESSOR
from clara.model.encoding import inputs_of
from clara.text.packing import pack
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective, drawn_tokens
from clara.training.encoder import Encoder
from clara.training.folder import LOG, describe, read_log
from clara.training.run import run
from clara.training.settings import SettingsError

from .test_controls import questions

RATE = 4


@pytest.fixture
def model(make_model):
    return make_model(memory_form="spans", compression_rate=RATE)


@pytest.fixture
def batch(model):
    encoder = Encoder(model.tokenizer, model.config, None)
    return CompressionCollator(encoder)(questions())


def test_first_tokens_are_drawn_most_often(model):
    """Each token half as often as the one before it in its span, and none of padding."""
    (text,) = model.passages(["one two three four five six seven eight nine ten eleven"])
    inputs = inputs_of(model, [text], RATE)
    (packed,) = pack(inputs, batch_tokens=1024, device=torch.device("cpu"))
    tokens = text.tokens
    seen = [Counter() for _ in range(-(-len(tokens) // RATE))]
    for seed in range(600):
        drawn = drawn_tokens(packed, seed)
        assert torch.equal(drawn, drawn_tokens(packed, seed))
        for slot, token in enumerate(drawn.tolist()):
            seen[slot][token] += 1
    for slot, counts in enumerate(seen):
        span = tokens[slot * RATE : (slot + 1) * RATE]
        wanted = Counter()
        for place, token in enumerate(span):
            wanted[token] += 0.5**place / sum(0.5**i for i in range(len(span)))
        assert counts.keys() == wanted.keys()
        for token, share in wanted.items():
            assert counts[token] / 600 == pytest.approx(share, abs=0.07)


def test_it_is_the_cross_entropy_of_the_drawn_tokens(model, batch):
    objective = CompressionObjective(model, alignment_weight=0.0, span_weight=0.5).eval()
    objective.step_seed = 3
    sums = objective(batch)
    packed = batch.documents.batch
    with torch.no_grad():
        states = model.encode_memory(packed, COMPRESSOR).states[packed.memory_rows]
        logits = model.backbone.get_output_embeddings()(states)
    drawn = drawn_tokens(packed, 3)
    wanted = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
    torch.testing.assert_close(sums["span"], wanted, rtol=1e-4, atol=1e-4)
    assert batch.counts["slots"] == len(drawn)
    without = CompressionObjective(model, alignment_weight=0.0).eval()(batch)
    assert without.keys() == {"ce"}
    torch.testing.assert_close(without["ce"], sums["ce"])


def test_it_trains_a_compressor_whose_connector_is_zero(model, batch):
    """From the answers no gradient reaches it then."""
    objective = CompressionObjective(model, alignment_weight=0.0, span_weight=1.0)
    with torch.no_grad():
        model.connectors.of(COMPRESSOR).up.zero_()
    weights = list(model.adapters.parameters(COMPRESSOR).values())
    sums = objective(batch)
    for term, trains in (("ce", False), ("span", True)):
        found = torch.autograd.grad(sums[term], weights, retain_graph=True, allow_unused=True)
        reached = [each is not None and bool(each.any()) for each in found]
        assert any(reached) if trains else not any(reached)


def test_slots_learn_to_tell_their_tokens(settings_in, tmp_path):
    changes = {"memory_form": "spans", "compression_rate": RATE}
    settings = settings_in(
        tmp_path / "run",
        config=changes,
        evaluation=True,
        evaluate_answers=4,
        eval_strategy="steps",
        eval_steps=30,
        span_weight=1.0,
        max_steps=30,
        learning_rate=3e-2,
    )
    run("pretrain", settings)
    losses = [row["span"] for row in read_log(tmp_path / "run" / LOG) if "span" in row]
    assert losses[-1] < 0.8 * losses[0]
    scores = describe(tmp_path / "run")["scores"]
    assert scores["eval_span"] < losses[0]
    assert scores["eval_added@4"] > 0


def test_learned_rows_stand_for_no_spans(settings_in, tmp_path):
    with pytest.raises(SettingsError, match=r"span_weight is for memory_form: spans.*has learned"):
        run("pretrain", settings_in(tmp_path / "run", span_weight=1.0))
