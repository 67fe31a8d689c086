"""Greedy answers to prompts, the same for all systems that one model answers for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara.backbone.packed_forward import positions_of
from clara.data.records import Document
from clara.errors import shortened
from clara.evaluation.errors import EvaluationError
from clara.model import generation
from clara.model.answers import Clock
from clara.model.clara import Clara
from clara.text.prompts import Prompt, build_text_prompt

MAX_NEW_TOKENS = 32
BATCH = 8


def answers_to(
    model: Clara,
    questions: Sequence[str],
    prompts: Sequence[Prompt],
    memory: Sequence[Tensor] | None,
    adapter: str | None,
    max_new_tokens: int,
) -> tuple[list[str], float]:
    """Greedy answers, and the milliseconds that each took on average.

    Args:
        questions: of the prompts, for messages.
        memory: `[slots, H]` for each prompt; None for prompts without memory.
        adapter: the one to generate with; None is the bare backbone.

    Raises:
        EvaluationError: a prompt does not fit the backbone's positions; names its question.
    """
    check_lengths(model, questions, prompts, max_new_tokens)
    if memory is None:
        none = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
        memory = [none] * len(prompts)
    clock = Clock(model.device)
    task = generation.prepare(
        model,
        list(prompts),
        memory,
        adapter=adapter,
        generation_config=None,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=None,
    )
    texts = generation.generate(model, task, batch_size=BATCH)
    clock.lap("generate")
    return [text.strip() for text in texts], clock.laps["generate"] / max(len(prompts), 1)


def text_prompts(
    model: Clara, questions: Sequence[str], texts: Sequence[Sequence[str]]
) -> list[Prompt]:
    """The prompts of plain-text answering, one for each question."""
    template = model.config.prompt
    return [
        build_text_prompt(model.tokenizer, template, each, question)
        for question, each in zip(questions, texts, strict=True)
    ]


def check_texts(
    model: Clara,
    questions: Sequence[str],
    documents: Sequence[Sequence[Document]],
    max_new_tokens: int,
) -> None:
    """Refuse documents whose text does not fit, before a run has spent hours on others.

    Raises:
        EvaluationError: a prompt does not fit the backbone's positions; names its question.
    """
    texts = [[document.text for document in each] for each in documents]
    check_lengths(model, questions, text_prompts(model, questions, texts), max_new_tokens)


def check_lengths(
    model: Clara, questions: Sequence[str], prompts: Sequence[Prompt], max_new_tokens: int
) -> None:
    """Refuse prompts that do not fit the backbone's positions.

    Raises:
        EvaluationError: names the question.
    """
    positions = positions_of(model.backbone)
    for question, prompt in zip(questions, prompts, strict=True):
        if positions is not None and len(prompt.ids) + max_new_tokens > positions:
            raise EvaluationError(
                f"question {shortened(question, 80)!r}: its prompt has {len(prompt.ids)} tokens, "
                f"and the backbone has {positions} positions for it and {max_new_tokens} new "
                "tokens; use a smaller top_k"
            )
