"""Steps, logs and checkpoints of a run."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara import Clara
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
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
from clara.training.stages import asking_of, start_query_reasoner
from clara.training.trainer import ClaraTrainer, TrainingError

from .conftest import SMALL_RUN, ranking_rows


def weights(folder):
    """All that a model folder holds, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": value
        for file in sorted(Path(folder).rglob("*.safetensors"))
        if "optimizer" not in file.name and "random" not in file.name
        for name, value in load_file(file).items()
    }


def assert_same(one, other, *, rtol=0.0, atol=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=name)


def losses(folder):
    return [r["loss"] for r in read_log(Path(folder) / "log.jsonl") if "loss" in r]


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
    def test_the_default_dtype_of_torch_does_not_matter(self, settings, dtype):
        made = settings("plain", config={"dtype": "float32"}, max_steps=2)
        expected = weights(run("pretrain", made).model)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            other = settings("other", config={"dtype": "float32"}, max_steps=2)
            assert_same(expected, weights(run("pretrain", other).model))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(before)
        curves = [losses(each.arguments["output_dir"]) for each in (made, other)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-6)

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


class TestWhatIsSaved:
    @pytest.mark.parametrize("stage", ["pretrain", "instruct", "end-to-end", "contrastive", "text"])
    def test_what_trains_changes_and_nothing_else(self, settings, make_model, tmp_path, stage):
        """By name, before and after saving and loading."""
        make_model().save_pretrained(tmp_path / "start")
        data = "pretrain" if stage == "pretrain" else "ranking"
        made = settings(data=data, model=tmp_path / "start", config={"temperature": 1.0})
        outcome = run(stage, made)
        before, after = weights(tmp_path / "start"), weights(outcome.model)
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        adapters = {
            "pretrain": {COMPRESSOR, GENERATOR},
            "instruct": {COMPRESSOR, GENERATOR},
            "end-to-end": {QUERY_REASONER, GENERATOR},
            "contrastive": {QUERY_REASONER},
            "text": {GENERATOR},
        }[stage]
        wanted = {name for name in before if name.split("/")[0] in adapters}
        if COMPRESSOR in adapters:
            wanted |= {name for name in before if name.startswith("memory_tokens")}
        assert changed == wanted
        loaded = Clara.from_pretrained(outcome.model, dtype="float32")
        loaded.save_pretrained(tmp_path / "again")
        assert_same(after, weights(tmp_path / "again"))

    def test_a_stage_starts_from_the_weights_as_they_were_saved(self, settings):
        """The backbone's bfloat16 does not round the adapters between stages."""
        first = run("pretrain", settings("first", config={"dtype": "bfloat16"}))
        saved = weights(first.model)
        assert any(not torch.equal(v, v.bfloat16().float()) for v in saved.values())
        made = settings("second", model=first.model, learning_rate=0.0, max_steps=1)
        assert_same(saved, weights(run("pretrain", made).model))

    def test_a_second_stage_trains_after_loading_too(self, settings):
        first = run("pretrain", settings("first"))
        second = run("instruct", settings("second", data="ranking", model=first.model))
        before, after = weights(first.model), weights(second.model)
        changed = {
            n.split("/")[0].split(":")[0] for n in before if not torch.equal(before[n], after[n])
        }
        assert changed == {COMPRESSOR, GENERATOR, "memory_tokens.safetensors"}

    def test_no_pickle_anywhere(self, settings, tmp_path):
        run("pretrain", settings())
        kinds = {file.suffix for file in (tmp_path / "run").rglob("*") if file.is_file()}
        assert kinds <= {".safetensors", ".json", ".jsonl", ".md", ".jinja", ".png"}

    def test_a_checkpoint_is_a_model(self, settings, tmp_path):
        outcome = run("pretrain", settings())
        last = checkpoints(tmp_path / "run")[-1]
        assert last.name == "checkpoint-4"
        models = [Clara.from_pretrained(folder) for folder in (last, outcome.model)]
        memories = [model.compress(["The mill was built by Ada."]).memory for model in models]
        assert torch.equal(*memories)

    def test_old_checkpoints_go_but_the_best_stays(self, settings, tmp_path):
        made = settings(
            evaluation=True,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            max_steps=6,
            save_total_limit=2,
            load_best_model_at_end=True,
            learning_rate=0.5,  # so high that a later step is not the best
        )
        outcome = run("pretrain", made)
        records = read_log(tmp_path / "run" / "log.jsonl")
        scores = {r["step"]: r["eval_loss"] for r in records if "eval_loss" in r}
        best = min(scores, key=scores.__getitem__)
        names = {c.name for c in checkpoints(tmp_path / "run")}
        assert names == {f"checkpoint-{step}" for step in (best, 5, 6)}
        assert_same(weights(tmp_path / "run" / f"checkpoint-{best}"), weights(outcome.model))

    def test_early_stopping(self, settings, tmp_path):
        made = settings(
            evaluation=True,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            max_steps=30,
            load_best_model_at_end=True,
            patience=2,
            metric_for_best_model="loss",
            greater_is_better=True,  # so that no step after the first is better
        )
        outcome = run("pretrain", made)
        assert outcome.steps == 3
        # It is over, and stays so.
        assert run("pretrain", made, resume=True).steps == 3
        more = dataclasses.replace(made, arguments={**made.arguments, "patience": 3})
        assert run("pretrain", more, resume=True).steps == 4

    def test_early_stopping_counts_on_after_a_kill(self, settings, tmp_path):
        made = settings(
            evaluation=True,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            max_steps=30,
            load_best_model_at_end=True,
            patience=4,
            metric_for_best_model="loss",
            greater_is_better=True,
        )
        short = dataclasses.replace(made, arguments={**made.arguments, "max_steps": 3})
        assert run("pretrain", short).steps == 3
        assert run("pretrain", made, resume=True).steps == 5

    def test_a_finished_run_that_is_resumed_does_no_more_steps(self, settings, tmp_path):
        """In the middle of an epoch; also where the kill came before the model was written."""
        made = settings(max_steps=3, save_steps=3, lr_scheduler_type="constant")
        outcome = run("pretrain", made)
        before = weights(outcome.model)
        shutil.rmtree(outcome.model)
        again = run("pretrain", made, resume=True)
        assert again.steps == 3
        assert_same(before, weights(again.model))
        assert [c.name for c in checkpoints(tmp_path / "run")] == ["checkpoint-3"]

    def test_a_run_killed_while_it_replaced_its_only_checkpoint_goes_on(self, settings, tmp_path):
        made = settings(max_steps=3, save_steps=3)
        before = weights(run("pretrain", made).model)
        folder = tmp_path / "run"
        for name in ("checkpoint-3", "model"):  # between the two renames of each
            (folder / name).rename(folder / f".replaced-{name}")
            (folder / f".unfinished-{name}").mkdir()
        with pytest.raises(SettingsError, match="holds a run already"):
            run("pretrain", made)
        again = run("pretrain", made, resume=True)
        assert again.steps == 3
        assert_same(before, weights(again.model))
        assert [c.name for c in checkpoints(folder)] == ["checkpoint-3"]
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    def test_a_run_is_not_overwritten(self, settings, tmp_path):
        run("pretrain", settings())
        before = weights(tmp_path / "run" / "model")
        with pytest.raises(SettingsError, match="holds a run already"):
            run("pretrain", settings())
        assert_same(before, weights(tmp_path / "run" / "model"))


class TestStartOfTheQueryReasoner:
    @pytest.mark.parametrize(
        ("source", "trained", "copied"),
        [
            (None, False, True),
            (None, True, False),
            ("compressor", True, True),
            ("saved", False, False),
        ],
    )
    def test_where_it_starts(self, make_model, source, trained, copied):
        model = make_model()
        if not trained:
            for name, value in model.adapters.parameters(QUERY_REASONER).items():
                if ".lora_B." in name:
                    value.data.zero_()
        before = {n: v.clone() for n, v in model.adapters.state(QUERY_REASONER).items()}
        assert start_query_reasoner(model, source) is copied
        wanted = model.adapters.state(COMPRESSOR) if copied else before
        assert_same(dict(model.adapters.state(QUERY_REASONER)), dict(wanted))

    def test_end_to_end_starts_from_the_compressor(self, settings):
        first = run("pretrain", settings("first"))
        made = settings("second", data="ranking", model=first.model, learning_rate=0.0)
        second = weights(run("end-to-end", made).model)
        for name, value in weights(first.model).items():
            if name.startswith(COMPRESSOR):
                assert torch.equal(second[name.replace(COMPRESSOR, QUERY_REASONER)], value)


class TestCandidates:
    def test_an_index_of_another_compressor(self, settings, tmp_path):
        index = str(tmp_path / "index")
        first = run("pretrain", settings("first"))
        made = settings("a", data="ranking", model=first.model, candidate_index=index)
        run("end-to-end", made)
        other = run("pretrain", settings("other", seed=1))
        made = settings("b", data="ranking", model=other.model, candidate_index=index)
        with pytest.raises(
            ValueError, match=r"was written by another model .* choose another candidate_index"
        ):
            run("end-to-end", made)

    def test_what_is_logged(self, settings, tmp_path):
        first = run("pretrain", settings("first"))
        run("end-to-end", settings("second", data="ranking", model=first.model))
        record = read_log(tmp_path / "second" / "log.jsonl")[0]
        assert 0 <= record["recall@1"] <= record["recall@3"] <= record["recall@5"] <= 1
        assert record["effective_compression"] > 1
        assert record["loss"] == pytest.approx(record["ce"])

    def test_an_index_is_used_again(self, settings, tmp_path, monkeypatch):
        index = str(tmp_path / "index")
        first = run("pretrain", settings("first"))
        run("end-to-end", settings("a", data="ranking", model=first.model, candidate_index=index))
        monkeypatch.setattr(
            Clara, "compress", lambda *_, **__: pytest.fail("documents are compressed again")
        )
        made = settings("b", data="ranking", model=first.model, candidate_index=index)
        run("contrastive", made)

    def test_a_candidate_without_text_leaves_its_questions_out(self, settings, tmp_path):
        rows = ranking_rows(8)
        rows[2]["docs"][1] = "  "
        rows[5]["docs"] = [""] * 3
        rows[6]["docs"].append("The river runs past the old mill. " * 40)
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for stage in ("end-to-end", "contrastive"):
            made = settings(stage, max_steps=1, per_device_train_batch_size=8)
            made = dataclasses.replace(made, train_data=str(data))
            wanted = {"candidate empty or too long": 2, "candidate truncated": 1}
            assert run(stage, made).events == wanted
        strict = settings("strict", on_unusable="error")
        with pytest.raises(ValueError, match="candidates that are empty or too long: 2"):
            run("end-to-end", dataclasses.replace(strict, train_data=str(data)))

    def test_a_schedule_that_is_none_is_found_before_candidates_are_compressed(
        self, settings, monkeypatch
    ):
        monkeypatch.setattr(Clara, "compress", lambda *_, **__: pytest.fail("compressed"))
        made = settings(data="ranking", selection=[{"temperatur": 1.0}])
        with pytest.raises(ValueError, match="selection: a phase has fields"):
            run("end-to-end", made)

    def test_noise_with_a_large_seed(self, settings):
        made = settings(data="ranking", seed=2_147_483_000, max_steps=1)
        made = dataclasses.replace(made, config={**made.config, "noise": "gumbel"})
        assert run("end-to-end", made).steps == 1

    def test_the_backbone_must_stay(self, settings):
        with pytest.raises(SettingsError, match="changes the compressor"):
            run("end-to-end", settings(data="ranking", train_backbone=True))


class TestBackbone:
    def test_it_is_saved_with_the_model_and_loaded_back(self, settings, tmp_path):
        first = run("text", settings("first", data="ranking", train_backbone=True))
        config = json.loads((first.model / "config.json").read_text())
        assert config["backbone"] == "backbone"
        start, own = (
            Clara.from_backbone(first.model / "backbone"),
            Clara.from_pretrained(first.model),
        )
        assert own.owns_backbone
        assert not start.owns_backbone
        assert own.fingerprint == Clara.from_pretrained(first.model).fingerprint
        moved = tmp_path / "elsewhere"
        first.model.rename(moved)
        again = Clara.from_pretrained(moved)
        assert again.fingerprint == own.fingerprint
        text = ["The mill was built by Ada."]
        assert torch.equal(again.compress(text).memory, own.compress(text).memory)
        second = run("pretrain", settings("second", model=moved, train_backbone=True))
        before, after = weights(moved), weights(second.model)
        changed = {
            n.split("/")[0].split(":")[0] for n in before if not torch.equal(before[n], after[n])
        }
        assert changed == {COMPRESSOR, GENERATOR, "memory_tokens.safetensors", "backbone"}
        # Frozen from now on, and still saved.
        third = run("end-to-end", settings("third", data="ranking", model=second.model))
        assert_same(
            {n: v for n, v in after.items() if n.startswith("backbone")},
            {n: v for n, v in weights(third.model).items() if n.startswith("backbone")},
        )
        assert Clara.from_pretrained(third.model).fingerprint == (
            Clara.from_pretrained(second.model).fingerprint
        )

    def test_adapters_alone_leave_it_out(self, settings):
        outcome = run("pretrain", settings())
        assert not (outcome.model / "backbone").exists()
        assert {p.name for p in outcome.model.iterdir() if p.is_dir()} == set(ADAPTERS)
