"""Exact copying of numbers, dates and names out of a document.

A summary may keep the sense of "4,853 km" and lose a digit. So these answers show what exact match
over all kinds of answers hides.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from clara.data.records import Document
from clara.evaluation.answer_types import answer_type
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.probes import words
from clara.evaluation.probes.conditions import Condition, ProbeSettings, condition, question_id
from clara.evaluation.probes.facts import Facts, facts_of

REPEATED: dict[str, tuple[str, str, Callable[[random.Random], str]]] = {
    "number": ("The number is {value}.", "Repeat the number exactly as written.", words.number),
    "date": ("The date is {value}.", "Repeat the date exactly as written.", words.date),
    "name": (
        "The name of the guest is {value}.",
        "Repeat the name of the guest exactly as written.",
        words.name,
    ),
}
"""A sentence with a value of each kind, the question for it, and what draws the value."""


def copying_conditions(settings: ProbeSettings) -> list[Condition]:
    """Questions for values of each kind, each with the one document that holds it.

    Returns:
        "copying/field/number", a field of the World Factbook whose value is of the kind by the
        rules of `clara.evaluation.answer_types`, and "copying/repeat/number", an
        invented value among sentences that say nothing; and so for dates and names.
    """
    facts = facts_of(settings)
    conditions = [_fields(settings, facts, kind) for kind in REPEATED]
    return conditions + [_repeated(settings, kind) for kind in REPEATED]


def _fields(settings: ProbeSettings, facts: Facts, kind: str) -> Condition:
    name = f"copying/field/{kind}"
    known = [fact for fact in facts.asked if answer_type(fact.answer, facts.question(fact)) == kind]
    asked = facts.drawn(name, settings.questions, known)
    questions = [
        EvaluatedQuestion(
            id=question_id(name, number),
            question=facts.question(fact),
            golden_answers=(fact.answer,),
            positives=fact.positives[:1],
            candidates=fact.positives[:1],
        )
        for number, fact in enumerate(asked)
    ]
    return condition(name, questions, facts.documents)


def _repeated(settings: ProbeSettings, kind: str) -> Condition:
    name = f"copying/repeat/{kind}"
    sentence, question, draw_value = REPEATED[kind]
    questions, documents = [], []
    for number in range(settings.questions):
        identifier = question_id(name, number)
        draw = random.Random(f"{settings.seed}/{identifier}")
        value = draw_value(draw)
        told = [draw.choice(words.FILLER) for _ in range(4)]
        told.insert(draw.randrange(5), sentence.format(value=value))
        documents.append(Document(f"{identifier}/0", " ".join(told)))
        questions.append(
            EvaluatedQuestion(
                id=identifier,
                question=question,
                golden_answers=(value,),
                positives=(documents[-1].id,),
                candidates=(documents[-1].id,),
            )
        )
    return condition(name, questions, documents)
