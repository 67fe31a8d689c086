"""What a run writes and goes on from: checkpoints, the model, its backbone."""

import dataclasses
import json
import shutil

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.training.folder import checkpoints, read_log
from clara.training.run import run
from clara.training.settings import SettingsError

from .runs import assert_same, weights


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

    def test_a_second_stage_trains_after_loading_too(self, pretrained, settings):
        second = run("instruct", settings("second", data="ranking", model=pretrained.model))
        before, after = weights(pretrained.model), weights(second.model)
        changed = {
            n.split("/")[0].split(":")[0] for n in before if not torch.equal(before[n], after[n])
        }
        assert changed == {COMPRESSOR, GENERATOR, "memory_tokens.safetensors"}

    def test_no_pickle_anywhere(self, pretrained):
        files = pretrained.model.parent.rglob("*")
        kinds = {file.suffix for file in files if file.is_file()}
        assert kinds <= {".safetensors", ".json", ".jsonl", ".md", ".jinja", ".png"}

    def test_a_checkpoint_is_a_model(self, pretrained):
        last = checkpoints(pretrained.model.parent)[-1]
        assert last.name == "checkpoint-4"
        models = [Clara.from_pretrained(folder) for folder in (last, pretrained.model)]
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

    def test_a_run_is_not_overwritten(self, pretrained, settings, tmp_path):
        shutil.copytree(pretrained.model.parent, tmp_path / "run")
        before = weights(tmp_path / "run" / "model")
        with pytest.raises(SettingsError, match="holds a run already"):
            run("pretrain", settings())
        assert_same(before, weights(tmp_path / "run" / "model"))


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

        with pytest.raises(
            SettingsError, match=r"quantization='int8' cannot be used with model .*second"
        ):
            run(
                "pretrain",
                settings("fourth", model=second.model, config={"quantization": "int8"}),
            )

    def test_adapters_alone_leave_it_out(self, pretrained):
        assert not (pretrained.model / "backbone").exists()
        assert {p.name for p in pretrained.model.iterdir() if p.is_dir()} == set(ADAPTERS)
