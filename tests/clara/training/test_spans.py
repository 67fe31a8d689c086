"""Training of memory form "spans"."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.training.collators import CompressionCollator, RankingCollator
from clara.training.compression import CompressionObjective
from clara.training.contrastive import ContrastiveObjective
from clara.training.encoder import Encoder
from clara.training.stages import start_query_reasoner
from clara_kernels import select_topk

from .conftest import random_model
from .test_objectives import (
    ANSWERS,
    MEMORY_ROWS,
    RANKED,
    check_training,
    encoder,
    end_to_end,
    gradients,
    learn_by_heart,
    trained_names,
)

MATRIX = "model.connectors.{}.up".format


@pytest.fixture
def make_model(tiny_backbone):
    def make(**settings):
        defaults = {"memory_form": "spans", "compression_rate": 2}
        model = random_model(tiny_backbone("llama"), **{**defaults, **settings})
        with torch.no_grad():
            for connector in model.connectors.values():
                connector.up.normal_(std=0.1)
        return model

    return make


def test_what_trains(make_model, tmp_path):
    objective = CompressionObjective(make_model())
    # Connectors are among what is called after an adapter.
    check_training(objective, (COMPRESSOR, GENERATOR), MEMORY_ROWS)
    assert MATRIX(COMPRESSOR) in trained_names(objective)
    groups = dict(objective.groups())
    assert set(groups) == {COMPRESSOR, GENERATOR, "memory_tokens", "connector"}
    objective, _ = end_to_end(make_model(), tmp_path)
    check_training(objective, (QUERY_REASONER, GENERATOR))
    assert MATRIX(QUERY_REASONER) in trained_names(objective)


def test_the_loss_is_that_of_answering(make_model):
    model = make_model()
    objective = CompressionObjective(model, alignment_weight=0.1).eval()
    batch = CompressionCollator(encoder(model))(ANSWERS)
    found = objective(batch)
    documents = model.compress([text for e in ANSWERS for text in e.documents])
    loss = model.answer_loss(
        [e.question for e in ANSWERS], [documents[:2], documents[2:]], [e.answer for e in ANSWERS]
    )
    torch.testing.assert_close(found["ce"] / batch.counts["tokens"], loss, rtol=1e-4, atol=1e-6)
    assert objective.terms["mse"].weight == 0.1
    packed = batch.documents.batch
    assert len(set(packed.n_memory)) > 1
    distances = []
    for states, count in zip(
        model.encode(packed, COMPRESSOR).split(packed.lengths), packed.n_memory, strict=True
    ):
        distances.append((states[:-count].mean(0) - states[-count:].mean(0)).square().mean())
    torch.testing.assert_close(found["mse"], sum(distances), rtol=1e-4, atol=1e-6)
    sum(found.values()).backward()
    assert gradients(objective).keys() == trained_names(objective)
    assert all(value.any() for value in gradients(objective).values())


def test_gradients_with_and_without_checkpointing(make_model):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        objective = CompressionObjective(make_model()).train()
        if checkpointing:
            objective.model.enable_gradient_checkpointing()
        objective(CompressionCollator(encoder(objective.model))(ANSWERS))["ce"].backward()
        found.append(gradients(objective))
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [2, 8])
def test_one_batch_is_learnt_by_heart(make_model, rate):
    torch.manual_seed(0)
    objective = CompressionObjective(make_model(std=0.02, lora_rank=8, compression_rate=rate))
    batch = CompressionCollator(encoder(objective.model))(ANSWERS)
    assert learn_by_heart(objective, batch) < 0.01


def test_what_was_trained_is_saved(make_model, tmp_path):
    torch.manual_seed(0)
    objective = CompressionObjective(make_model())
    model = objective.model
    before = model.fingerprint
    batch = CompressionCollator(encoder(model))(ANSWERS)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    objective(batch)["ce"].backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    assert model.fingerprint != before
    loaded = Clara.from_pretrained(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    texts = [text for e in ANSWERS for text in e.documents]
    assert torch.equal(loaded.compress(texts).memory, model.compress(texts).memory)


def test_a_query_reasoner_begins_with_the_compressors_connector(make_model):
    model = make_model()
    connectors = [model.connectors.of(name).up for name in (COMPRESSOR, QUERY_REASONER)]
    with torch.no_grad():
        connectors[0].add_(1)
    before = model.fingerprint
    assert start_query_reasoner(model, "compressor")
    assert torch.equal(*connectors)
    assert connectors[0] is not connectors[1]
    assert model.fingerprint == before


def test_end_to_end_loss_and_recall(make_model, tmp_path):
    """Against ranking and answering one question after the other."""
    model = make_model(temperature=0.5)
    objective, batch = end_to_end(model, tmp_path)
    objective.eval()
    sums = objective(batch)
    total = 0.0
    for example in RANKED:
        documents = model.compress(example.documents)
        order = model.rank([example.question], documents).indices[0].tolist()
        prompts = [[documents.memory[at, : documents.counts[at]] for at in order]]
        loss = model.answer_loss([example.question], prompts, [example.answer])
        (prompt,) = model.memory_prompts([example.question], [[1]], [example.answer])
        total += loss.item() * (len(prompt.ids) - prompt.answer_start)
    assert sums["ce"].item() == pytest.approx(total, rel=1e-4)
    sums["ce"].backward()
    found = gradients(objective)
    assert found.keys() == trained_names(objective)
    assert found[MATRIX(QUERY_REASONER)].any()


def test_end_to_end_gradient(make_model, tmp_path):
    """Against cosines of means in plain torch, one question after the other."""
    model = make_model(temperature=0.5)
    objective, batch = end_to_end(model, tmp_path)
    objective(batch)["ce"].backward()
    found = gradients(objective)
    found = {name: grad.clone() for name, grad in found.items()}
    model.zero_grad()
    total = 0.0
    for example, question in zip(RANKED, _questions(model), strict=True):
        documents = model.compress(example.documents)
        means = torch.stack([each.mean(0) for each in documents.padded.documents()])
        scores = cosine_similarity(question.mean(0), means)
        selected, order = select_topk(
            scores[None], documents.memory[None], 2, temperature=0.5, mask="exact"
        )
        used = order[0, : len(example.documents)].tolist()
        memory = [
            selected[0, place, : documents.counts[at]] for place, at in enumerate(used) if at >= 0
        ]
        loss = model.answer_loss([example.question], [memory], [example.answer])
        (prompt,) = model.memory_prompts([example.question], [[1]], [example.answer])
        total = total + loss * (len(prompt.ids) - prompt.answer_start)
    total.backward()
    assert found[MATRIX(QUERY_REASONER)].any()
    for name, grad in gradients(objective).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5)


def _questions(model):
    """Differentiable memory of each question."""
    encode = Encoder(model.tokenizer, model.config, None)
    for example in RANKED:
        packed = encode.pack(encode.passages([example.question], "question", 1))
        yield model.encode_memory(packed.batch, QUERY_REASONER).memory


def test_prompts_budget_for_the_longest_candidates(make_model):
    model = make_model(top_k=2)
    example = RANKED[0]
    collate = RankingCollator(Encoder(model.tokenizer, model.config, None), 2)
    (short,) = collate([example]).prompts.batch.lengths
    tokens = [len(text.ids) for text in model.tokenizer.encode_texts(list(example.documents))]
    counts = sorted(-(-count // 2) for count in tokens)
    exact = short + sum(counts[-2:]) - 2
    for budget, usable in ((exact, True), (exact - 1, False)):
        encode = Encoder(model.tokenizer, model.config, budget)
        found = RankingCollator(encode, 2)([example])
        assert bool(found.counts) is usable
        assert found.events["prompt over the budget"] == (not usable)


def test_contrastive_loss(make_model, tmp_path):
    model = make_model(temperature=0.5)
    end_to_end(model, tmp_path)
    from clara.training.candidates import CandidateMemory

    memory = CandidateMemory(model, tmp_path)
    objective = ContrastiveObjective(model, {2: memory}, temperature=0.5).eval()
    batch = RankingCollator(encoder(model), None, need_positives=True)(RANKED[:2])
    total = 0.0
    for example in RANKED[:2]:
        documents = model.compress(example.documents)
        means = torch.stack([each.mean(0) for each in documents.padded.documents()])
        query = model.encode_queries([example.question])[0]
        scores = cosine_similarity(query, means) / 0.5
        total += -scores.log_softmax(0)[example.positives[0]].item()
    assert objective(batch)["contrastive"].item() == pytest.approx(total, rel=1e-4)
