"""What the chain did, as a page beside the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bench.learning.stages import BATCH, STEPS
from clara.reports.tables import Table
from clara.terminal.printing import one_line
from clara.training.folder import describe

from .chain import BASELINE, Chain

_TRAINS = {
    "text": "the backbone's own weights, on text",
    BASELINE: "LoRA, on text: the baseline",
    "instruct": "compressor and generator, on memory",
    "end-to-end": "query reasoner and generator, on memory that is ranked",
}


def page(
    chain: Chain, name: str, minutes: Mapping[str, float], environment: Mapping[str, Any]
) -> str:
    """Markdown: what was trained and how long it took, what was evaluated, and where.

    Args:
        name: of the size.
        minutes: of the steps of `Chain.steps`, each in the call that finished it.
        environment: see `bench.environment`.
    """
    about = (
        "What it measured is in [report/report.html](report/report.html): CLaRa beside text on "
        "held-out sheets of facts, which `bench/README.md` describes."
        if chain.size.proves
        else "This checks that everything runs, up to [report/report.html](report/report.html); "
        "its figures mean nothing."
    )
    summary = chain.summary()
    known = ", ".join(
        f"{key} {one_line(str(environment[key]))}"
        for key in ("device", "threads", "torch", "transformers", "clara", "commit", "date")
        if environment.get(key) is not None
    )
    return "\n".join(
        [
            f"# The whole chain, size {name}",
            "",
            about,
            "",
            _trainings(chain).markdown(level=0),
            f"{summary['questions']} questions were evaluated with {summary['documents']} sheets.",
            "",
            _minutes(minutes).markdown(level=0),
            f"Seed {chain.seed}; {known}.",
            "",
            "```",
            shlex.join(["clara", *chain.evaluate_command()]),
            shlex.join(["clara", *chain.report_command()]),
            "```",
            "",
        ]
    )


def _trainings(chain: Chain) -> Table:
    rows = []
    for stage in ("text", BASELINE, *list(STEPS)[1:]):
        found = describe(chain.learning / stage)
        hours = found["hours"]
        taken = "" if hours is None else f"{60 * hours:.1f}"
        rows.append((stage, _TRAINS[stage], str(found["steps"]), str(BATCH), taken))
    return Table("", ("training", "trains", "steps", "records a step", "minutes"), rows)


def _minutes(minutes: Mapping[str, float]) -> Table:
    rows = [(step, f"{taken:.1f}") for step, taken in minutes.items()]
    return Table("", ("step", "minutes of the call that finished it"), rows)
