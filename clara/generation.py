"""Batched generation from prompts with memory slots."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from clara.prompt_prefix import can_continue, prefix_ids
from clara.prompts import Prompt
from clara.rotary import batching_key, recomputed_at_switch

if TYPE_CHECKING:
    from clara.core import ClaraCore


def generation_settings(
    model: ClaraCore, given: GenerationConfig | None, max_new_tokens: int | None
) -> GenerationConfig:
    """The settings to generate with: greedy unless `given` says otherwise.

    Raises:
        ValueError: `max_new_tokens` is not positive, or several answers to a question are asked.
    """
    settings = GenerationConfig(do_sample=False) if given is None else copy.deepcopy(given)
    if (settings.num_return_sequences or 1) != 1:
        raise ValueError(
            "generation_config.num_return_sequences must be 1, "
            f"got {settings.num_return_sequences}: there is one answer to a question"
        )
    settings.return_dict_in_generate = False
    if max_new_tokens is not None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        settings.max_new_tokens = max_new_tokens
    elif settings.max_new_tokens is None:
        settings.max_new_tokens = 128
    stored = model.backbone.generation_config
    if settings.eos_token_id is None:
        settings.eos_token_id = stored.eos_token_id or model.tokenizer.eos_id
    if settings.pad_token_id is None:
        end = settings.eos_token_id
        settings.pad_token_id = end[0] if isinstance(end, list) else end
    return settings


def check_budget(
    model: ClaraCore,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    budget: int | None,
) -> None:
    """Refuse prompts that are longer than the budget or leave no room for the answer.

    Raises:
        ValueError: names the question, its tokens and the budget.
    """
    window = getattr(model.backbone.config, "max_position_embeddings", None)
    room = None if window is None else max(window - (settings.max_new_tokens or 0), 0)
    limits = [limit for limit in (budget, room) if limit is not None]
    if not limits:
        return
    for row, prompt in enumerate(prompts):
        if len(prompt.ids) > min(limits):
            origin = (
                "max_prompt_tokens"
                if budget == min(limits)
                else f"the backbone's {window} positions less {settings.max_new_tokens} new tokens"
            )
            raise ValueError(
                f"the prompt of question {row} has {len(prompt.ids)} tokens, the budget is "
                f"{min(limits)} ({origin}); use fewer documents or a shorter question"
            )


def generation_inputs(
    model: ClaraCore,
    backbone: PreTrainedModel,
    prompts: Sequence[Prompt],
    memory: Sequence[Tensor],
    settings: GenerationConfig,
    adapter: str | None,
) -> dict[str, Any]:
    """Arguments of `generate`: embeddings `[B, L, H]` and attention mask `[B, L]` of prompts with
    their memory, and a cache with what they all begin with, where there is such a thing.

    Shorter prompts are padded on the left, but for the part that is in the cache.

    Args:
        adapter: the one that is active in `backbone`.
    """
    cache, prefix = None, prefix_ids(prompts) if can_continue(backbone, settings) else []
    if prefix:
        cache = model.prompt_prefixes.cache(backbone, adapter, prefix, len(prompts))
    start = 0 if cache is None else len(prefix)
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
def generate(
    model: ClaraCore,
    prompts: Sequence[Prompt],
    memory: Sequence[Tensor],
    settings: GenerationConfig,
    *,
    batch_size: int,
    adapter: str | None,
) -> list[str]:
    """Answers to prompts; `memory[i]` is `[slots of prompt i, H]`.

    Prompts of like length are batched together; answers come back in the given order.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    answers = [""] * len(prompts)
    for rows in _batches(model.backbone, prompts, settings, batch_size):
        with model.generating(adapter) as backbone, recomputed_at_switch(backbone):
            inputs = generation_inputs(
                model,
                backbone,
                [prompts[row] for row in rows],
                [memory[row] for row in rows],
                settings,
                adapter,
            )
            output: Any = backbone.generate(**inputs, generation_config=settings)
        for row, ids in zip(rows, output.tolist(), strict=True):
            answers[row] = model.tokenizer.decode(ids)
    return answers


def _batches(
    backbone: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    batch_size: int,
) -> Iterator[list[int]]:
    """Rows of prompts that are answered together, longest first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row].ids)):
        key = batching_key(backbone, len(prompts[row].ids), settings.max_new_tokens)
        groups.setdefault(key, []).append(row)
    for rows in groups.values():
        for first in range(0, len(rows), batch_size):
            yield rows[first : first + batch_size]


def stream(
    model: ClaraCore,
    prompt: Prompt,
    memory: Tensor,
    settings: GenerationConfig,
    *,
    adapter: str | None,
) -> Iterator[str]:
    """Pieces of the answer as they are generated; an error in generation is raised here.

    Generation stops when the iterator is closed.
    """
    if model.adapters.held_here:
        raise RuntimeError("cannot stream while this thread holds the model's adapters")
    streamer = TextIteratorStreamer(model.tokenizer.tokenizer, skip_special_tokens=True)
    errors: list[BaseException] = []
    closed = Event()

    def work() -> None:
        try:
            with (
                torch.no_grad(),
                model.generating(adapter) as backbone,
                recomputed_at_switch(backbone),
            ):
                inputs = generation_inputs(model, backbone, [prompt], [memory], settings, adapter)
                backbone.generate(
                    **inputs,
                    generation_config=settings,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_StopWhen(closed)]),
                )
        except BaseException as error:
            errors.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        closed.set()
        worker.join()
    if errors:
        raise errors[0]


class _StopWhen(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
