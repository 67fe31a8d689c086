"""Steps of a run and what is logged of them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.examples import (
    AnswerExample,
    DocumentQuestions,
    ExampleFile,
    pretraining_example,
)
from clara.training.arguments import ClaraTrainingArguments
from clara.training.batches import EmptyBatch
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder, SkippedExampleError
from clara.training.folder import checkpoints, read_log
from clara.training.run import run
from clara.training.settings import SettingsError
from clara.training.stages import asking_of
from clara.training.trainer import ClaraTrainer, TrainingError

from .conftest import SMALL_RUN
from .runs import assert_same, losses, weights


@pytest.fixture(scope="module")
def plain(settings_in, tmp_path_factory):
    """Weights and losses of a run with the default dtype that torch has."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    made = settings_in(folder, config={"dtype": "float32"}, max_steps=2)
    return weights(run("pretrain", made).model), losses(folder)


class TestStep:
    def test_accumulated_batches_weigh_every_token_the_same(self, settings):
        """Batches of 8, of 4 accumulated twice and of 2 accumulated four times."""
        found = []
        for size, accumulated in ((8, 1), (4, 2), (2, 4)):
            made = settings(
                f"run-{size}",
                config={"lora_dropout": 0.0},
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated,
                optim="sgd",
                learning_rate=0.1,
                max_steps=3,
            )
            found.append(
                (weights(run("pretrain", made).model), losses(made.arguments["output_dir"]))
            )
        for other, curve in found[1:]:
            assert_same(found[0][0], other, rtol=1e-4, atol=1e-6)
            assert curve == pytest.approx(found[0][1], rel=1e-5)

    @pytest.mark.parametrize("stage", ["instruct", "text"])
    def test_questions_that_share_a_memory_weigh_as_much_as_those_asked_alone(
        self, settings, tmp_path, stage
    ):
        records = {"together": [], "alone": []}
        for name, town in (("Ada", "Ayr"), ("Ben", "Bath")):
            documents = [f"{name} lives in {town}.", "It rains."]
            asked = {"Who lives there?": name, "Where?": town, "Who?": f"it is {name}"}
            many = {"docs": documents, "questions": list(asked), "answers": list(asked.values())}
            records["together"].append(many)
            records["alone"] += [
                {"docs": documents, "question": question, "answer": answer}
                for question, answer in asked.items()
            ]
        found = []
        for name, rows in records.items():
            file = tmp_path / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            made = settings(
                name,
                config={"lora_dropout": 0.0, "dtype": "float32"},
                per_device_train_batch_size=len(rows),
                optim="sgd",
                learning_rate=0.1,
                max_steps=3,
            )
            made = dataclasses.replace(made, train_data=str(file))
            found.append((weights(run(stage, made).model), losses(made.arguments["output_dir"])))
        assert_same(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
        assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)

    def test_flash_attention_cannot_share_a_memory(self, make_model, tmp_path):
        model = make_model()
        arguments = ClaraTrainingArguments(output_dir=str(tmp_path))
        many = [DocumentQuestions(("d",), ("Who?", "Where?"), ("Ada", "Ayr"))]
        one = [AnswerExample("Who?", ("d",), "Ada")]
        assert asking_of(model, arguments, [many, None]).most == 16
        model.config = model.config.replace(attention="flash_attention_2")
        for data in ([many, None], [one, many]):
            with pytest.raises(SettingsError, match="attention flash_attention_2 cannot ask"):
                asking_of(model, arguments, data)
        assert asking_of(model, arguments, [one, None]).most == 16
        arguments.questions_per_document = 1
        assert asking_of(model, arguments, [many, None]).most == 1

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_default_dtype_of_torch_does_not_matter(self, settings, tmp_path, plain, dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            other = settings("other", config={"dtype": "float32"}, max_steps=2)
            assert_same(plain[0], weights(run("pretrain", other).model))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(before)
        assert losses(tmp_path / "other") == pytest.approx(plain[1], rel=1e-6)

    def test_the_logged_loss_is_the_mean_over_tokens_and_documents(
        self, make_model, training_data, tmp_path
    ):
        model = make_model()
        objective = CompressionObjective(model, alignment_weight=0.5)
        collator = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)[:8]
        batch = collator(examples)
        with torch.no_grad():
            sums = objective.eval()(batch)
        ce = sums["ce"] / batch.counts["tokens"]
        mse = sums["mse"] / batch.counts["documents"]
        arguments = ClaraTrainingArguments(
            **{**SMALL_RUN, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
            output_dir=str(tmp_path),
            num_train_epochs=1,
        )
        arguments.max_steps = 1
        trainer = ClaraTrainer(objective, arguments, collator, examples)
        trainer.train()
        (record,) = [r for r in trainer.state.log_history if "loss" in r]
        assert record["loss"] == pytest.approx(float(ce + 0.5 * mse), rel=1e-4)
        assert record["ce"] == pytest.approx(float(ce), rel=1e-4)
        assert record["mse"] == pytest.approx(float(mse), rel=1e-4)
        read = batch.documents.text_tokens / (len(batch.documents) * 4)
        assert record["effective_compression"] == pytest.approx(read)
        norms = [record[f"grad_norm_{n}"] for n in (COMPRESSOR, GENERATOR, "memory_tokens")]
        assert record["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-4)
        assert record["tokens_per_second"] > 0

    def test_evaluation_weighs_every_token_the_same(self, make_model, training_data, tmp_path):
        model = make_model()
        objective = CompressionObjective(model)
        collator = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)
        results = []
        for size in (24, 5, 1):
            arguments = ClaraTrainingArguments(
                **SMALL_RUN, output_dir=str(tmp_path), per_device_eval_batch_size=size
            )
            trainer = ClaraTrainer(objective, arguments, collator, examples, examples)
            results.append(trainer.evaluate())
        for other in results[1:]:
            for name in ("eval_loss", "eval_ce", "eval_mse"):
                assert other[name] == pytest.approx(results[0][name], rel=1e-5)
        weighed = results[0]["eval_ce"] + 0.1 * results[0]["eval_mse"]
        assert results[0]["eval_loss"] == pytest.approx(weighed)

    def test_an_evaluation_of_some_examples(self, make_model, training_data, tmp_path):
        """It is that of those alone, the same ones each time, from all over the data."""
        model = make_model()
        objective = CompressionObjective(model)
        collator = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)

        def trainer(data, number=None):
            arguments = ClaraTrainingArguments(
                **SMALL_RUN, output_dir=str(tmp_path), evaluate_examples=number
            )
            return ClaraTrainer(objective, arguments, collator, examples, data)

        some = trainer(examples, 5)
        rows = list(some.get_eval_dataloader().dataset)
        assert len(rows) == 5
        assert rows != [examples[row] for row in range(5)]
        loss = some.evaluate()["eval_loss"]
        assert some.evaluate()["eval_loss"] == loss
        assert trainer(rows).evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)
        every = trainer(examples).evaluate()["eval_loss"]
        assert trainer(examples, 10**6).evaluate()["eval_loss"] == every != loss

    @pytest.mark.parametrize("clipped", [1.0, 0.0])
    def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights_are_touched(
        self, make_model, training_data, tmp_path, clipped
    ):
        model = make_model()
        objective = CompressionObjective(model)
        collator = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)
        arguments = ClaraTrainingArguments(
            **SMALL_RUN, output_dir=str(tmp_path), max_grad_norm=clipped
        )
        trainer = ClaraTrainer(objective, arguments, collator, examples)
        sums = objective.sums
        objective.sums = lambda batch: {
            name: value * (math.nan if trainer.state.global_step == 2 else 1)
            for name, value in sums(batch).items()
        }
        with pytest.raises(TrainingError, match="step 3: the loss is not finite"):
            trainer.train()
        assert all(p.isfinite().all() for p in model.parameters())
        assert [c.name for c in checkpoints(tmp_path)] == ["checkpoint-2"]

    def test_a_step_without_any_usable_example_ends_the_run(self, settings):
        made = settings(max_prompt_tokens=10)
        with pytest.raises(TrainingError, match=r"step 1: .*prompt over the budget: 4"):
            run("pretrain", made)

    def test_unusable_examples_are_counted(self, settings):
        made = settings(max_prompt_tokens=110, per_device_train_batch_size=12)
        outcome = run("pretrain", made)
        assert set(outcome.events) == {"prompt over the budget"}
        assert outcome.events["prompt over the budget"] > 0
        record = read_log(Path(made.arguments["output_dir"]) / "log.jsonl")[3]
        assert record["prompt over the budget"] > 0

    def test_unusable_examples_of_an_evaluation_are_counted(self, settings):
        made = settings(
            max_prompt_tokens=110,
            evaluation=True,
            eval_strategy="steps",
            eval_steps=4,
            per_device_train_batch_size=12,
        )
        metrics = run("pretrain", made).metrics
        assert metrics["eval_prompt over the budget"] > 0

    def test_unusable_examples_can_end_the_run(self, settings):
        made = settings(max_prompt_tokens=110, on_unusable="error", max_steps=6)
        with pytest.raises(SkippedExampleError, match="max_prompt_tokens is 110"):
            run("pretrain", made)

    def test_batches_of_which_nothing_is_left_take_part(self, make_model, training_data, tmp_path):
        """An empty batch among accumulated ones changes nothing."""
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)[:4]
        found = []
        for name, empty in (("with", True), ("without", False)):
            model = make_model()
            objective = CompressionObjective(model)
            collate = CompressionCollator(Encoder(model.tokenizer, model.config, None))
            rows = [*examples, *([None] * 4 if empty else [])]
            arguments = ClaraTrainingArguments(
                **{**SMALL_RUN, "max_steps": 1, "gradient_accumulation_steps": 1 + empty},
                output_dir=str(tmp_path / name),
            )
            trainer = ClaraTrainer(
                objective,
                arguments,
                lambda part, collate=collate: EmptyBatch({}) if part[0] is None else collate(part),
                rows,
            )
            trainer._get_train_sampler = lambda *_, rows=rows: torch.utils.data.SequentialSampler(
                rows
            )
            trainer.train()
            found.append({n: p.detach().clone() for n, p in model.named_parameters()})
        assert_same(*found, rtol=1e-5, atol=1e-7)
