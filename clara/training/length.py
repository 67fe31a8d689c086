"""Compute how many steps a run takes, before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from clara.training.arguments import ClaraTrainingArguments
from clara.training.settings import SettingsError
from clara.training.trainer_library import get_scheduler


@dataclass(frozen=True)
class Length:
    """Steps of a run.

    Attributes:
        examples: in the training data.
        step: examples of a step, over all processes and accumulated batches.
        epoch: optimizer steps of an epoch.
        total: optimizer steps of the run.
    """

    examples: int
    step: int
    epoch: int
    total: int


def length_of(arguments: ClaraTrainingArguments, examples: int) -> Length:
    """Steps of a run over `examples`.

    Raises:
        SettingsError: the run would take no step, or its only step would be one of warm-up with a
            learning rate of 0; says what to change.
    """
    size, processes = arguments.per_device_train_batch_size, max(arguments.world_size, 1)
    step = size * processes * arguments.gradient_accumulation_steps
    if arguments.dataloader_drop_last:
        batches = examples // size // processes
        if not batches:
            raise SettingsError(
                f"dataloader_drop_last leaves nothing to train on: train_data has {examples} "
                f"examples, and a batch on each of {processes} processes takes {size * processes}; "
                "lower per_device_train_batch_size or set dataloader_drop_last to false"
            )
    else:
        batches = math.ceil(math.ceil(examples / size) / processes)
    epoch = math.ceil(batches / arguments.gradient_accumulation_steps)
    total = arguments.max_steps
    if total <= 0:
        total = math.ceil(arguments.num_train_epochs * epoch)
    length = Length(examples, step, epoch, total)
    if total == 1 and _highest_rate(arguments) > 0 and _first_rate(arguments, total) == 0:
        raise SettingsError(
            f"the run would learn nothing: it has 1 step (train_data has {examples} examples, a "
            f"step takes {step}), and warmup_steps {arguments.warmup_steps:g} makes its learning "
            "rate 0; lower total_batch_size, train more steps, or set warmup_steps to 0"
        )
    return length


def remarks(arguments: ClaraTrainingArguments, length: Length) -> list[str]:
    """What a user may not have meant, a line each."""
    found = []
    if _highest_rate(arguments) == 0:
        found.append("learning_rate is 0: nothing is learnt")
    if length.examples < length.step:
        found.append(
            f"train_data has {length.examples} examples and a step takes {length.step} "
            f"(total_batch_size): every step takes all {length.examples}, {length.total} "
            f"{'step' if length.total == 1 else 'steps'} in all"
        )
    warmup = arguments.get_warmup_steps(length.total)
    if 1 < length.total <= warmup and str(_schedule(arguments)) not in _WITHOUT_WARMUP:
        found.append(
            f"warmup_steps {arguments.warmup_steps:g} takes all {length.total} steps: "
            f"learning_rate {arguments.learning_rate:g} is never reached"
        )
    return found


_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def _schedule(arguments: ClaraTrainingArguments) -> str:
    return str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))


def _highest_rate(arguments: ClaraTrainingArguments) -> float:
    return max(arguments.learning_rate, *(arguments.learning_rates or {}).values(), 0.0)


def _first_rate(arguments: ClaraTrainingArguments, total: int) -> float:
    """The highest learning rate of the first step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=_highest_rate(arguments))
    options = arguments.lr_scheduler_kwargs
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=options if isinstance(options, dict) else None,
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"lr_scheduler_type {_schedule(arguments)}: {error}") from error
    return float(optimizer.param_groups[0]["lr"])
