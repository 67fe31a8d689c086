"""Runs that learn from a teacher, and what is refused of one."""

import dataclasses
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from clara.training.folder import checkpoints, read_log, steps_of
from clara.training.run import run
from clara.training.settings import RunSettings, SettingsError
from clara.training.teacher import TeacherFolder
from clara.training.teacher_cache import TeacherCache

from ...plugins.warm import kill
from ..random_adapters import draw_adapters
from .conftest import SMALL_RUN, random_model
from .runs import assert_same, command, losses, weights


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
        self, tiny_backbone, data, teacher_run, warm, tmp_path
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
            command(tmp_path, [("instruct", dataclasses.asdict(killed))], warm().python, pause=0.2),
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
            kill(process)
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
