"""Settings of a training run, and how they are read from YAML and the command line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import IntervalStrategy, TrainingArguments

from clara.config import ClaraConfig

STAGES = ("text", "pretrain", "instruct", "end-to-end", "contrastive")

_MODEL_SETTINGS = {f.name for f in dataclasses.fields(ClaraConfig)} - {"backbone"}

_WHOLE = (int, int | None, "int", "int | None")

# What transformers' trainer does with models of its own, and what would do nothing here.
_WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "include_num_input_tokens_seen",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "push_to_hub",
    "use_liger_kernel",
)


class SettingsError(ValueError):
    """Settings of a run are not usable; the message names the setting."""


@dataclass
class ClaraTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` and what the stages need besides.

    Attributes:
        max_prompt_tokens: budget of a prompt with its answer; the backbone's positions by default.
        on_unusable: what to do with an example that does not fit: "skip" and count, or "error".
        train_backbone: train the backbone's own weights along with the adapters; not end to end
            or contrastive, where documents are compressed beforehand.
        alignment_weight: λ of the compression loss.
        alignment_reduction: "mean" or "sum" over H in its MSE.
        candidate_index: folder of the candidates' memory; `candidates` in `output_dir` by default.
        query_reasoner: "compressor" starts it from the compressor, "saved" from what the model
            has; by default from the compressor if it was never trained.
        train_query_reasoner: False is the ablation that trains the generator alone.
        selection: phases of the differentiable selection, see `clara.training.selection`.
        negatives, negatives_every: candidates added by searching the index with the current query
            reasoner, at every so many steps.
        in_batch_negatives: of the contrastive stage.
        patience: evaluations without improvement after which training stops; None never.
        total_batch_size: examples of a step, over all processes; sets
            `gradient_accumulation_steps`.
    """

    max_prompt_tokens: int | None = None
    on_unusable: str = "skip"
    train_backbone: bool = False
    alignment_weight: float = 0.1
    alignment_reduction: str = "mean"
    candidate_index: str | None = None
    query_reasoner: str | None = None
    train_query_reasoner: bool = True
    selection: list[dict[str, Any]] | None = None
    negatives: int = 0
    negatives_every: int = 0
    in_batch_negatives: bool = False
    patience: int | None = None
    total_batch_size: int | None = None

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        self.dataloader_pin_memory = False  # batches are not made of tensors alone
        # An objective uses all that it trains.
        self.ddp_find_unused_parameters = bool(vars(self)["ddp_find_unused_parameters"])
        # A loss that is not finite ends the training; it must not be left out of the log.
        self.logging_nan_inf_filter = False
        for name, choices in (
            ("on_unusable", ("skip", "error")),
            ("alignment_reduction", ("mean", "sum")),
            ("query_reasoner", (None, "compressor", "saved")),
            ("train_sampling_strategy", ("random", "sequential")),
        ):
            if getattr(self, name, choices[0]) not in choices:
                known = ", ".join("null" if c is None else c for c in choices)
                raise SettingsError(f"{name} must be one of {known}; got {getattr(self, name)!r}")
        for name in ("max_prompt_tokens", "patience", "total_batch_size"):
            _check_whole(name, getattr(self, name), 1, optional=True)
        for name in ("negatives", "negatives_every"):
            _check_whole(name, getattr(self, name), 0)
        if bool(self.negatives) != bool(self.negatives_every):
            raise SettingsError("negatives and negatives_every need each other")
        for name in _WITHOUT_EFFECT:
            if vars(self)[name] not in (None, False, "no"):
                raise SettingsError(f"{name} is not supported")
        weight = self.alignment_weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise SettingsError(f"alignment_weight must be a number of at least 0, got {weight!r}")
        if vars(self)["gradient_checkpointing"] and hasattr(self, "activation_checkpointing"):
            # The name from transformers 5.2 on, which warns of the other.
            self.activation_checkpointing, self.gradient_checkpointing = True, None
        super().__post_init__()
        # One process, one GPU: torchrun starts a process for each.
        self._n_gpu = min(self.n_gpu, 1)
        if self.patience is not None and not self.load_best_model_at_end:
            raise SettingsError("patience needs load_best_model_at_end")
        strategies = {self.save_strategy, self.eval_strategy}
        if (
            self.load_best_model_at_end
            and strategies == {IntervalStrategy.STEPS}
            and self.save_steps != self.eval_steps
        ):
            raise SettingsError(
                f"load_best_model_at_end needs save_steps ({self.save_steps}) to be eval_steps "
                f"({self.eval_steps}): the best may be a model that was not saved"
            )
        if self.total_batch_size is not None:
            self._accumulate(self.total_batch_size)

    def _accumulate(self, total: int) -> None:
        together = self.per_device_train_batch_size * max(self.world_size, 1)
        if total % together:
            raise SettingsError(
                f"total_batch_size {total} is no multiple of {together}, "
                f"per_device_train_batch_size on {max(self.world_size, 1)} processes"
            )
        self.gradient_accumulation_steps = total // together


@dataclass(frozen=True)
class RunSettings:
    """What a run trains, and on what.

    Attributes:
        model: folder or hub id of a CLaRa model to go on from, or None.
        backbone: of a new model, or where that of `model` is now.
        config: fields of `ClaraConfig`, from the file and the command line.
        train_data, eval_data: file of JSON lines or name of a data set.
        train_split, eval_split: of a data set.
        arguments: of the trainer.
    """

    model: str | None
    backbone: str | None
    config: dict[str, Any]
    train_data: str
    eval_data: str | None
    train_split: str
    eval_split: str
    arguments: dict[str, Any] = field(default_factory=dict)


_OWN = {f.name: f for f in dataclasses.fields(RunSettings) if f.name not in ("config", "arguments")}


def read_settings(path: str | Path, stage: str, overrides: Mapping[str, Any]) -> RunSettings:
    """Settings of one stage.

    The file is a mapping. Its settings hold for all stages; those under a stage's name hold for
    that stage and come first. `extends` names a file, relative to this one, whose settings stand
    behind. `overrides` come before everything.

    Raises:
        SettingsError: not YAML, an unknown setting, or no data; names the file.
    """
    merged = {**_settings_of(Path(path).expanduser(), stage, ()), **overrides}
    known = {f.name for f in dataclasses.fields(ClaraTrainingArguments) if f.init}
    for name in merged:
        if name not in known | _OWN.keys() | _MODEL_SETTINGS:
            close = difflib.get_close_matches(name, known | _OWN.keys() | _MODEL_SETTINGS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"{path}: unknown setting {name!r}{hint}")
    if not merged.get("train_data"):
        raise SettingsError(f"{path}: no train_data for {stage}")
    if not (merged.get("model") or merged.get("backbone")):
        raise SettingsError(f"{path}: neither a model nor a backbone to train")
    if not merged.get("output_dir"):
        raise SettingsError(f"{path}: no output_dir for {stage}")
    own: dict[str, Any] = {name: merged.get(name) for name in _OWN}
    for name, value in own.items():
        if value is not None and not isinstance(value, str):
            raise SettingsError(f"{path}: {name} must be a string, got {value!r}")
    own["train_split"] = own["train_split"] or "train"
    own["eval_split"] = own["eval_split"] or "validation"
    return RunSettings(
        **own,
        config={name: value for name, value in merged.items() if name in _MODEL_SETTINGS},
        arguments={name: value for name, value in merged.items() if name in known},
    )


def _settings_of(path: Path, stage: str, above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of a file for a stage, with those of the files it extends."""
    if path.resolve() in above:
        raise SettingsError(f"{path}: extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: not readable as YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path}: must be a mapping from names of settings to values")
    parent = values.pop("extends", None)
    base: dict[str, Any] = {}
    if parent is not None:
        if not isinstance(parent, str):
            raise SettingsError(f"{path}: extends must be the name of a file, got {parent!r}")
        base = _settings_of(path.parent / parent, stage, (*above, path.resolve()))
    stages = {name: values.pop(name) for name in STAGES if name in values}
    for name, section in stages.items():
        if not isinstance(section, dict):
            raise SettingsError(f"{path}: {name} must be a mapping, got {section!r}")
    return {**base, **values, **stages.get(stage, {})}


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """`--max-steps 20 --bf16 --selection '[{temperature: 0.1}]'` as settings.

    A value is read as YAML; an option without one is true.

    Raises:
        SettingsError: a word that belongs to no option, or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or len(word) < 3:
            raise SettingsError(f"unexpected argument {word!r}; settings are given as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if position < len(words) and not words[position].startswith("--"):
                value = words[position]
                position += 1
            else:
                value = "true"
        try:
            overrides[name.replace("-", "_")] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SettingsError(f"--{name}: {value!r} is not readable as YAML") from error
    return overrides


def training_arguments(settings: RunSettings) -> ClaraTrainingArguments:
    """The trainer's arguments.

    Raises:
        SettingsError: one of them has no usable value.
    """
    given = {name: _number(value) for name, value in settings.arguments.items()}
    if given.get("gradient_accumulation_steps", 0) is None:
        del given["gradient_accumulation_steps"]
    if "gradient_accumulation_steps" in given and given.get("total_batch_size") is not None:
        raise SettingsError(
            "total_batch_size and gradient_accumulation_steps are both given; set one to null"
        )
    chosen = given.keys() & {"bf16", "fp16", "use_cpu"}
    if not chosen and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        given["bf16"] = True
    given = _checked(given)
    try:
        return ClaraTrainingArguments(**given)
    except (TypeError, ValueError, ImportError) as error:
        raise SettingsError(" ".join(str(error).split())) from error


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a word where a number or a truth value is meant: transformers looks at them late."""
    checked = dict(given)
    for known in dataclasses.fields(ClaraTrainingArguments):
        value, default = given.get(known.name), known.default
        if value is None or isinstance(default, str) or known.name not in given:
            continue
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise SettingsError(f"{known.name} must be true or false, got {value!r}")
        elif isinstance(default, int | float) and isinstance(value, str | bool | list | dict):
            raise SettingsError(f"{known.name} must be a number, got {value!r}")
        elif known.type in _WHOLE and isinstance(value, float):
            if not value.is_integer():
                raise SettingsError(f"{known.name} must be a whole number, got {value!r}")
            checked[known.name] = int(value)  # 1e3
    return checked


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string."""
    if isinstance(value, str):
        try:
            return float(value) if set(value) <= set("0123456789.eE+-") else value
        except ValueError:
            return value
    return value


def _check_whole(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} must be a whole number of at least {least}, got {value!r}")
