"""Batched generation from prompts with memory slots."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from clara.backbone.decoder_layout import Undecodable
from clara.backbone.generation_settings import (
    answer_reader,
    counts_the_prompt,
    generation_settings,
    most_new_tokens,
    settings_for,
    takes_one_question,
)
from clara.backbone.packed_forward import positions_of
from clara.backbone.rotary import batching_key, recomputed_at_switch, switching_lengths
from clara.backbone.stopping import AnswerReader, StopTexts, StopWhen, TokenQueue
from clara.errors.checks import as_integer
from clara.model.decoding import decode, merged_settings, weights_for
from clara.model.prompt_prefix import PromptPrefix, can_continue, prefix_ids
from clara.text.prompts import Prompt

if TYPE_CHECKING:
    from clara.model.forward import ClaraCore


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What `generate` and `stream` are to answer, and how.

    Attributes:
        prompts: one for each question.
        memory: `[slots of prompt i, H]` for each of them.
        settings: see `generation_settings`.
        adapter: the one to generate with; None is the bare backbone.
        prefix: what all prompts begin with, read before with the same adapter; shorter than each
            of them, and without memory. None: it is found, see `clara.model.prompt_prefix`.
    """

    prompts: list[Prompt]
    memory: list[Tensor]
    settings: GenerationConfig
    adapter: str | None
    prefix: PromptPrefix | None = None


def prepare(
    model: ClaraCore,
    prompts: list[Prompt],
    memory: Sequence[Tensor],
    adapter: str | None,
    *,
    generation_config: GenerationConfig | None,
    max_new_tokens: int | None,
    max_prompt_tokens: int | None,
    streamed: bool = False,
) -> Task:
    """Check settings and prompts, and bring the memory into place.

    Args:
        memory: `[slots, H]` for each prompt.
        streamed: refuse what `stream` cannot do.

    Raises:
        TypeError, ValueError: a setting is refused, or a prompt is over the budget.
    """
    backbone = model.backbone
    settings = generation_settings(backbone, model.tokenizer, generation_config, max_new_tokens)
    if streamed and (settings.num_beams or 1) > 1:
        raise ValueError(
            "stream cannot use beam search: generation_config.num_beams must be 1, got "
            f"{settings.num_beams}; generate can"
        )
    _check_budget(backbone, prompts, settings, max_prompt_tokens)
    return Task(prompts, [each.to(model.device) for each in memory], settings, adapter)


def _check_budget(
    backbone: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    budget: int | None,
) -> None:
    """Refuse prompts that are longer than the budget or leave no room for the answer.

    Raises:
        TypeError: `budget` is no integer.
        ValueError: names the question, its tokens and the budget.
    """
    if budget is not None:
        budget = as_integer(budget, "max_prompt_tokens", least=1)
    window = positions_of(backbone)
    longest = settings.max_length
    if window is not None and longest is not None and longest > window:
        raise ValueError(
            f"generation_config.max_length {longest} is above the backbone's {window} positions"
        )
    limits = {"max_prompt_tokens": budget}
    if longest is not None:
        limits[
            f"generation_config.max_length {longest} counts the prompt too and leaves at least one "
            "token to the answer; max_new_tokens counts the answer alone"
        ] = longest - 1
    elif window is not None:
        new = settings.max_new_tokens or 0
        limits[f"the backbone's {window} positions less {new} new tokens"] = max(window - new, 0)
    given = {origin: limit for origin, limit in limits.items() if limit is not None}
    if not given:
        return
    origin, least = min(given.items(), key=lambda item: item[1])
    for row, prompt in enumerate(prompts):
        if len(prompt.ids) > least:
            raise ValueError(
                f"the prompt of question {row} has {len(prompt.ids)} tokens, the budget is "
                f"{least} ({origin}); use fewer documents or a shorter question"
            )


def generation_inputs(
    model: ClaraCore,
    backbone: PreTrainedModel,
    prompts: Sequence[Prompt],
    memory: Sequence[Tensor],
    settings: GenerationConfig,
    adapter: str | None,
    prefix: PromptPrefix | None = None,
) -> dict[str, Any]:
    """Arguments of `generate`: embeddings `[B, L, H]` and attention mask `[B, L]` of prompts with
    their memory, and a cache with what they all begin with, where there is such a thing.

    Shorter prompts are padded on the left, but for the part that is in the cache.

    Args:
        adapter: the one that is active in `backbone`.
        prefix: as in `Task`.
    """
    cache, shared = None, [] if prefix is None else prefix.ids
    if prefix is not None:
        cache = prefix.cache(backbone, len(prompts))
    elif can_continue(backbone, settings) and (shared := prefix_ids(prompts)):
        cache = model.prompt_prefixes.cache(backbone, adapter, shared, len(prompts))
    start = 0 if cache is None else len(shared)
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask[:, :start] = 1
    for row, prompt in enumerate(prompts):
        rest = torch.tensor(prompt.ids[start:])
        ids[row, longest - len(rest) :] = rest
        mask[row, longest - len(rest) :] = 1
    inputs: dict[str, Any] = {
        "inputs_embeds": model.embed(ids.to(model.device), torch.cat(list(memory))),
        "attention_mask": mask.to(model.device),
    }
    if cache is not None:
        inputs["past_key_values"] = cache
    return inputs


@torch.no_grad()
def generate(model: ClaraCore, task: Task, *, batch_size: int) -> list[str]:
    """Answers to all prompts.

    Prompts of like length are batched together; answers come back in the given order.
    """
    batch_size = as_integer(batch_size, "batch_size", least=1)
    if takes_one_question(model.backbone, task.settings):
        batch_size = 1
    reader = answer_reader(model.backbone, model.tokenizer, task.settings)
    answers = [""] * len(task.prompts)
    for rows in _batches(model.backbone, task.prompts, task.settings, batch_size):
        output = _generate_rows(model, task, rows, _criteria(reader))
        for row, ids in zip(rows, output.tolist(), strict=True):
            answers[row] = reader.text(ids)
    return answers


def _batches(
    backbone: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    batch_size: int,
) -> Iterator[list[int]]:
    """Rows of prompts that are answered together, longest first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    bounds, counted = switching_lengths(backbone), counts_the_prompt(settings)
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row].ids)):
        length = len(prompts[row].ids)
        limit = most_new_tokens(settings, length)
        key = (length if counted else 0, *batching_key(bounds, length, limit))
        groups.setdefault(key, []).append(row)
    for rows in groups.values():
        for first in range(0, len(rows), batch_size):
            yield rows[first : first + batch_size]


def _generate_rows(
    model: ClaraCore,
    task: Task,
    rows: Sequence[int],
    criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Token ids `[len(rows), new tokens]` of the answers to some of the prompts, in one batch."""
    prompts = [task.prompts[row] for row in rows]
    memory = [task.memory[row] for row in rows]
    with model.generating(task.adapter) as backbone, recomputed_at_switch(backbone):
        inputs = generation_inputs(
            model, backbone, prompts, memory, task.settings, task.adapter, task.prefix
        )
        settings = settings_for(task.settings, len(prompts[0].ids))
        return generated(backbone, inputs, settings, criteria, streamer)


def generated(
    backbone: PreTrainedModel,
    inputs: dict[str, Any],
    settings: GenerationConfig,
    criteria: StoppingCriteriaList,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Token ids that follow prompts: by our own loop where `weights_for` finds that it can, else by
    transformers' `generate`.

    Args:
        inputs: see `generation_inputs`.
    """
    merged = merged_settings(backbone, settings)
    try:
        weights = weights_for(backbone, merged)
    except Undecodable as reason:
        _log.debug("transformers' generate answers, not our decoder: %s", reason)
    else:
        return decode(backbone, weights, merged, **inputs, criteria=criteria, streamer=streamer)
    try:
        made: Any = backbone.generate(
            **inputs, generation_config=settings, stopping_criteria=criteria, streamer=streamer
        )
    except IndexError as error:
        # transformers 5.0 looks at the last token id of the prompt; there is none.
        if takes_one_question(backbone, settings):
            raise ValueError(
                "generation_config.prompt_lookup_num_tokens cannot be used with memory in "
                f"transformers {transformers.__version__}; leave it out, or update transformers"
            ) from error
        raise
    ids: Tensor = made
    return ids


def _criteria(reader: AnswerReader, *others: StoppingCriteria) -> StoppingCriteriaList:
    texts = [StopTexts(reader)] if reader.stops else []
    return StoppingCriteriaList([*texts, *others])


def stream(model: ClaraCore, task: Task) -> Iterator[str]:
    """Pieces of the answer to the one prompt; an error in generation is raised here.

    Generation stops when the iterator is closed.
    """
    if model.adapters.held_here:
        raise RuntimeError("cannot stream while this thread holds the model's adapters")
    reader = answer_reader(model.backbone, model.tokenizer, task.settings)
    tokens = TokenQueue()
    errors: list[BaseException] = []
    closed = Event()

    def work() -> None:
        try:
            criteria = _criteria(reader, StopWhen(closed.is_set))
            with torch.no_grad():
                _generate_rows(model, task, [0], criteria, tokens)
        except BaseException as error:
            errors.append(error)
            tokens.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        ids, given = [], ""
        for step in tokens:
            ids += step
            begun = reader.begun(ids)
            if len(begun) > len(given) and begun.startswith(given):
                yield begun[len(given) :]
                given = begun
        rest = "" if errors else reader.text(ids)[len(given) :]
        if rest:
            yield rest
    finally:
        closed.set()
        worker.join()
    if errors:
        raise errors[0]
