"""Run the training of one stage: put its model, data, objective and trainer together."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clara.backbone import trained
from clara.backbone.adapters import ADAPTERS
from clara.config import ClaraConfig
from clara.data.examples import (
    Examples,
    open_examples,
)
from clara.data.lines import Fields
from clara.model.checkpoint import locate, read_config
from clara.model.clara import Clara
from clara.terminal.printing import say
from clara.training.arguments import ClaraTrainingArguments, training_arguments
from clara.training.callbacks import EarlyStopping, LineProgress, RichProgress, RunLog
from clara.training.controls import Controls
from clara.training.curriculum import Curriculum
from clara.training.distillation import check_cache
from clara.training.folder import (
    MODEL,
    check_folder,
    checkpoints,
    read_record,
    remove_unfinished,
    restore_replaced,
    write_record,
)
from clara.training.length import length_of, remarks
from clara.training.resuming import check_backbone, check_resumed, run_record
from clara.training.settings import (
    RunSettings,
    SettingsError,
    Stage,
    check_candidate_rates,
    check_eval_data,
    chosen_rates,
)
from clara.training.stages import ASSEMBLY
from clara.training.teacher import teacher_of
from clara.training.trainer import ClaraTrainer
from clara.training.trainer_library import PrinterCallback, ProgressCallback, TrainerCallback


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        model: folder of the trained model.
        steps: steps done, those before a resume included.
        metrics: of the last evaluation and of the training, by name.
        events: examples left out and texts cut since the run was started or resumed.
        is_main_process: of those that trained together.
    """

    model: Path
    steps: int
    metrics: dict[str, float]
    events: dict[str, int]
    is_main_process: bool


def run(
    stage: Stage,
    settings: RunSettings,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Outcome:
    """Train one stage.

    Args:
        stage: one of `clara.training.settings.STAGES`.
        resume: go on from the last checkpoint in the run's folder, if there is one.
        callbacks: of the trainer, besides ours. They are given the `Objective` as their `model`.

    Raises:
        ValueError: settings, data or model are not usable; a kind of it for each.
    """
    _leave_group_at_exit()
    arguments = training_arguments(settings)
    config = _check_before_loading(stage, settings, arguments)
    if arguments.alignment_weight is None:
        arguments.alignment_weight = 0.1 if config.memory_form == "learned" else 0.0
    folder = Path(arguments.output_dir)
    with arguments.main_process_first(local=arguments.save_on_each_node):
        if arguments.should_save:
            restore_replaced(folder)
    last = _last_checkpoint(folder, resume)
    parse, assemble = ASSEMBLY[stage]
    train, evaluation = _examples(settings, arguments, parse)
    length = length_of(arguments, len(train))
    teacher = teacher_of(arguments)
    record = run_record(stage, settings, arguments, length, train, evaluation, teacher)
    lines = remarks(arguments, length)
    before = None
    if last is not None:
        before = read_record(last)
        lines += check_resumed(last, record, config)
    if teacher is not None:
        check_cache(teacher, arguments, train)
    if arguments.process_index == 0:
        for line in lines:
            say(line)
    model = _model(settings, arguments)
    record["backbone_digest"] = model.backbone_digest
    check_backbone(before, record)
    with arguments.main_process_first():
        remove_unfinished(folder)
        if arguments.process_index == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_record(folder, record)
        parts = assemble(model, arguments, [train, evaluation])
    controls = _controls(model, arguments, evaluation)
    trainer = ClaraTrainer(
        parts.objective,
        arguments,
        parts.collator,
        train,
        evaluation,
        parts.events,
        record,
        controls,
        callbacks=[*_callbacks(arguments), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RichProgress):
                callback.close()
    trainer.save_run(folder / MODEL)
    metrics = {k: v for logged in trainer.state.log_history for k, v in logged.items()}
    main = trainer.is_world_process_zero()
    return Outcome(folder / MODEL, trainer.state.global_step, metrics, trainer.events, main)


def _examples(
    settings: RunSettings, arguments: ClaraTrainingArguments, parse: Callable[[Fields], Any]
) -> tuple[Examples[Any], Examples[Any] | None]:
    """Training and evaluation data; a file of another kind is refused before a model is loaded."""
    train = open_examples(settings.train_data, settings.train_split, parse)
    evaluation = None
    if settings.eval_data:
        evaluation = open_examples(settings.eval_data, settings.eval_split, parse)
    elif arguments.eval_strategy != "no":
        raise SettingsError("eval_strategy needs eval_data")
    for examples in (train, evaluation):
        if examples is not None:
            examples[0]
    return train, evaluation


def _check_before_loading(
    stage: Stage, settings: RunSettings, arguments: ClaraTrainingArguments
) -> ClaraConfig:
    """Refuse what the stage, the data or the model's configuration does not have.

    Returns:
        The configuration of the model.
    """
    config = _config(settings)
    if arguments.curriculum is not None:
        if stage not in ("pretrain", "instruct"):
            raise SettingsError(f"curriculum is for pretrain and instruct: {stage} has none")
        Curriculum(config, arguments.curriculum)
    if arguments.teacher is not None and stage != "instruct":
        raise SettingsError(f"teacher is for instruct: {stage} learns from none")
    if arguments.unanswerable and stage not in ("text", "instruct", "end-to-end"):
        raise SettingsError(
            f"unanswerable is for text, instruct and end-to-end: {stage} asks no single questions"
        )
    if arguments.candidate_rates is not None:
        if stage not in ("end-to-end", "contrastive"):
            raise SettingsError(
                f"candidate_rates is for end-to-end and contrastive: {stage} has no candidates"
            )
        check_candidate_rates(config, arguments.candidate_rates)
    chosen_rates(config, "evaluation_rates", arguments.evaluation_rates)
    check_eval_data(settings)
    if arguments.evaluate_answers and stage in ("text", "contrastive"):
        raise SettingsError(
            f"evaluate_answers is for pretrain, instruct and end-to-end: {stage} trains no answers "
            "from memory"
        )
    return config


def _controls(
    model: Clara, arguments: ClaraTrainingArguments, evaluation: Examples[Any] | None
) -> Controls | None:
    if not arguments.evaluate_answers or evaluation is None:
        return None
    return Controls(
        model,
        evaluation,
        arguments.evaluate_answers,
        arguments.evaluation_rates or arguments.candidate_rates,
        max_prompt_tokens=arguments.max_prompt_tokens,
        batch_size=arguments.per_device_eval_batch_size,
    )


def _last_checkpoint(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; None where the run is to begin.

    Raises:
        SettingsError: there is a run already, or a finished one without a checkpoint.
    """
    check_folder(folder, resume)
    found = checkpoints(folder)
    return found[-1] if found else None


def _config(settings: RunSettings) -> ClaraConfig:
    """The configuration of the model that `_model` loads."""
    if settings.model:
        return read_config(locate(settings.model), settings.config)
    return ClaraConfig().replace(**settings.config)


@cache
def _leave_group_at_exit() -> None:
    """Threads of a process group that is still there at the end may abort a finished process."""

    def leave() -> None:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    atexit.register(leave)


def _callbacks(arguments: ClaraTrainingArguments) -> list[Any]:
    callbacks: list[Any] = [RunLog(), RichProgress(), LineProgress()]
    if arguments.patience is not None:
        callbacks.append(EarlyStopping(early_stopping_patience=arguments.patience))
    return callbacks


def _model(settings: RunSettings, arguments: ClaraTrainingArguments) -> Clara:
    device = arguments.device
    dtype = _config(settings).dtype
    # In bfloat16 without autocast, steps on a CPU are slower than in float32, and less exact.
    in_float32 = dtype == "auto" and device.type == "cpu" and not arguments.bf16
    settings_of_model = {**settings.config, "dtype": "float32" if in_float32 else dtype}
    if settings.model:
        # A recipe names the backbone for all stages: one that was trained comes with its model.
        own = read_config(locate(settings.model), {}).backbone == trained.FOLDER
        quantization = _config(settings).quantization
        if own and quantization:
            raise SettingsError(
                f"quantization={quantization!r} cannot be used with model {settings.model}: its "
                "backbone was trained, and every checkpoint keeps that unquantized"
            )
        model = Clara.from_pretrained(
            settings.model,
            backbone=None if own else settings.backbone,
            device=device,
            **settings_of_model,
        )
    else:
        config = ClaraConfig().replace(**settings_of_model)
        model = Clara.from_backbone(
            str(settings.backbone), config, device=device, seed=arguments.seed
        )
    model.config = model.config.replace(dtype=dtype)  # which is saved with it
    # Steps are small against bfloat16's precision: what trains is kept in float32.
    for name in ADAPTERS:
        for parameter in model.adapters.parameters(name).values():
            parameter.data = parameter.data.float()
    if arguments.train_backbone:
        model.backbone.float()
    if settings.model:
        model.load_weights(locate(settings.model))  # not as they were rounded to `dtype`
    return model
