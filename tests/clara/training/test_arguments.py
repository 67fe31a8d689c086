from pathlib import Path

import pytest
import yaml

from clara import ClaraConfig
from clara.training.arguments import ClaraTrainingArguments, training_arguments
from clara.training.reading import parse_overrides, read_settings
from clara.training.settings import STAGES, SettingsError

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
MODELS = {"smollm2-135m", "mistral-7b", "phi-4-mini", "qwen3-8b"}


@pytest.fixture
def write(tmp_path):
    def go(values, name="run.yaml"):
        file = tmp_path / name
        text = values if isinstance(values, str) else yaml.safe_dump(values)
        file.write_text(text, encoding="utf-8")
        return file

    return go


BASE = {"backbone": "some/model", "output_dir": "out", "train_data": "data.jsonl"}


class TestFile:
    def test_stages_come_before_the_whole_and_options_before_both(self, write):
        file = write({**BASE, "learning_rate": 1e-3, "pretrain": {"learning_rate": 1e-4}})
        assert read_settings(file, "pretrain", {}).arguments["learning_rate"] == 1e-4
        assert read_settings(file, "instruct", {}).arguments["learning_rate"] == 1e-3
        given = read_settings(file, "pretrain", {"learning_rate": 1e-5})
        assert given.arguments["learning_rate"] == 1e-5

    def test_a_file_that_extends_another(self, write):
        write({"seed": 1, "max_steps": 5, "pretrain": {"seed": 2, "top_k": 3}}, "base.yaml")
        file = write({**BASE, "extends": "base.yaml", "max_steps": 6, "pretrain": {"top_k": 4}})
        settings = read_settings(file, "pretrain", {})
        assert settings.arguments["seed"] == 2
        assert settings.arguments["max_steps"] == 6
        assert settings.config == {"top_k": 4}

    def test_what_goes_where(self, write):
        file = write(
            {**BASE, "compression_rate": 4, "eval_data": "e.jsonl", "bf16": True, "noise": "gumbel"}
        )
        settings = read_settings(file, "end-to-end", {})
        assert settings.backbone == "some/model"
        assert settings.model is None
        assert settings.config == {"compression_rate": 4, "noise": "gumbel"}
        assert settings.eval_data == "e.jsonl"
        assert settings.train_split == "train"
        assert settings.eval_split == "validation"
        assert settings.arguments == {"output_dir": "out", "bf16": True}

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"learning_rat": 1}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
            ({"zzzz": 1}, "unknown setting 'zzzz'$"),
            ({"train_data": None}, "no train_data for pretrain"),
            ({"output_dir": None}, "no output_dir for pretrain"),
            ({"backbone": None}, "neither a model nor a backbone"),
            ({"train_data": 3}, "train_data must be a string, got 3"),
            ({"pretrain": "x"}, "pretrain must be a mapping, got 'x'"),
            ({"extends": 1}, "extends must be the name of a file, got 1"),
            ({"extends": "none.yaml"}, "none.yaml: No such file"),
            ({"extends": "run.yaml"}, "run.yaml: extends itself"),
        ],
    )
    def test_settings_that_are_none(self, write, values, message):
        file = write({**BASE, **values})
        with pytest.raises(SettingsError, match=message):
            read_settings(file, "pretrain", {})

    @pytest.mark.parametrize(
        "text",
        ["[1]", "a: [", "3", "", "{1: 2}", "a: !!python/object/apply:os.system ['true']", "\x00"],
    )
    def test_files_that_are_none(self, write, text):
        file = write(text)
        with pytest.raises(SettingsError, match=r"run\.yaml: "):
            read_settings(file, "pretrain", {})

    def test_no_file(self, tmp_path):
        with pytest.raises(SettingsError, match="No such file"):
            read_settings(tmp_path / "none.yaml", "pretrain", {})


class TestOverrides:
    def test_words(self):
        words = ["--max-steps", "20", "--learning-rate=1e-4", "--bf16", "--run-name", "a b"]
        words += ["--selection", "[{temperature: 0.1}]", "--eval-data", "null", "--seed", "-1"]
        assert parse_overrides(words) == {
            "max_steps": 20,
            "learning_rate": 1e-4,
            "bf16": True,
            "run_name": "a b",
            "selection": [{"temperature": 0.1}],
            "eval_data": None,
            "seed": -1,
        }

    @pytest.mark.parametrize("words", [["20"], ["--"], ["-x"], ["--a", "1", "2"]])
    def test_words_that_are_none(self, words):
        with pytest.raises(SettingsError, match="unexpected argument"):
            parse_overrides(words)

    def test_a_value_that_is_not_yaml(self):
        with pytest.raises(SettingsError, match=r"--selection: .* is not readable as YAML"):
            parse_overrides(["--selection", "[{"])


class TestArguments:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"on_unusable": "drop"}, "on_unusable must be one of skip, error; got 'drop'"),
            ({"alignment_reduction": "max"}, "alignment_reduction must be one of"),
            ({"alignment_weight": -1}, "alignment_weight must be a number of at least 0, got -1"),
            ({"alignment_weight": float("nan")}, "alignment_weight must be"),
            ({"query_reasoner": "random"}, "query_reasoner must be one of null, compressor, saved"),
            ({"max_prompt_tokens": 0}, "max_prompt_tokens must be a whole number of at least 1"),
            (
                {"questions_per_document": 0},
                "questions_per_document must be a whole number of at least 1, got 0",
            ),
            ({"negatives": -1}, "negatives must be a whole number of at least 0"),
            ({"patience": 1.5}, "patience must be a whole number"),
            ({"total_batch_size": 6}, "total_batch_size 6 must be a multiple of 4"),
            ({"eval_strategy": "sometimes"}, "sometimes"),
            ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
            ({"max_steps": [3]}, "max_steps must be a number"),
            ({"train_backbone": 1}, "train_backbone must be true or false, got 1"),
            ({"max_steps": 2.5}, "max_steps must be a whole number, got 2.5"),
            ({"negatives": 2}, "set both negatives and negatives_every, or neither"),
            ({"negatives_every": 2}, "set both negatives and negatives_every, or neither"),
            ({"patience": 2}, "patience needs load_best_model_at_end"),
            (
                {
                    "load_best_model_at_end": True,
                    "eval_strategy": "steps",
                    "eval_steps": 2,
                    "save_steps": 2,
                    "save_total_limit": 1,
                    "max_hours": 2,
                },
                "save_total_limit must be at least 2 with max_hours",
            ),
            ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
            ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is not supported"),
            ({"train_sampling_strategy": "group_by_length"}, "must be one of random, sequential"),
            ({"push_to_hub": True}, "push_to_hub is not supported"),
            (
                {"total_batch_size": 8, "gradient_accumulation_steps": 4},
                "total_batch_size and gradient_accumulation_steps are both given; set one to null",
            ),
            (
                {
                    "load_best_model_at_end": True,
                    "eval_strategy": "steps",
                    "eval_steps": 1,
                    "save_steps": 2,
                },
                r"load_best_model_at_end needs save_steps \(2\) to be eval_steps \(1\)",
            ),
        ],
    )
    def test_values_that_are_none(self, write, tmp_path, values, message):
        own = {**BASE, "output_dir": str(tmp_path), "per_device_train_batch_size": 4, **values}
        settings = read_settings(write({k: v for k, v in own.items() if v == v}), "pretrain", {})
        if "alignment_weight" in values:
            settings.arguments["alignment_weight"] = values["alignment_weight"]
        with pytest.raises(SettingsError, match=message):
            training_arguments(settings)

    def test_numbers_that_yaml_reads_as_strings(self, write, tmp_path):
        file = write(f"backbone: b\ntrain_data: d\noutput_dir: {tmp_path}\nlearning_rate: 1e-4\n")
        assert training_arguments(read_settings(file, "pretrain", {})).learning_rate == 1e-4

    def test_the_batch_of_all_together(self, tmp_path):
        arguments = ClaraTrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8, total_batch_size=128
        )
        assert arguments.gradient_accumulation_steps == 16

    def test_one_of_two_settings_of_the_batch_can_be_null(self, write, tmp_path):
        given = {"total_batch_size": 8, "per_device_train_batch_size": 2}
        file = write({**BASE, **given, "output_dir": str(tmp_path)})
        for overrides, wanted in (
            ({"gradient_accumulation_steps": None}, 4),
            ({"gradient_accumulation_steps": 3, "total_batch_size": None}, 3),
        ):
            arguments = training_arguments(read_settings(file, "pretrain", overrides))
            assert arguments.gradient_accumulation_steps == wanted

    def test_whole_numbers_written_as_powers_of_ten(self, write, tmp_path):
        file = write(f"backbone: b\ntrain_data: d\noutput_dir: {tmp_path}\nmax_steps: 1e3\n")
        arguments = training_arguments(read_settings(file, "pretrain", {"seed": 1e1}))
        assert (arguments.max_steps, arguments.seed) == (1000, 10)
        assert type(arguments.max_steps) is int

    def test_a_strategy_that_yaml_reads_as_false(self, write, tmp_path):
        """YAML 1.1 reads an unquoted no as false."""
        file = write(f"backbone: b\ntrain_data: d\noutput_dir: {tmp_path}\nsave_strategy: no\n")
        overrides = parse_overrides(["--logging-strategy", "no"])
        arguments = training_arguments(read_settings(file, "pretrain", overrides))
        assert (arguments.save_strategy, arguments.logging_strategy) == ("no", "no")

    def test_one_process_uses_one_gpu(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ClaraTrainingArguments, "n_gpu", 4)
        arguments = ClaraTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2)
        monkeypatch.undo()
        assert arguments.n_gpu == 1
        assert arguments.train_batch_size == 2

    def test_gradient_checkpointing_warns_of_nothing(self, tmp_path, recwarn):
        arguments = ClaraTrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True)
        assert arguments.gradient_checkpointing
        assert not [w for w in recwarn if "checkpointing" in str(w.message)]


def recipes():
    return sorted(p for p in RECIPES.glob("*/*x.yaml"))


def test_there_is_a_recipe_for_every_model_and_rate():
    names = {(path.parent.name, path.stem) for path in recipes()}
    assert names == {(model, rate) for model in MODELS for rate in ("4x", "16x", "128x")}


@pytest.mark.parametrize("path", recipes(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipes_have_the_papers_settings(path, tmp_path):
    for stage in STAGES:
        settings = read_settings(path, stage, {"use_cpu": True})
        settings.arguments["output_dir"] = str(tmp_path)
        config = ClaraConfig(**settings.config)
        assert config.compression_rate == int(path.stem[:-1])
        assert config.document_length == 256
        assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
        assert (config.top_k, config.temperature) == (5, 0.02)
        assert (config.quantization == "nf4") is (path.parent.name in ("mistral-7b", "qwen3-8b"))
        arguments = training_arguments(settings)
        ranking = stage in ("end-to-end", "contrastive")
        total = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        assert total == (32 if ranking else 128)
        assert arguments.learning_rate == (5e-6 if ranking else 1e-4)
        assert arguments.lr_scheduler_type == "cosine"
        assert arguments.get_warmup_steps(1000) == 30
        assert arguments.num_train_epochs == 1
        assert arguments.max_grad_norm == 1.0
        assert arguments.alignment_weight == 0.1
        if stage in ("instruct", "end-to-end", "contrastive"):
            assert settings.model == f"runs/{path.parent.name}-{path.stem}/pretrain/model"
