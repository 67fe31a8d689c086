"""The trainer's arguments: transformers' and ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clara.errors import reason
from clara.errors.checks import is_number
from clara.training.curriculum import check_phases
from clara.training.settings import (
    RunSettings,
    SettingsError,
    as_number,
    check_choices,
    check_distillation,
    check_evaluation,
    check_numbers,
    check_rates,
    check_reporters,
    checked_learning_rates,
)
from clara.training.trainer_library import IntervalStrategy, TrainingArguments

_WHOLE = (int, int | None, "int", "int | None")

# Their value "no" is false in YAML.
_STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")

# What transformers' trainer does with models of its own, and what would do nothing here.
_WITHOUT_EFFECT = (
    "auto_find_batch_size",
    "include_num_input_tokens_seen",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "push_to_hub",
    "use_liger_kernel",
)


@dataclass
class ClaraTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, with the settings of CLaRa's stages.

    Attributes:
        max_prompt_tokens: token limit of a prompt with its answer. Default: the backbone's
            positions.
        on_unusable: what happens to an example that does not fit: "skip" leaves it out and counts
            it, "error" stops the training.
        questions_per_document: of an example with many questions about the same documents, how many
            are asked at most. They share the documents' memory.
        unanswerable: share of the examples of text, instruct and end-to-end that are asked with
            documents that do not answer, so that a refusal is right, see
            `clara.training.unanswerable`.
        train_backbone: train the backbone's own weights along with the adapters. Not available in
            the end-to-end and contrastive stages, which compress the documents beforehand.
        alignment_weight: λ, the weight of the MSE in the compression loss. Default: 0.1, and 0 in
            memory form "spans".
        alignment_reduction: "mean" or "sum" over H in that MSE.
        span_weight: weight of what slots of memory form "spans" say about their span's tokens, see
            `clara.training.compression`. Default: 0, which leaves it out.
        candidate_index: folder of the candidates' memory. Default: `candidates` in `output_dir`.
        candidate_rates: compression rates of the candidates' memory, in memory form "spans". Each
            batch draws one. Default: the model's own.
        query_reasoner: "compressor" starts the query reasoner from the compressor's weights,
            "saved" from those of the model. Default: "compressor" if it was never trained.
        train_query_reasoner: False trains only the generator, as an ablation.
        selection: phases of the differentiable selection, see `clara.training.selection`.
        negatives, negatives_every: add so many candidates, found by searching the index with the
            current query reasoner, every so many steps.
        in_batch_negatives: for the contrastive stage: candidates of other questions are negatives
            too.
        patience: stop the training after so many evaluations without improvement; None never
            stops it.
        total_batch_size: batch size: examples per step over all processes; sets
            `gradient_accumulation_steps`.
        learning_rates: learning rates that differ from `learning_rate`, by the names of what
            trains: compressor, query_reasoner, generator, memory_tokens, connector, backbone.
        evaluate_examples: compute the losses of an evaluation over so many examples of the
            evaluation data, always the same ones, drawn from all over it; None takes all.
        evaluate_answers: in every evaluation, answer so many questions of the evaluation data from
            the right memory, another document's, none and the text, see `clara.training.controls`.
        evaluation_rates: compression rates to answer them at. Default: `candidate_rates`, or the
            model's own.
        max_hours: stop the training after so many hours of wall time, those before it was resumed
            included, and save; None never stops it.
        save_minutes: also save a checkpoint after so many minutes of wall time without one; None
            saves by steps alone.
        curriculum: phases of what pretrain and instruct read, see `clara.training.curriculum`.
        teacher: model of `clara train text` that instruct learns from, or its run's folder.
        distillation_weight: w of `CE + w·KL`. Default: 1 with a teacher; 0 leaves the teacher out.
        distillation_top: how many of the teacher's most likely tokens have a probability of their
            own; the others have one together. Default: 32.
        teacher_cache: folder of the teacher's probabilities. Default: `teacher` in `output_dir`.
    """

    max_prompt_tokens: int | None = None
    on_unusable: str = "skip"
    questions_per_document: int = 16
    unanswerable: float = 0.0
    train_backbone: bool = False
    alignment_weight: float | None = None
    alignment_reduction: str = "mean"
    span_weight: float = 0.0
    candidate_index: str | None = None
    candidate_rates: list[int] | None = None
    query_reasoner: str | None = None
    train_query_reasoner: bool = True
    selection: list[dict[str, Any]] | None = None
    negatives: int = 0
    negatives_every: int = 0
    in_batch_negatives: bool = False
    patience: int | None = None
    total_batch_size: int | None = None
    learning_rates: dict[str, float] | None = None
    curriculum: list[dict[str, Any]] | None = None
    evaluate_examples: int | None = None
    evaluate_answers: int = 0
    evaluation_rates: list[int] | None = None
    max_hours: float | None = None
    save_minutes: float | None = None
    teacher: str | None = None
    distillation_weight: float | None = None
    distillation_top: int | None = None
    teacher_cache: str | None = None

    def __post_init__(self) -> None:
        self.remove_unused_columns = False
        self.dataloader_pin_memory = False  # batches are not made of tensors alone
        # An objective uses all that it trains, but for the compressor while memory is averages.
        averages = any(phase.averages_only for phase in check_phases(self.curriculum))
        self.ddp_find_unused_parameters = averages or bool(vars(self)["ddp_find_unused_parameters"])
        # A loss that is not finite ends the training; it must not be left out of the log.
        self.logging_nan_inf_filter = False
        check_choices(vars(self))
        check_numbers(vars(self))
        check_rates(vars(self))
        check_evaluation(vars(self))
        check_distillation(vars(self))
        if self.distillation_weight is None:
            self.distillation_weight = 0.0 if self.teacher is None else 1.0
        if self.distillation_top is None:
            self.distillation_top = 32
        if self.candidate_rates is not None:  # their order says nothing
            self.candidate_rates = sorted(int(rate) for rate in self.candidate_rates)
        self.learning_rates = checked_learning_rates(self.learning_rates) or None
        _check_reporters(self.report_to)
        if bool(self.negatives) != bool(self.negatives_every):
            raise SettingsError("set both negatives and negatives_every, or neither")
        if self.unanswerable and self.negatives:
            raise SettingsError(
                "unanswerable cannot be used with negatives: a search may find the document that "
                "answers"
            )
        for name in _WITHOUT_EFFECT:
            if vars(self)[name] not in (None, False, "no"):
                raise SettingsError(f"{name} is not supported")
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
        if (
            self.load_best_model_at_end
            and self.save_total_limit == 1
            and self.max_hours is not None
        ):
            raise SettingsError(
                "save_total_limit must be at least 2 with max_hours and load_best_model_at_end: a "
                "run goes on from its last checkpoint, which may not be the best"
            )
        if self.total_batch_size is not None:
            self._accumulate(self.total_batch_size)

    def _accumulate(self, total: int) -> None:
        together = self.per_device_train_batch_size * max(self.world_size, 1)
        if total % together:
            raise SettingsError(
                f"total_batch_size {total} must be a multiple of {together}, "
                f"per_device_train_batch_size on {max(self.world_size, 1)} processes"
            )
        self.gradient_accumulation_steps = total // together


def training_arguments(settings: RunSettings) -> ClaraTrainingArguments:
    """The trainer's arguments.

    Raises:
        SettingsError: one of them has no usable value.
    """
    given = {name: as_number(value) for name, value in settings.arguments.items()}
    for name in _STRATEGIES:
        if given.get(name) is False:
            given[name] = "no"
    for known in dataclasses.fields(ClaraTrainingArguments):
        # null stands for the default, also where None is no value of the setting.
        if given.get(known.name, 0) is None and "None" not in str(known.type):
            del given[known.name]
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
        raise SettingsError(reason(error, None)) from error


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
        elif is_number(default) and not is_number(value):
            raise SettingsError(f"{known.name} must be a number, got {value!r}")
        elif known.type in _WHOLE and isinstance(value, float):
            if not value.is_integer():
                raise SettingsError(f"{known.name} must be a whole number, got {value!r}")
            checked[known.name] = int(value)  # 1e3
    return checked


def _check_reporters(report_to: Any) -> None:
    check_reporters(report_to)
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = [report_to] if isinstance(report_to, str) else (report_to or [])
    for name in names:
        if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
            known = ", ".join(("none", "all", *sorted(INTEGRATION_TO_CALLBACK)))
            raise SettingsError(f"report_to must be one of {known}; got {name!r}")
