"""Losses and gradients of the stages against plain computations and the public reference's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, cross_entropy

from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.data.examples import AnswerExample, PretrainingExample, RankingExample
from clara.training.batches import EmptyBatch
from clara.training.candidates import CandidateMemory
from clara.training.collators import CompressionCollator, RankingCollator, TextCollator
from clara.training.compression import CompressionObjective
from clara.training.contrastive import ContrastiveObjective
from clara.training.encoder import Encoder
from clara.training.end_to_end import EndToEndObjective
from clara.training.selection import SelectionSchedule
from clara.training.text import TextObjective

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
ANSWERS = [
    AnswerExample("Who built it?", ("The mill was built by Ada.", "A river runs by."), "Ada"),
    AnswerExample("Where is it?", ("The bridge is in the north of the town.",), "in the north"),
]
RANKED = [
    RankingExample(
        "Who built it?", ("A river.", "The mill was built by Ada.", "Rain."), (1,), "Ada"
    ),
    RankingExample("Where is it?", ("It is north.", "A road.", "Hay.", "Ice."), (0,), "north"),
    RankingExample("What is it?", ("A barn.",), (), "a barn"),
]


def encoder(model):
    return Encoder(model.tokenizer, model.config, None)


def end_to_end(model, folder, examples=RANKED, *, phases=None, **options):
    memory = CandidateMemory(model, folder)
    memory.add(text for example in examples for text in example.documents)
    schedule = SelectionSchedule(model.config, phases)
    objective = EndToEndObjective(
        model, {memory.rate: memory}, top_k=model.config.top_k, schedule=schedule, **options
    )
    return objective, RankingCollator(encoder(model), model.config.top_k)(examples)


def trained_names(objective):
    return {name for name, p in objective.named_parameters() if p.requires_grad}


def gradients(objective):
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def learn_by_heart(objective, batch):
    """The loss reached on one batch.

    States are normalised and the head is frozen and small: without a larger one, no state gives
    a token a probability near 1.
    """
    with torch.no_grad():
        objective.model.backbone.lm_head.weight.mul_(4)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.99))
    objective.train()
    for _ in range(400):
        optimizer.zero_grad()
        loss = objective(batch)["ce"] / batch.counts["tokens"]
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
    return loss.item()


def check_training(objective, adapters, others=()):
    """Exactly these adapters, and `others` by name, require gradients."""
    names = trained_names(objective)
    for adapter in ADAPTERS:
        every = {n for n, _ in objective.named_parameters() if f".{adapter}." in n}
        assert every
        assert every <= names if adapter in adapters else not every & names, adapter
    rest = {n for n in names if not any(f".{adapter}." in n for adapter in ADAPTERS)}
    assert rest == set(others)


MEMORY_ROWS = [f"model.memory_tokens.{name}" for name in ("memory", "encode", "separator")]


class TestCompression:
    def test_what_trains(self, make_model):
        objective = CompressionObjective(make_model())
        check_training(objective, (COMPRESSOR, GENERATOR), MEMORY_ROWS)
        groups = dict(objective.groups())
        assert set(groups) == {COMPRESSOR, GENERATOR, "memory_tokens"}
        counted = sum(len(group) for group in groups.values())
        assert counted == len(trained_names(objective))

    def test_everything_that_trains_gets_a_gradient(self, make_model):
        objective = CompressionObjective(make_model())
        batch = CompressionCollator(encoder(objective.model))(ANSWERS)
        sum(objective(batch).values()).backward()
        found = gradients(objective)
        assert found.keys() == trained_names(objective)
        assert all(value.isfinite().all() and value.any() for value in found.values())

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_terms(self, make_model, reduction):
        model = make_model()
        objective = CompressionObjective(model, alignment_reduction=reduction).eval()
        batch = CompressionCollator(encoder(model))(ANSWERS)
        sums = objective(batch)
        memory = model.compress([text for e in ANSWERS for text in e.documents]).memory
        loss = model.answer_loss(
            [e.question for e in ANSWERS], [memory[:2], memory[2:]], [e.answer for e in ANSWERS]
        )
        torch.testing.assert_close(sums["ce"] / batch.counts["tokens"], loss, rtol=1e-4, atol=1e-6)
        packed = batch.documents.batch
        hidden = model.encode(packed, COMPRESSOR)
        distances = []
        for states in hidden.split(packed.lengths):
            difference = states[:-4].mean(0) - states[-4:].mean(0)
            square = difference.square()
            distances.append(square.mean() if reduction == "mean" else square.sum())
        torch.testing.assert_close(sums["mse"], sum(distances), rtol=1e-4, atol=1e-6)
        assert objective.terms["mse"].weight == 0.1

    def test_without_alignment_the_last_layer_is_cut_and_the_loss_is_the_same(self, make_model):
        model = make_model()
        batch = CompressionCollator(encoder(model))(ANSWERS)
        with_term = CompressionObjective(model)
        sums = with_term(batch)
        sums["ce"].backward()
        full = {name: grad.clone() for name, grad in gradients(with_term).items()}
        model.zero_grad()
        without = CompressionObjective(model, alignment_weight=0)
        assert list(without.terms) == ["ce"]
        cut = without(batch)
        assert list(cut) == ["ce"]
        torch.testing.assert_close(cut["ce"], sums["ce"], rtol=1e-5, atol=1e-5)
        cut["ce"].backward()
        for name, grad in gradients(without).items():
            torch.testing.assert_close(grad, full[name], rtol=1e-3, atol=1e-5)

    def test_an_empty_batch_has_a_zero_gradient_for_everything(self, make_model):
        objective = CompressionObjective(make_model())
        sums = objective(EmptyBatch({}))
        assert {name: float(value) for name, value in sums.items()} == {"ce": 0, "mse": 0}
        sum(sums.values()).backward()
        assert gradients(objective).keys() == trained_names(objective)
        assert not any(value.any() for value in gradients(objective).values())

    def test_one_batch_is_learnt_by_heart(self, make_model):
        torch.manual_seed(0)
        objective = CompressionObjective(make_model(std=0.02, lora_rank=8))
        examples = [
            PretrainingExample("qa", ("Who?",), ("Ada",), ("The mill was built by Ada.",)),
            PretrainingExample("qa", ("Who?",), ("Ben",), ("The mill was built by Ben.",)),
        ]
        batch = CompressionCollator(encoder(objective.model))(examples)
        loss = learn_by_heart(objective, batch)
        assert loss < 0.01
        memory = objective.model.compress([e.documents[0] for e in examples]).memory
        assert not torch.equal(memory[0], memory[1])


class TestEndToEnd:
    def test_what_trains(self, make_model, tmp_path):
        objective, _ = end_to_end(make_model(), tmp_path / "index")
        check_training(objective, (QUERY_REASONER, GENERATOR))

    def test_the_generator_alone(self, make_model, tmp_path):
        objective, batch = end_to_end(make_model(), tmp_path / "index", train_query_reasoner=False)
        check_training(objective, (GENERATOR,))
        objective(batch)["ce"].backward()
        assert gradients(objective).keys() == trained_names(objective)

    def test_everything_that_trains_gets_a_gradient(self, make_model, tmp_path):
        objective, batch = end_to_end(make_model(temperature=1.0), tmp_path / "index")
        objective(batch)["ce"].backward()
        found = gradients(objective)
        assert found.keys() == trained_names(objective)
        assert all(value.isfinite().all() and value.any() for value in found.values())

    def test_loss_is_that_of_the_selected_documents(self, make_model, tmp_path):
        model = make_model()
        objective, batch = end_to_end(model, tmp_path / "index")
        objective.eval()
        sums = objective(batch)
        questions = [e.question for e in RANKED]
        candidates = [model.compress(list(e.documents)) for e in RANKED]
        ranking = model.rank(questions, candidates)
        chosen = [
            c.memory[[i for i in row if i >= 0]]
            for c, row in zip(candidates, ranking.indices.tolist(), strict=True)
        ]
        assert [len(c) for c in chosen] == [2, 2, 1]
        loss = model.answer_loss(questions, chosen, [e.answer for e in RANKED])
        torch.testing.assert_close(sums["ce"] / batch.counts["tokens"], loss, rtol=1e-4, atol=1e-5)
        ranks = [
            row.tolist().index(e.positives[0]) if e.positives[0] in row else 9
            for e, row in zip(RANKED[:2], ranking.indices[:2])
        ]
        assert sums["ranked"] == 2
        assert sums["recall@1"] == sum(rank < 1 for rank in ranks)

    def test_documents_are_not_encoded_in_a_step(self, make_model, tmp_path, monkeypatch):
        model = make_model()
        objective, batch = end_to_end(model, tmp_path / "index")
        seen = []
        encode = model.encode_memory
        monkeypatch.setattr(
            model,
            "encode_memory",
            lambda b, adapter, **o: seen.append(adapter) or encode(b, adapter, **o),
        )
        objective(batch)
        assert seen == [QUERY_REASONER]

    def test_one_batch_is_learnt_by_heart(self, make_model, tmp_path):
        torch.manual_seed(0)
        objective, batch = end_to_end(
            make_model(std=0.02, lora_rank=8, temperature=0.1, top_k=1), tmp_path / "index"
        )
        loss = learn_by_heart(objective, batch)
        assert loss < 0.01

    def test_negatives_are_the_nearest_of_the_index(self, make_model, tmp_path):
        model = make_model()
        objective, batch = end_to_end(model, tmp_path / "index", negatives=3, negatives_every=2)
        reads = []
        (candidates,) = objective._candidates.values()
        read = candidates.read
        candidates.read = lambda names: reads.append(list(names)) or read(names)
        objective.train()
        for objective.step in (0, 1, 2):
            objective(batch)
        own = [name for names in batch.candidates for name in names]
        assert reads[1] == own
        assert len(reads[0]) == len(own) + 6  # the last question has fewer than top_k
        assert reads[0] == reads[2]
        queries = model.encode_queries([RANKED[0].question])
        near = candidates.search(queries, 8)[0]
        wanted = [n for n in near if n not in batch.candidates[0]][:3]
        assert reads[0][3:6] == wanted
        objective.eval()
        objective.step = 2
        objective(batch)
        assert reads[3] == own

    def test_noise_changes_with_the_step_and_is_off_in_evaluation(self, make_model, tmp_path):
        model = make_model()
        objective, batch = end_to_end(
            model, tmp_path / "index", phases=[{"noise": "gumbel", "temperature": 5.0}]
        )
        objective.train()
        losses = []
        for objective.step_seed in (1, 2, 3, 1):
            losses.append(float(objective(batch)["ce"]))
        assert losses[0] == losses[3]
        assert len(set(losses)) > 1
        objective.eval()
        quiet = {float(objective(batch)["ce"]) for objective.step_seed in (1, 2, 3)}
        assert len(quiet) == 1

    def test_parity_with_the_public_reference(self, reference_model, tmp_path):
        """Loss and gradients through the product's own step, from the index on disk."""
        model = reference_model
        expected = json.loads((REFERENCE / "expected.json").read_text(encoding="utf-8"))
        theirs = load_file(REFERENCE / "expected_gradients.safetensors")
        numbers = load_file(REFERENCE / "expected.safetensors")
        examples = [
            RankingExample(question, tuple(documents), (), answer)
            for question, documents, answer in zip(
                expected["questions"], expected["documents"], expected["answers"], strict=True
            )
        ]
        try:
            objective, batch = end_to_end(
                model, tmp_path / "index", examples, phases=[{"mask": "reference"}]
            )
            loss = objective.eval()(batch)["ce"] / batch.counts["tokens"]
            loss.backward()
            compared = 0
            torch.testing.assert_close(loss.detach()[None], numbers["loss"], rtol=1e-3, atol=0)
            for name, value in theirs.items():
                for called, ours in (
                    ("decoder_adapter", GENERATOR),
                    ("query_reasoner_adapter", QUERY_REASONER),
                ):
                    if called in name:
                        key = name.replace(f".{called}", "")
                        gradient = model.adapters.parameters(ours)[key].grad
                        error = (gradient - value).norm() / value.norm()
                        assert error < 1e-3, f"{name}: relative error {error:.2e}"
                        compared += 1
            assert compared == 8
        finally:
            model.adapters.freeze()
            model.zero_grad()
            model.owns_backbone = False


class TestContrastive:
    @pytest.mark.parametrize("in_batch", [False, True])
    def test_loss(self, make_model, tmp_path, in_batch):
        model = make_model()
        examples = [
            RANKED[0],
            RankingExample("Where?", ("It is north.", "A road.", "Rain."), (0, 1), "north"),
        ]
        memory = CandidateMemory(model, tmp_path / "index")
        memory.add(text for example in examples for text in example.documents)
        objective = ContrastiveObjective(
            model, {memory.rate: memory}, temperature=0.1, in_batch_negatives=in_batch
        ).eval()
        check_training(objective, (QUERY_REASONER,))
        batch = RankingCollator(encoder(model), 2, need_positives=True)(examples)
        sums = objective(batch)
        total = 0.0
        for row, example in enumerate(examples):
            texts = list(example.documents)
            if in_batch:
                texts += [t for t in examples[1 - row].documents if t not in texts]
            query = model.encode_queries([example.question]).flatten(1)
            scores = cosine_similarity(query, model.compress(texts).memory.flatten(1)) / 0.1
            negatives = [i for i in range(len(texts)) if i not in example.positives]
            losses = [
                cross_entropy(scores[[positive, *negatives]][None], torch.tensor([0]))
                for positive in example.positives
            ]
            total += float(sum(losses)) / len(losses)
        assert float(sums["contrastive"].detach()) == pytest.approx(total, rel=1e-4)
        assert sums["ranked"] == 2
        sums["contrastive"].backward()
        assert gradients(objective).keys() == trained_names(objective)

    def test_recall_is_among_a_questions_own_candidates(self, make_model, tmp_path):
        model = make_model()
        recalls = []
        for in_batch in (False, True):
            memory = CandidateMemory(model, tmp_path / "index")
            memory.add(text for example in RANKED for text in example.documents)
            objective = ContrastiveObjective(
                model, {memory.rate: memory}, temperature=0.1, in_batch_negatives=in_batch
            ).eval()
            batch = RankingCollator(encoder(model), 2, need_positives=True)(RANKED)
            sums = objective(batch)
            recalls.append([float(sums[f"recall@{k}"]) for k in (1, 3, 5)])
        assert recalls[0] == recalls[1]

    def test_negatives_of_the_batch_are_read_once(self, make_model, tmp_path, monkeypatch):
        model = make_model()
        shared = [
            RankingExample(question, RANKED[0].documents, (1,), "Ada")
            for question in ("Who built it?", "Who?", "Whose mill is it?")
        ]
        memory = CandidateMemory(model, tmp_path / "index")
        memory.add(RANKED[0].documents)
        asked = []
        read = memory.read
        monkeypatch.setattr(memory, "read", lambda names: asked.extend(names) or read(names))
        objective = ContrastiveObjective(
            model, {memory.rate: memory}, temperature=0.1, in_batch_negatives=True
        ).eval()
        objective(RankingCollator(encoder(model), 2, need_positives=True)(shared))
        assert sorted(asked) == sorted(memory.index.ids())


class TestText:
    def test_generator_or_backbone(self, make_model):
        model = make_model()
        check_training(TextObjective(model), (GENERATOR,))
        objective = TextObjective(model, train_backbone=True)
        names = trained_names(objective)
        assert not any(".lora_" in name or "memory_tokens" in name for name in names)
        assert "model.backbone.model.embed_tokens.weight" in names
        assert set(dict(objective.groups())) == {"backbone"}
        batch = TextCollator(encoder(model))(ANSWERS)
        objective(batch)["ce"].backward()
        assert gradients(objective).keys() == names

    def test_loss_is_the_backbones_own(self, make_model):
        model = make_model()
        objective = TextObjective(model, train_backbone=True).eval()
        batch = TextCollator(encoder(model))(ANSWERS)
        loss = objective(batch)["ce"]
        total, start = 0.0, 0
        for length in batch.prompts.batch.lengths:
            ids = batch.prompts.batch.ids[start : start + length]
            targets = batch.prompts.targets - start
            targets = targets[(targets >= 0) & (targets < length)]
            with model.adapters.active(None), torch.no_grad():
                logits = model.backbone(input_ids=ids[None]).logits[0]
            total += float(cross_entropy(logits[targets - 1], ids[targets], reduction="sum"))
            start += length
        assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


def test_a_quantized_backbone_cannot_train(make_model):
    model = make_model()
    model.config = model.config.replace(quantization="nf4")
    with pytest.raises(ValueError, match="not quantized"):
        TextObjective(model, train_backbone=True)
