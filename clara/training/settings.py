"""Settings of a run, and which values they may have.

This module does not import torch or transformers, which takes seconds: a mistyped setting is
reported at once. `clara.training.reading` reads the settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clara.errors import ClaraError
from clara.errors.checks import is_integer, is_number
from clara.training.reporters import missing_package

if TYPE_CHECKING:
    from clara.config import ClaraConfig

Stage = Literal["text", "pretrain", "instruct", "end-to-end", "contrastive"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class SettingsError(ClaraError, ValueError):
    """Settings of a run are not usable; the message names the setting."""


@dataclass(frozen=True)
class RunSettings:
    """What a run trains, and on what.

    Attributes:
        model: folder or hub id of the CLaRa model to continue from, or None.
        backbone: backbone of a new model, or backbone to use instead of the one `model` names.
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


def as_number(value: Any) -> Any:
    """A string that YAML 1.1 did not read as a number, such as 1e-4, as one."""
    if isinstance(value, str):
        try:
            return float(value) if set(value) <= set("0123456789.eE+-") else value
        except ValueError:
            return value
    return value


# Values of settings

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "on_unusable": ("skip", "error"),
    "alignment_reduction": ("mean", "sum"),
    "query_reasoner": (None, "compressor", "saved"),
    "train_sampling_strategy": ("random", "sequential"),
}


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse a word that a setting does not take.

    Raises:
        SettingsError: names the setting, its value and what it may be.
    """
    for name, choices in _CHOICES.items():
        value = values.get(name, choices[0])
        if value not in choices:
            known = ", ".join("null" if choice is None else choice for choice in choices)
            raise SettingsError(f"{name} must be one of {known}; got {value!r}")


GROUPS = ("compressor", "query_reasoner", "generator", "memory_tokens", "connector", "backbone")
"""What a stage may train, by the names of `Objective.groups`."""


@dataclass(frozen=True)
class Numbers:
    """Which numbers a setting may have.

    Attributes:
        least: the smallest; the bound itself is left out if `above`.
        most: the largest.
        below: the first that is too large.
        whole: integers alone.
    """

    least: float = 0
    most: float = math.inf
    below: float = math.inf
    whole: bool = False
    above: bool = False

    def holds(self, value: Any) -> bool:
        if not is_number(value):
            return False
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        if value < self.least or (self.above and value == self.least):
            return False
        return value <= self.most and value < self.below

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{text} above {self.least:g}"
        text += f" of at least {self.least:g}"
        if self.below < math.inf:
            return f"{text} and below {self.below:g}"
        return text if self.most == math.inf else f"{text} and at most {self.most:.0f}"


_COUNT = Numbers(1, whole=True)
_FROM_ZERO = Numbers(whole=True)
_SEED = Numbers(whole=True, most=2**32 - 1)  # what NumPy takes
NUMBERS: dict[str, Numbers] = {
    "num_train_epochs": Numbers(above=True),
    "learning_rate": Numbers(),
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "total_batch_size": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "warmup_steps": Numbers(),
    "weight_decay": Numbers(),
    "adam_beta1": Numbers(below=1),
    "adam_beta2": Numbers(below=1),
    "adam_epsilon": Numbers(),
    "max_grad_norm": Numbers(),
    "logging_steps": Numbers(above=True),
    "eval_steps": Numbers(above=True),
    "save_steps": Numbers(above=True),
    "eval_delay": Numbers(),
    "save_total_limit": _FROM_ZERO,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _FROM_ZERO,
    "dataloader_prefetch_factor": _COUNT,
    "ddp_timeout": _COUNT,
    "alignment_weight": Numbers(),
    "span_weight": Numbers(),
    "distillation_weight": Numbers(),
    "distillation_top": _COUNT,
    "max_prompt_tokens": _COUNT,
    "questions_per_document": _COUNT,
    "unanswerable": Numbers(most=1),
    "patience": _COUNT,
    "negatives": _FROM_ZERO,
    "negatives_every": _FROM_ZERO,
    "evaluate_examples": _COUNT,
    "evaluate_answers": _FROM_ZERO,
    "max_hours": Numbers(above=True),
    "save_minutes": Numbers(above=True),
}
"""Settings of the trainer that are numbers, and which; None stands for the default."""


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers that a run cannot be made with, NaN and infinity among them.

    Raises:
        SettingsError: names the setting, its value and what it may be.
    """
    for name, allowed in NUMBERS.items():
        value = as_number(values.get(name))
        if value is None or allowed.holds(value):
            continue
        if not is_number(value):
            raise SettingsError(f"{name} must be a number, got {value!r}")
        if allowed.whole and math.isfinite(value) and value != int(value):
            raise SettingsError(f"{name} must be a whole number, got {value!r}")
        raise SettingsError(f"{name} must be {allowed}, got {value!r}")
    steps = as_number(values.get("max_steps"))
    if isinstance(steps, int | float) and steps != -1 and not _COUNT.holds(steps):
        raise SettingsError(
            f"max_steps must be a whole number of at least 1, or -1 to train num_train_epochs, "
            f"got {steps!r}"
        )


def checked_learning_rates(given: Any) -> dict[str, float]:
    """The learning rates of groups of weights; a group without one keeps `learning_rate`.

    Args:
        given: a mapping from names of `GROUPS` to numbers; None for no rates.

    Raises:
        SettingsError: a name or a number is not usable; names it and what it may be.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SettingsError(
            f"learning_rates must be a mapping from {', '.join(GROUPS)} to numbers, got {given!r}"
        )
    rates = {name: as_number(rate) for name, rate in given.items() if rate is not None}
    for name, rate in rates.items():
        if name not in GROUPS:
            raise SettingsError(f"learning_rates: {name!r} must be one of {', '.join(GROUPS)}")
        if not NUMBERS["learning_rate"].holds(rate):
            allowed = NUMBERS["learning_rate"]
            raise SettingsError(f"learning_rates: {name} must be {allowed}, got {rate!r}")
    return {name: float(rate) for name, rate in rates.items()}


def check_rates(values: Mapping[str, Any]) -> None:
    """Refuse what is no list of compression rates where a setting is one.

    Raises:
        SettingsError: names the setting, its value and what it may be.
    """
    for name in ("candidate_rates", "evaluation_rates"):
        rates = values.get(name)
        if rates is not None and not (
            isinstance(rates, list | tuple)
            and all(is_integer(rate) and rate >= 1 for rate in rates)
            and len(rates) == len(set(rates)) > 0
        ):
            raise SettingsError(
                f"{name} must be a list of different whole numbers of at least 1, such as "
                f"[4, 16], got {rates!r}"
            )


def chosen_rates(
    config: ClaraConfig, name: str, rates: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The compression rates of a setting: those given, or the model's default.

    Args:
        name: of the setting.

    Raises:
        SettingsError: the model does not train one of them.
    """
    from clara.training.curriculum import trained_rates

    trained = trained_rates(config)
    for rate in rates or ():
        if rate not in trained:
            raise SettingsError(
                f"{name} must be of those that the model trains, "
                f"{', '.join(map(str, trained))}; got {rate}"
            )
    return tuple(rates) if rates else (config.compression_rate,)


def check_candidate_rates(config: ClaraConfig, rates: Sequence[int] | None) -> None:
    """Refuse rates of candidates' memory that a model does not have.

    Raises:
        SettingsError: the model does not train one of them, or has only one.
    """
    if rates is not None and config.memory_form != "spans":
        raise SettingsError(
            "candidate_rates needs memory_form: spans; memory of this model has one rate, "
            f"{config.compression_rate}"
        )
    chosen_rates(config, "candidate_rates", rates)


def check_evaluation(values: Mapping[str, Any]) -> None:
    """Refuse settings of answered questions that nothing would use.

    Raises:
        SettingsError: names the setting, its value and what it needs.
    """
    if values.get("evaluate_answers"):
        return
    best = values.get("metric_for_best_model")
    if isinstance(best, str) and best.removeprefix("eval_").startswith("exact_match"):
        raise SettingsError(
            f"metric_for_best_model {best} needs evaluate_answers, the number of questions to "
            "answer in an evaluation"
        )
    if values.get("evaluation_rates") is not None:
        raise SettingsError(
            "evaluation_rates needs evaluate_answers, the number of questions to answer in an "
            "evaluation"
        )


def check_eval_data(settings: RunSettings) -> None:
    """Refuse settings of evaluations without data for them.

    Raises:
        SettingsError: names the setting.
    """
    for name in ("evaluate_examples", "evaluate_answers"):
        if settings.arguments.get(name) and not settings.eval_data:
            raise SettingsError(f"{name} needs eval_data")


def check_distillation(values: Mapping[str, Any]) -> None:
    """Refuse places that are no paths, and settings of a teacher without one.

    Raises:
        SettingsError: names the setting, its value and what it may be.
    """
    for name in ("teacher", "teacher_cache"):
        value = values.get(name)
        if value is not None and not (isinstance(value, str) and value):
            raise SettingsError(f"{name} must be a path, got {value!r}")
    if values.get("teacher") is not None:
        return
    for name in ("distillation_weight", "distillation_top", "teacher_cache"):
        if values.get(name):
            raise SettingsError(
                f"{name} needs a teacher: a model of clara train text, or the folder of its run"
            )


def check_reporters(report_to: Any) -> None:
    """Refuse a reporter whose package is not installed, before anything is loaded.

    Args:
        report_to: a name or a list of them; "all" stands for those that are installed.

    Raises:
        SettingsError: names the reporter and the package to install.
    """
    for name in [report_to] if isinstance(report_to, str) else (report_to or []):
        package = missing_package(name) if isinstance(name, str) else None
        if package is not None:
            raise SettingsError(
                f"report_to: {name} needs the package {package}, which is not installed: "
                f"pip install {package}"
            )


def check_early(settings: RunSettings) -> None:
    """Check words, numbers, reporters and paths in the settings, before torch is imported.

    Raises:
        ValueError: a kind of it, with one line.
    """
    # null stands for the default
    check_choices({k: v for k, v in settings.arguments.items() if v is not None})
    check_numbers(settings.arguments)
    checked_learning_rates(settings.arguments.get("learning_rates"))
    check_rates(settings.arguments)
    check_evaluation(settings.arguments)
    check_distillation(settings.arguments)
    check_eval_data(settings)
    check_reporters(settings.arguments.get("report_to"))
    places = {"model": settings.model, "backbone": settings.backbone}
    for name, place in {**places, "teacher": settings.arguments.get("teacher")}.items():
        if place and _is_path(place) and not Path(place).expanduser().exists():
            raise SettingsError(f"{name} {place!r} does not exist")
    from clara.data.examples import check_source
    from clara.training.curriculum import Curriculum, check_phases

    check_phases(settings.arguments.get("curriculum"))
    check_source(settings.train_data)
    if settings.eval_data:
        check_source(settings.eval_data)
    if not settings.model:  # a model has settings of its own to go with them
        from clara.config import ClaraConfig

        try:
            config = ClaraConfig().replace(**settings.config)
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error
        Curriculum(config, settings.arguments.get("curriculum"))
        check_candidate_rates(config, settings.arguments.get("candidate_rates"))


def _is_path(place: str) -> bool:
    return Path(place).expanduser().is_absolute() or place.startswith((".", "~"))
