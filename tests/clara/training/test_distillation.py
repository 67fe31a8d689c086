"""Distillation: what the teacher says, where it is kept, and what a run makes of it."""

import dataclasses
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer

from clara import Clara
from clara.backbone.adapters import GENERATOR
from clara.data.examples import AnswerExample, DocumentQuestions, PretrainingExample
from clara.text.prompts import build_prompt, text_background
from clara.text.tokenizer import SafeTokenizer
from clara.training import distillation
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.distillation import Distillation
from clara.training.settings import SettingsError
from clara.training.teacher import TeacherFolder, check_tokenizers, share_frozen_weights
from clara.training.teacher_cache import TeacherCache

from .conftest import random_model
from .test_objectives import encoder

TOP = 8
EXAMPLES = [
    DocumentQuestions(
        ("The mill was built by Ada.", "A river runs by."),
        ("Who built it?", "What was built?", "What runs by?"),
        ("Ada", "the mill", "a river"),
    ),
    PretrainingExample("paraphrase", ("Repeat it.",), ("It rains.",), ("It rains.",)),
    AnswerExample("Where is it?", ("The bridge is in the north of the town.",), "in the north"),
]


def distilling(folder, model, cache):
    place = TeacherFolder.of(str(folder))
    kept = TeacherCache(cache, {"teacher": place.digest, "distillation_top": TOP})
    return Distillation(place, kept, model)


def dense(teacher, example, question, answer):
    """The teacher's logarithms `[P, V]` at an answer's tokens, from its own prompt alone."""
    background = text_background(example.documents)
    prompt = build_prompt(teacher.tokenizer, teacher.config.prompt, background, question, answer)
    with torch.no_grad(), teacher.generating(GENERATOR) as backbone:
        logits = backbone(input_ids=torch.tensor([prompt.ids])).logits[0].double()
    return logits.log_softmax(1)[prompt.answer_start - 1 : -1]


class TestTaught:
    def test_probabilities_are_the_teachers(self, make_model, teacher_folder, tmp_path):
        """Of each answer as if it were asked alone; a task in place of a question has none."""
        model = make_model()
        taught = distilling(teacher_folder, model, tmp_path / "cache")
        batch = CompressionCollator(encoder(model), distillation=taught)(EXAMPLES)
        teacher = Clara.from_pretrained(teacher_folder, dtype="float32")
        many, _, one = EXAMPLES
        first, second, third = zip(many.questions, many.answers, strict=True)
        # As packed: the first question of each example, then the others.
        asked = [(many, *first), None, (one, one.question, one.answer)]
        asked += [(many, *second), (many, *third)]
        wanted = [None if each is None else dense(teacher, *each) for each in asked]
        assert (
            batch.counts["taught"]
            == len(batch.taught)
            == sum(len(each) for each in wanted if each is not None)
        )
        skipped = batch.counts["tokens"] - batch.counts["taught"]
        count = len(wanted[0])
        places = [*range(count), *range(count + skipped, batch.counts["tokens"])]
        assert batch.taught.rows.tolist() == places
        probabilities = torch.cat([each for each in wanted if each is not None]).exp()
        best, ids = probabilities.topk(TOP)
        assert torch.equal(batch.taught.ids, ids)
        found = batch.taught.log_probs.double().exp()
        torch.testing.assert_close(found[:, :TOP], best, rtol=5e-3, atol=1e-5)
        torch.testing.assert_close(found[:, TOP], 1 - best.sum(1), rtol=5e-3, atol=1e-4)
        torch.testing.assert_close(found.sum(1), torch.ones(len(found)).double(), atol=1e-6, rtol=0)
        assert batch.events == {}

    def test_what_is_on_disk_is_read_without_a_teacher(
        self, make_model, teacher_folder, tmp_path, monkeypatch
    ):
        model = make_model()
        first = CompressionCollator(
            encoder(model), distillation=distilling(teacher_folder, model, tmp_path / "cache")
        )(EXAMPLES)
        monkeypatch.setattr(distillation, "Teacher", None)
        again = distilling(teacher_folder, model, tmp_path / "cache")
        collate = CompressionCollator(encoder(model), distillation=again)
        for name in ("rows", "ids", "log_probs"):
            assert torch.equal(getattr(collate(EXAMPLES).taught, name), getattr(first.taught, name))
        assert collate(EXAMPLES[1:2]).taught is None
        # In another order, with one of the questions alone.
        alone = AnswerExample("What was built?", EXAMPLES[0].documents, "the mill")
        found = collate([EXAMPLES[2], alone]).taught
        (row,) = (first.taught.ids == found.ids[-1]).all(1).nonzero()[0].tolist()
        assert torch.equal(first.taught.log_probs[row], found.log_probs[-1])

    def test_answers_that_the_teacher_cannot_read_have_none(
        self, make_model, teacher_folder, tmp_path, monkeypatch
    ):
        model = make_model()
        taught = distilling(teacher_folder, model, tmp_path / "cache")
        collate = CompressionCollator(encoder(model), distillation=taught)
        long = dataclasses.replace(EXAMPLES[2], documents=("The town is old. " * 900,))
        batch = collate([long, EXAMPLES[2]])
        assert batch.events["answer without a teacher"] == 1
        assert batch.taught.rows.tolist() == list(
            range(batch.counts["tokens"] // 2, batch.counts["tokens"])
        )
        # It is not tried again, nor does a later run load the teacher for it.
        monkeypatch.setattr(distillation, "Teacher", None)
        monkeypatch.setattr(taught, "_teacher", None)
        for each in (taught, distilling(teacher_folder, model, tmp_path / "cache")):
            again = CompressionCollator(encoder(model), distillation=each)([long, EXAMPLES[2]])
            assert again.events["answer without a teacher"] == 1
            assert torch.equal(again.taught.log_probs, batch.taught.log_probs)
        prompt = collate._question_prompt(
            [4], EXAMPLES[2].documents, "Where is it?", "in the north"
        )
        events = Counter()
        other = dataclasses.replace(prompt, ids=[*prompt.ids[:-1], 5])
        assert taught.taught([other], events) is None
        assert events == {"answer without a teacher": 1}

    def test_questions_are_read_together_and_alone_alike(
        self, make_model, teacher_folder, tmp_path, monkeypatch
    ):
        model, found = make_model(), []
        for tokens in (1, 10**6):
            monkeypatch.setattr("clara.training.teacher.BATCH_TOKENS_CPU", tokens)
            taught = distilling(teacher_folder, model, tmp_path / f"{tokens}")
            found.append(CompressionCollator(encoder(model), distillation=taught)(EXAMPLES).taught)
        assert torch.equal(found[0].ids, found[1].ids)
        torch.testing.assert_close(found[0].log_probs, found[1].log_probs, rtol=0, atol=5e-3)


class TestTeacher:
    def test_frozen_weights_are_shared(self, make_model, teacher_folder):
        model = make_model()
        teacher = Clara.from_pretrained(teacher_folder, dtype="float32")
        before = teacher.answer_from_text(["Who?"], [["It is Ada."]], max_new_tokens=4)
        with torch.no_grad():
            model.backbone.lm_head.weight[0, 0] += 1  # not equal
        freed = share_frozen_weights(model.backbone, teacher.backbone)
        ours, theirs = (dict(m.backbone.named_parameters()) for m in (model, teacher))
        shared = {n for n, p in ours.items() if p.data_ptr() == theirs[n].data_ptr()}
        plain = {n for n in ours if ".lora_" not in n}
        assert shared == plain - {"lm_head.weight"}
        assert freed == sum(ours[name].nbytes for name in shared)
        assert teacher.answer_from_text(["Who?"], [["It is Ada."]], max_new_tokens=4) == before
        training = make_model()
        training.backbone.requires_grad_(True)
        assert share_frozen_weights(training.backbone, teacher.backbone) == 0

    def test_another_tokenizer_is_refused(self, tiny_model, tiny_backbone):
        given = AutoTokenizer.from_pretrained(tiny_backbone("llama"))
        check_tokenizers("t", SafeTokenizer(given), tiny_model.tokenizer)
        given.add_tokens(["<more>"])
        with pytest.raises(SettingsError, match="token '<more>' is 600 there and None here"):
            check_tokenizers("t", SafeTokenizer(given), tiny_model.tokenizer)
        given = AutoTokenizer.from_pretrained(tiny_backbone("llama"))
        given.chat_template = "{% for m in messages %}{{ m['content'] }} END {% endfor %}"
        with pytest.raises(SettingsError, match="another chat template than the model: its answ"):
            check_tokenizers("t", SafeTokenizer(given), tiny_model.tokenizer)


class TestObjective:
    def test_the_terms(self, make_model, teacher_folder, tmp_path):
        """The sum over taught tokens, against the definition; other tokens have CE alone."""
        model = make_model()
        taught = distilling(teacher_folder, model, tmp_path / "cache")
        batch = CompressionCollator(encoder(model), distillation=taught)(EXAMPLES)
        objective = CompressionObjective(model, distillation_weight=0.5).eval()
        sums = objective(batch)
        assert objective.terms["kl"].weight == 0.5
        plain = CompressionObjective(model).eval()
        torch.testing.assert_close(sums["ce"], plain(batch)["ce"], rtol=0, atol=0)
        memory = torch.cat(
            batch.documents.in_order(
                model.encode_memory(batch.documents.batch, "compressor").memory
            )
        )
        hidden = model.forward_packed(batch.prompts.batch, memory, GENERATOR)
        logits = model.backbone.lm_head(hidden[batch.prompts.targets - 1]).double()
        own = logits.softmax(1)[batch.taught.rows]
        best = own.gather(1, batch.taught.ids)
        student = torch.cat([best, 1 - best.sum(1, keepdim=True)], 1)
        teacher = batch.taught.log_probs.double()
        wanted = (teacher.exp() * (teacher - student.log())).sum()
        assert sums["kl"].item() == pytest.approx(wanted.item(), rel=1e-4)
        assert wanted > 0
        none = CompressionCollator(encoder(model))(EXAMPLES)
        assert objective(none)["kl"].item() == 0
        assert objective(objective.stand_in())["kl"].item() == 0

    def test_averages_learn_from_a_teacher_too(self, tiny_backbone, teacher_folder, tmp_path):
        model = random_model(tiny_backbone("llama"), memory_form="spans", compression_rate=2)
        taught = distilling(teacher_folder, model, tmp_path / "cache")
        collate = CompressionCollator(encoder(model), distillation=taught)
        objective = CompressionObjective(model, distillation_weight=1.0).eval()
        # The connector of a new model is at zero: memory is the averages in both.
        found = [objective(collate(EXAMPLES, averages_only=only))["kl"] for only in (False, True)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
