"""The suites of `clara evaluate` that are made of probes, for a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clara.cli.errors import CommandError
from clara.terminal.printing import say

if TYPE_CHECKING:
    from clara.evaluation.dataset import Dataset
    from clara.model.clara import Clara

_TEMPLATE_TOKENS = 128
"""Room for the words of the prompt and the format of the chat around them."""


def probe_dataset(
    suite: str, limit: int | None, seed: int, model: Clara, max_new_tokens: int
) -> Dataset:
    """The questions of a suite of probes, as far as the backbone can read their documents' text.

    What does not fit is left out with a line on standard error.

    Args:
        limit: questions under each condition.

    Raises:
        CommandError: nothing fits.
    """
    from clara.backbone.packed_forward import positions_of
    from clara.evaluation.budget import token_count
    from clara.evaluation.probes import fitting, joined
    from clara.evaluation.suites import probes

    def count(text: str) -> int:
        return token_count(model.tokenizer, text)

    conditions = probes(suite, limit, seed=seed, count_tokens=count)
    positions = positions_of(model.backbone)
    if positions is not None:
        fit = fitting(conditions, count, positions - max_new_tokens - _TEMPLATE_TOKENS)
        kept = {each.name for each in fit}
        left_out = [each.name for each in conditions if each.name not in kept]
        if left_out:
            more = len(left_out) - 1
            beside = f" and {more} more condition{'s' * (more > 1)}" if more else ""
            say(
                f"left out: {left_out[0]}{beside}, whose text does not fit the backbone's "
                f"{positions} positions"
            )
        conditions = fit
    if not conditions:
        raise CommandError(f"--suite {suite}: no text fits the backbone's {positions} positions")
    return joined(conditions)


def most_candidates(dataset: Dataset) -> int:
    """The documents that have to be read for all candidates of any question to be read."""
    return max(len(question.candidates or ()) for question in dataset.questions)


def probes_markdown(summary: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """The scores of a run by condition; empty where there is no probe in it.

    Args:
        remarks: by entry.
    """
    from clara.evaluation.probes import conditions_markdown

    entries = summary["entries"]
    return conditions_markdown(
        {each["entry"]: each["by_condition"] for each in entries if each.get("by_condition")},
        remarks,
    )
