"""What to choose when: the best entry within a limit of what an answer may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clara.evaluation.report.names import with_interval
from clara.evaluation.report.records import Entry, Run
from clara.reports.tables import Table, amount

_OF_TEXT = ("text", "text-tuned")
_SHARES = ((1.0, "as {}"), (0.5, "half of that"), (0.25, "a quarter"), (0.1, "a tenth"))


def choice_table(run: Run) -> Table:
    """For limits of prompt tokens and of time, the entry with the most exact answers.

    Limits are shares of what the best entry takes that reads text. Left out is what nobody can
    choose or should: controls, entries that were given the gold document, untrained adapters, and
    answers that do not come from memory.

    Returns:
        A table without rows if no entry reads text, or nothing else can be chosen.
    """
    entries = [entry for entry in run.entries if _can_be_chosen(entry)]
    texts = [entry for entry in entries if entry.system in _OF_TEXT]
    if not texts or len(texts) == len(entries):
        return Table(_TITLE, _HEAD, ())
    text = max(texts, key=_mean)
    rows = []
    for cost, shown in _COSTS:
        whole = cost(text)
        if whole is None:
            continue
        for share, words in _SHARES:
            within = [entry for entry in entries if _at_most(cost(entry), share * whole)]
            limit = f"at most {shown(share * whole)}, {words.format(text.name)}"
            rows.append((limit, *_cells(within)))
    note = (
        "The entry with the most exact answers among those that stay within a limit. Entries that "
        "were given the gold document are left out, as nobody has such a ranker, and so is what "
        "does not answer from memory. Where intervals overlap, another may be as good."
    )
    return Table(_TITLE, _HEAD, rows, 2, note=note)


def _can_be_chosen(entry: Entry) -> bool:
    return (
        entry.control is None
        and entry.exact_match is not None
        and entry.ranker != "gold"
        and entry.trained is not False
        and entry.reads_memory is not False
    )


def _cells(entries: Sequence[Entry]) -> tuple[str, ...]:
    if not entries:
        return "none", "", "", "", ""
    best = max(entries, key=_mean)  # the first of equals
    time = best.total_ms
    return (
        best.name,
        with_interval(best.exact_match, best.questions),
        "" if best.prompt_tokens is None else f"{best.prompt_tokens:,.0f}",
        "" if time is None else amount(time.median / 1000, "s"),
        "" if best.bytes_per_document is None else amount(best.bytes_per_document, "bytes"),
    )


def _mean(entry: Entry) -> float:
    return entry.exact_match.mean if entry.exact_match else 0.0


def _at_most(cost: float | None, limit: float) -> bool:
    return cost is not None and cost <= limit


def _milliseconds(entry: Entry) -> float | None:
    return None if entry.total_ms is None else entry.total_ms.median


def _prompt(entry: Entry) -> float | None:
    return entry.prompt_tokens


_TITLE = "What to choose when"
_HEAD = ("limit", "entry", "exact match", "prompt tokens", "time", "bytes per document")
_COSTS: tuple[tuple[Callable[[Entry], float | None], Callable[[float], str]], ...] = (
    (_prompt, lambda tokens: f"{tokens:,.0f} tokens"),
    (_milliseconds, lambda milliseconds: amount(milliseconds / 1000, "s")),
)
