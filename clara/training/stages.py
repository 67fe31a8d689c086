"""What each stage reads and trains: its parser, objective and collator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from clara.backbone.adapters import QUERY_REASONER
from clara.backbone.packed_forward import positions_of
from clara.backbone.rotary import switching_lengths
from clara.data.examples import (
    DocumentQuestions,
    PretrainingExample,
    answers_example,
    contrastive_example,
    pretraining_example,
    ranking_example,
)
from clara.data.lines import Fields
from clara.model.clara import Clara
from clara.training.arguments import ClaraTrainingArguments
from clara.training.collators import (
    CompressionCollator,
    RankingCollator,
    RatesCollator,
    TextCollator,
)
from clara.training.compression import CompressionObjective
from clara.training.curriculum import Curriculum
from clara.training.distillation import distillation_of
from clara.training.encoder import Encoder
from clara.training.objectives import Objective
from clara.training.questions import Asking
from clara.training.reconstruction import CurriculumCollator, DrawingCollator
from clara.training.settings import SettingsError, Stage, chosen_rates
from clara.training.text import TextObjective
from clara.training.unanswerable import UnanswerableCollator

if TYPE_CHECKING:
    from clara.training.candidates import CandidateMemory


@dataclass(frozen=True)
class Parts:
    objective: Objective
    collator: Callable[..., Any]
    events: Mapping[str, int] = field(default_factory=dict)


def _encoder(model: Clara, arguments: ClaraTrainingArguments) -> Encoder:
    positions = positions_of(model.backbone)
    budgets = [n for n in (arguments.max_prompt_tokens, positions) if n is not None]
    return Encoder(
        model.tokenizer,
        model.config,
        max_prompt_tokens=min(budgets) if budgets else None,
        overflow="error" if model.config.overflow == "error" else "truncate",
        on_unusable=arguments.on_unusable,
        positions=positions,
    )


def _compression(model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]) -> Parts:
    if arguments.span_weight and model.config.memory_form != "spans":
        raise SettingsError(
            "span_weight is for memory_form: spans, whose slots stand for spans of the text; "
            f"this model has {model.config.memory_form}"
        )
    objective = CompressionObjective(
        model,
        alignment_weight=arguments.alignment_weight or 0.0,
        alignment_reduction=arguments.alignment_reduction,
        span_weight=arguments.span_weight,
        distillation_weight=arguments.distillation_weight or 0.0,
        train_backbone=arguments.train_backbone,
    )
    collator: Callable[..., Any] = CompressionCollator(
        _encoder(model, arguments),
        asking_of(model, arguments, data),
        distillation_of(model, arguments, data),
    )
    curriculum = Curriculum(model.config, arguments.curriculum)
    if curriculum.varies or not isinstance(data[0][0], PretrainingExample):
        longest = model.config.document_length
        collator = CurriculumCollator(collator, curriculum, model.tokenizer, longest)
    return Parts(objective, _with_refusals(collator, arguments, data))


def _text(model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]) -> Parts:
    objective = TextObjective(model, train_backbone=arguments.train_backbone)
    asking = asking_of(model, arguments, data)
    collator = DrawingCollator(TextCollator(_encoder(model, arguments), asking))
    return Parts(objective, _with_refusals(collator, arguments, data))


def _with_refusals(
    collator: Callable[..., Any], arguments: ClaraTrainingArguments, data: Sequence[Any]
) -> Callable[..., Any]:
    """The collator, some of whose examples have no answer if the settings say so."""
    if not arguments.unanswerable:
        return collator
    return UnanswerableCollator(collator, arguments.unanswerable, data[0])


def asking_of(model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]) -> Asking:
    """How examples with many questions are read.

    Raises:
        SettingsError: the data has such examples, and the attention cannot compute them.
    """
    attention, most = model.config.attention, arguments.questions_per_document
    many = any(part is not None and isinstance(part[0], DocumentQuestions) for part in data)
    if many and most > 1 and attention == "flash_attention_2":
        raise SettingsError(
            f"attention {attention} cannot ask several questions of one memory: set attention to "
            "sdpa, or questions_per_document to 1"
        )
    return Asking(most, switching_lengths(model.backbone))


def _end_to_end(model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]) -> Parts:
    from clara.training.end_to_end import EndToEndObjective
    from clara.training.selection import SelectionSchedule

    schedule = SelectionSchedule(model.config, arguments.selection)
    candidates = _candidates(model, arguments, data)
    objective = EndToEndObjective(
        model,
        candidates,
        top_k=model.config.top_k,
        schedule=schedule,
        negatives=arguments.negatives,
        negatives_every=arguments.negatives_every,
        train_query_reasoner=arguments.train_query_reasoner,
    )
    parts = _ranking(
        objective,
        candidates,
        _encoder(model, arguments),
        model.config.top_k,
        any_candidate=bool(arguments.negatives),
    )
    return replace(parts, collator=_with_refusals(parts.collator, arguments, data))


def _contrastive(model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]) -> Parts:
    from clara.training.contrastive import ContrastiveObjective

    candidates = _candidates(model, arguments, data)
    objective = ContrastiveObjective(
        model,
        candidates,
        temperature=model.config.temperature,
        in_batch_negatives=arguments.in_batch_negatives,
    )
    return _ranking(objective, candidates, _encoder(model, arguments), None, need_positives=True)


def _ranking(
    objective: Objective,
    candidates: Mapping[int, CandidateMemory],
    encoder: Encoder,
    top_k: int | None,
    **options: bool,
) -> Parts:
    """An objective over candidates, with the collator of their rates."""
    by_rate = {
        rate: RankingCollator(encoder, top_k, rate=rate, unusable=memory.unusable, **options)
        for rate, memory in candidates.items()
    }
    truncated = max(memory.truncated for memory in candidates.values())  # the same at all rates
    collator: Callable[..., Any] = RatesCollator(by_rate)
    if len(by_rate) == 1:
        (collator,) = by_rate.values()
    return Parts(objective, collator, {"candidate truncated": truncated})


def _candidates(
    model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]
) -> dict[int, CandidateMemory]:
    """The memory of every candidate in the data by rate, and the query reasoner made ready."""
    from clara.training.candidates import CandidateMemory, index_folders

    if arguments.train_backbone:
        raise SettingsError(
            "train_backbone changes the compressor, which is frozen end to end and in "
            "contrastive training"
        )
    start_query_reasoner(model, arguments.query_reasoner)
    rates = chosen_rates(model.config, "candidate_rates", arguments.candidate_rates)
    root = arguments.candidate_index or Path(arguments.output_dir) / "candidates"
    made = {
        rate: CandidateMemory(model, path, rate=rate, overflow=model.config.overflow)
        for rate, path in index_folders(root, rates).items()
    }
    for memory in made.values():
        memory.add(
            text for part in data if part is not None for row in part for text in row.documents
        )
        if memory.unusable and (arguments.on_unusable == "error" or not len(memory.index)):
            raise ValueError(f"candidates that are empty or too long: {len(memory.unusable)}")
    return made


def start_query_reasoner(model: Clara, source: str | None) -> bool:
    """Copy the compressor's weights to the query reasoner, where it is to start from them.

    Args:
        source: "compressor", "saved", or None for the compressor if the query reasoner was never
            trained, which is to say that it changes nothing.

    Returns:
        Whether they were copied.
    """
    reasoner = model.adapters.parameters(QUERY_REASONER)
    untrained = all(not value.any() for name, value in reasoner.items() if ".lora_B." in name)
    wanted = source == "compressor" or (source is None and untrained)
    if wanted:
        with torch.no_grad():
            model.copy_compressor()
    return wanted


class StageParts(NamedTuple):
    """How a stage reads its examples, and what it trains on them."""

    parse: Callable[[Fields], Any]
    assemble: Callable[[Clara, ClaraTrainingArguments, Sequence[Any]], Parts]


ASSEMBLY: dict[Stage, StageParts] = {
    "text": StageParts(answers_example, _text),
    "pretrain": StageParts(pretraining_example, _compression),
    "instruct": StageParts(answers_example, _compression),
    "end-to-end": StageParts(ranking_example, _end_to_end),
    "contrastive": StageParts(contrastive_example, _contrastive),
}
