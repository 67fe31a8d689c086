"""Distillation: what the teacher says, where it is kept, and what a run makes of it."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

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
from clara.training.folder import checkpoints, read_log, steps_of
from clara.training.run import run
from clara.training.settings import RunSettings, SettingsError
from clara.training.teacher import TeacherFolder, check_tokenizers, share_frozen_weights
from clara.training.teacher_cache import TeacherCache

from ..random_adapters import draw_adapters
from .conftest import SMALL_RUN, random_model
from .test_objectives import encoder
from .test_resuming import command
from .test_trainer import assert_same, losses, weights

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


@pytest.fixture(scope="module")
def teacher_folder(tiny_backbone, tmp_path_factory):
    """A model with adapters drawn at random, as a teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "drawn"
    draw_adapters(random_model(tiny_backbone("llama")), seed=7, std=0.2).save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents with two questions each."""
    folder = tmp_path_factory.mktemp("questions")
    towns = ["Ayr", "Bath", "Cork", "Deal"]
    rows = [
        {
            "docs": [f"Number {row} lives in {towns[row % 4]}."],
            "questions": [f"Where does number {row} live?", "Which number?"],
            "answers": [towns[row % 4], str(row)],
        }
        for row in range(8)
    ]
    for name, part in (("train", rows), ("other", rows[1:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def run_settings(backbone, data, folder, *, model=None, config=None, **arguments):
    small = {"compression_rate": 16, "document_length": 64, "lora_rank": 4, "dtype": "float32"}
    return RunSettings(
        model=model,
        backbone=None if model else str(backbone),
        config={**({} if model else small), **(config or {})},
        train_data=str(data / "train.jsonl"),
        eval_data=None,
        train_split="train",
        eval_split="validation",
        arguments={**SMALL_RUN, "output_dir": str(folder), "max_steps": 2, **arguments},
    )


@pytest.fixture(scope="module")
def teacher_run(tiny_backbone, data, tmp_path_factory):
    """Folder of a run of `clara train text`, of two steps."""
    folder = tmp_path_factory.mktemp("text") / "run"
    run("text", run_settings(tiny_backbone("llama"), data, folder))
    return folder


@pytest.fixture(scope="module")
def distilled(tiny_backbone, data, teacher_run, tmp_path_factory):
    """Settings of a run of two steps with that teacher, which is done."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    made = run_settings(tiny_backbone("llama"), data, folder, teacher=str(teacher_run))
    run("instruct", made)
    return made


class TestRun:
    @pytest.mark.slow
    def test_loss_and_divergence_fall(self, tiny_backbone, data, tmp_path):
        backbone = tiny_backbone("llama")
        run("text", run_settings(backbone, data, tmp_path / "text", max_steps=40, save_steps=40))
        made = run_settings(
            tiny_backbone("llama"),
            data,
            tmp_path / "run",
            max_steps=40,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=20,
            save_steps=20,
            teacher=str(tmp_path / "text"),
            curriculum=[{"reconstruction": 0.2}],
        )
        made = dataclasses.replace(made, eval_data=made.train_data)
        assert run("instruct", made).events == {}
        log = read_log(tmp_path / "run" / "log.jsonl")
        kl = [record["kl"] for record in log if "kl" in record]
        loss = [record["loss"] for record in log if "loss" in record]
        evaluated = [record for record in log if "eval_kl" in record]
        assert len(kl) == len(loss) == 4
        assert kl[-1] < 0.6 * kl[0]
        assert loss[-1] < 0.6 * loss[0]
        assert evaluated[1]["eval_kl"] < evaluated[0]["eval_kl"]
        # Two questions of eight documents, each computed once.
        cache = TeacherCache(tmp_path / "run" / "teacher", _made_of(made))
        assert len(cache) == 16

    def test_accumulated_batches_weigh_every_token_the_same(
        self, tiny_backbone, data, teacher_run, tmp_path
    ):
        found = []
        for size, accumulated in ((8, 1), (2, 4)):
            made = run_settings(
                tiny_backbone("llama"),
                data,
                tmp_path / f"{size}",
                config={"lora_dropout": 0.0},
                teacher=str(teacher_run / "model"),
                distillation_weight=2.0,
                teacher_cache=str(tmp_path / "shared"),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated,
                optim="sgd",
                learning_rate=0.1,
                max_steps=1,
            )
            found.append(weights(run("instruct", made).model))
            log = read_log(tmp_path / f"{size}" / "log.jsonl")
            record = next(each for each in log if "kl" in each)
            # All answers are taught.
            assert record["loss"] == pytest.approx(
                record["ce"] + 2 * record["kl"] + 0.1 * record["mse"], rel=1e-3
            )
        assert_same(*found, rtol=1e-4, atol=1e-6)

    def test_a_weight_of_zero_is_no_teacher(self, tiny_backbone, data, teacher_run, tmp_path):
        found = []
        for name, extra in (
            ("without", {}),
            ("zero", {"teacher": str(teacher_run), "distillation_weight": 0}),
        ):
            made = run_settings(tiny_backbone("llama"), data, tmp_path / name, max_steps=1, **extra)
            found.append(weights(run("instruct", made).model))
            assert not (tmp_path / name / "teacher").exists()
            assert not any("kl" in each for each in read_log(tmp_path / name / "log.jsonl"))
        assert_same(*found)

    def test_a_cache_of_other_data_is_refused(self, distilled, data, tmp_path):
        cache = Path(distilled.arguments["output_dir"]) / "teacher"
        arguments = {
            **distilled.arguments,
            "output_dir": str(tmp_path),
            "teacher_cache": str(cache),
        }
        other = dataclasses.replace(
            distilled, train_data=str(data / "other.jsonl"), arguments=arguments
        )
        with pytest.raises(
            SettingsError,
            match=r'teacher: was made for something else: train_data is {"examples": 8, "digest": '
            r'"\w+"} there and {"examples": 7, "digest": "\w+"} here; choose another teacher_cache',
        ):
            run("instruct", other)

    def test_resuming_keeps_the_teacher(
        self, distilled, teacher_run, teacher_folder, tmp_path, capsys
    ):
        folder = tmp_path / "run"
        shutil.copytree(distilled.arguments["output_dir"], folder)

        def resume(**changes):
            arguments = {**distilled.arguments, "output_dir": str(folder), "max_steps": 3}
            arguments = {**arguments, **changes}
            return run("instruct", dataclasses.replace(distilled, arguments=arguments), resume=True)

        for other in (None, str(teacher_folder)):
            with pytest.raises(SettingsError, match=r"teacher is .*, the run has .*digest"):
                resume(teacher=other)
        with pytest.raises(SettingsError, match=r"distillation_weight is 0\.5, the run has 1\.0"):
            resume(distillation_weight=0.5)
        shutil.copytree(teacher_run / "model", tmp_path / "moved")
        assert resume(teacher=str(tmp_path / "moved")).steps == 3
        said = capsys.readouterr().err
        assert f"teacher {teacher_run} -> {tmp_path / 'moved'}" in said
        assert f"kept in {folder / 'teacher'}, where those of" in said

    @pytest.mark.slow
    def test_a_killed_run_goes_on_as_if_it_had_not_been(
        self, tiny_backbone, data, teacher_run, tmp_path
    ):
        """What the teacher said is kept to the batch, also after the last checkpoint."""
        whole, killed = (
            run_settings(
                tiny_backbone("llama"),
                data,
                tmp_path / name,
                per_device_train_batch_size=1,
                max_steps=8,
                teacher=str(teacher_run),
                questions_per_document=1,
            )
            for name in ("whole", "killed")
        )
        run("instruct", whole)
        process = subprocess.Popen(
            command(tmp_path, [("instruct", dataclasses.asdict(killed))], pause=0.2),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        try:
            while len(checkpoints(tmp_path / "killed")) < 2 and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.1)
            assert process.poll() is None, "the run ended before it could be killed"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        last = steps_of(checkpoints(tmp_path / "killed")[-1])
        assert len(TeacherCache(tmp_path / "killed" / "teacher", _made_of(killed))) >= last
        run("instruct", killed, resume=True)
        one, other = (losses(tmp_path / name) for name in ("whole", "killed"))
        assert other == pytest.approx(one, rel=1e-3)  # packed otherwise, and rounded to float16
        assert_same(
            weights(tmp_path / "whole" / "model"),
            weights(tmp_path / "killed" / "model"),
            rtol=1e-2,
            atol=1e-4,
        )


def _made_of(made):
    return json.loads(
        (Path(made.arguments["output_dir"]) / "teacher" / "teacher.json").read_text()
    )["made_of"]


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"distillation_weight": 0.5}, "distillation_weight needs a teacher"),
            ({"distillation_top": 16}, "distillation_top needs a teacher"),
            ({"teacher_cache": "there"}, "teacher_cache needs a teacher"),
            ({"teacher": 3}, "teacher must be a path, got 3"),
            ({"teacher": "./nothing/here"}, "teacher.*nothing/here' does not exist"),
            ({"teacher": "TEACHER", "distillation_top": 0}, "distillation_top must be a whole"),
            ({"teacher": "TEACHER", "distillation_top": 600}, "must be below the vocabulary's 600"),
            (
                {"teacher": "TEACHER", "distillation_weight": -1},
                "distillation_weight must be a num",
            ),
        ],
    )
    def test_settings(self, tiny_backbone, data, teacher_folder, tmp_path, arguments, message):
        arguments = {n: str(teacher_folder) if v == "TEACHER" else v for n, v in arguments.items()}
        with pytest.raises(SettingsError, match=message):
            run(
                "instruct",
                run_settings(tiny_backbone("llama"), data, tmp_path / "run", **arguments),
            )

    def test_other_stages_have_no_teacher(self, tiny_backbone, data, teacher_run, tmp_path):
        made = run_settings(
            tiny_backbone("llama"), data, tmp_path / "run", teacher=str(teacher_run)
        )
        with pytest.raises(SettingsError, match="teacher is for instruct: text learns from none"):
            run("text", made)

    def test_what_is_no_teacher(self, teacher_run, tmp_path):
        unfinished = tmp_path / "unfinished"
        shutil.copytree(teacher_run, unfinished)
        shutil.rmtree(unfinished / "model")
        last = checkpoints(unfinished)[-1]
        with pytest.raises(SettingsError, match=f"no trained model yet; give one of.*{last}"):
            TeacherFolder.of(str(unfinished))
        assert TeacherFolder.of(str(last)).digest == TeacherFolder.of(str(teacher_run)).digest
        record = json.loads((teacher_run / "run.json").read_text())
        (unfinished / last.name / "run.json").write_text(
            json.dumps({**record, "stage": "instruct"})
        )
        with pytest.raises(SettingsError, match="was trained by clara train instruct; give"):
            TeacherFolder.of(str(last))
        (last / "run.json").write_text(
            json.dumps({**record, "arguments": {"train_backbone": True}})
        )
        assert TeacherFolder.of(str(last)).adapter is None
        adapter = unfinished / "checkpoint-2" / "generator" / "adapter_model.safetensors"
        adapter.unlink()
        (last / "run.json").write_text(json.dumps(record))
        with pytest.raises(SettingsError, match=f"cannot read {adapter}: No such file"):
            _ = TeacherFolder.of(str(last)).digest
        with pytest.raises(SettingsError, match=r"teacher: .* is not a CLaRa model"):
            TeacherFolder.of(str(tmp_path))

    def test_the_digest_changes_with_the_weights(self, teacher_folder, tiny_backbone, tmp_path):
        before = TeacherFolder.of(str(teacher_folder)).digest
        other = draw_adapters(random_model(tiny_backbone("llama")), seed=8)
        other.save_pretrained(tmp_path / "other")
        assert TeacherFolder.of(str(tmp_path / "other")).digest != before
