"""Whether a system says so when no document holds the answer, and only then.

No recipe trains on questions without an answer. So a model has not learnt to refuse, unless it was
trained with the setting `unanswerable`, and the figures say what its backbone does by itself.
"""

from __future__ import annotations

import re

from clara.data.matching import normalised
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.probes.conditions import Condition, ProbeSettings, condition, question_id
from clara.evaluation.probes.facts import facts_of

_ONE_WORD = "none nothing unknown na nil null unanswerable unclear unspecified unavailable noanswer"
WORDS = frozenset(_ONE_WORD.split())
"""A refusal if the answer, normalised as for exact match, is one of these and nothing else."""

PHRASES = (
    r"no (?:answer|information|mention|data|details|evidence|such information)",
    r"not (?:\w+ )?(?:mentioned|provided|given|specified|stated|available|included|listed|found"
    r"|known|contained|possible|present|disclosed|applicable|sure|enough information)",
    r"(?:insufficient|lack of) (?:information|data|context|background)",
    r"(?:can ?not|can't|could not|couldn't|unable to) (?:be )?"
    r"(?:answer|determine|find|say|tell|provide|identify)\w*",
    r"(?:do not|does not|did not|don't|doesn't|didn't)"
    r" (?:know|say|mention|state|contain|provide|specify|answer|tell|have (?:enough|any) \w+)",
    r"(?:is|are|was) (?:unknown|unclear|missing|unspecified|unavailable)",
)
"""A refusal if one of these patterns is anywhere in the answer, letter case aside."""

_PHRASE = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES))


def is_refusal(answer: str) -> bool:
    """Whether an answer says that there is none: it is empty, one of `WORDS`, or has one of
    `PHRASES` in it.

    This is a rule about English words. It takes "The capital is not mentioned." for a refusal, and
    "Not" for none; an answer that says both, "It is not stated, but Paris", counts as a refusal.

    >>> is_refusal("The background does not mention it."), is_refusal("Paris")
    (True, False)
    """
    plain = normalised(answer)
    if not plain or plain in WORDS:
        return True
    text = " ".join(answer.casefold().replace("’", "'").split())
    return _PHRASE.search(text) is not None


def refusal_conditions(settings: ProbeSettings) -> list[Condition]:
    """The same questions without the document that holds the answer, and with it.

    A refusal is right under the first condition and wrong under the second, so that a system that
    always refuses is seen.

    Returns:
        "refusal/absent" and "refusal/present".
    """
    facts = facts_of(settings)
    asked = facts.drawn("refusal", settings.questions)
    count = settings.candidates
    absent, present = [], []
    for number, fact in enumerate(asked):
        others = facts.distractors(fact, count)
        place = number % count
        with_gold = (*others[:place], fact.positives[0], *others[place + 1 :])
        question = facts.question(fact)
        absent.append(
            EvaluatedQuestion(
                id=question_id("refusal/absent", number),
                question=question,
                golden_answers=(),
                candidates=tuple(others),
                answerable=False,
            )
        )
        present.append(
            EvaluatedQuestion(
                id=question_id("refusal/present", number),
                question=question,
                golden_answers=(fact.answer,),
                positives=fact.positives[:1],
                candidates=with_gold,
            )
        )
    return [
        condition("refusal/absent", absent, facts.documents),
        condition("refusal/present", present, facts.documents),
    ]
