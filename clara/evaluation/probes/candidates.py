"""Probes that vary which documents stand beside the one with the answer, and where it stands."""

from __future__ import annotations

import random

from clara.data.factbook.asking import Asked
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.probes.conditions import Condition, ProbeSettings, condition, question_id
from clara.evaluation.probes.facts import Facts, facts_of


def distractor_conditions(settings: ProbeSettings) -> list[Condition]:
    """The same questions with more and more documents that do not hold the answer.

    Those of a smaller number are among those of a larger one. Where the document with the answer
    stands is drawn.

    Returns:
        "distractors/1" and so on.
    """
    facts = facts_of(settings)
    asked = facts.drawn("distractors", settings.questions)
    beside = [facts.distractors(fact, max(settings.distractors)) for fact in asked]
    conditions = []
    for count in settings.distractors:
        name = f"distractors/{count}"
        questions = []
        for number, (fact, others) in enumerate(zip(asked, beside, strict=True)):
            identifier = question_id(name, number)
            place = random.Random(f"{settings.seed}/{identifier}").randrange(count + 1)
            questions.append(_question(facts, identifier, fact, others[:count], place))
        conditions.append(condition(name, questions, facts.documents))
    return conditions


def order_conditions(settings: ProbeSettings) -> list[Condition]:
    """The same questions and documents, with the one that holds the answer at each position.

    Returns:
        "order/1", where it is read first, and so on.
    """
    facts = facts_of(settings)
    asked = facts.drawn("order", settings.questions)
    beside = [facts.distractors(fact, settings.positions - 1) for fact in asked]
    conditions = []
    for position in range(1, settings.positions + 1):
        name = f"order/{position}"
        questions = [
            _question(facts, question_id(name, number), fact, others, position - 1)
            for number, (fact, others) in enumerate(zip(asked, beside, strict=True))
        ]
        conditions.append(condition(name, questions, facts.documents))
    return conditions


def _question(
    facts: Facts, identifier: str, fact: Asked, others: list[str], place: int
) -> EvaluatedQuestion:
    gold = fact.positives[0]
    return EvaluatedQuestion(
        id=identifier,
        question=facts.question(fact),
        golden_answers=(fact.answer,),
        positives=(gold,),
        candidates=(*others[:place], gold, *others[place:]),
    )
