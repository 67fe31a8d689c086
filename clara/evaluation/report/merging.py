"""Several runs in one report: of the same questions together, of others side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from clara.data.values import DataError, shown
from clara.evaluation.folder import ANSWERS
from clara.evaluation.report.records import Entry, Run

# Settings in which runs of the same questions may differ, since the report shows them otherwise.
_OF_ENTRIES = ("entries", "systems", "rankers")
_RATES = ("rate", "compression_rate")

Figures = TypeVar("Figures")


def merged(
    runs: Sequence[Run], folders: Sequence[Path], *, side_by_side: bool = False
) -> tuple[list[Run], list[str]]:
    """Data sets, each with all entries of the runs that asked its questions, and remarks.

    Of an entry, ranker or comparison that several runs hold, that of the first run counts, unless
    its figures differ, or the models, indexes or other settings that they record for it: then it is
    shown for each run, with the name of the run.

    Args:
        folders: of the runs, which errors name.
        side_by_side: runs of other questions are data sets of their own.

    Raises:
        DataError: runs asked different questions and are not to be shown side by side.
    """
    runs = _named(runs)
    sets: list[list[Run]] = []
    for run, folder in zip(runs, folders):
        for group, first in zip(sets, folders):
            difference = _difference(group[0], run)
            if difference is None:
                group.append(run)
                break
            if not side_by_side:
                raise DataError(
                    f"{folder / ANSWERS}: field 'question': {difference} as in {first}; "
                    "--side-by-side shows runs of other questions as data sets of their own"
                )
        else:
            sets.append([run])
    notes = [note for run in runs for note in _unfinished(run)]
    notes += [note for group in sets for note in _notes(group)]
    return [_together(group) for group in sets], notes


def _difference(first: Run, run: Run) -> str | None:
    """What tells the questions of two runs apart; None if they are the same."""
    known, asked = first.asked(), run.asked()
    if not known or not asked:  # rankers alone: their lines have no texts
        return _other_ids(first.ranked(), run.ranked())
    for name, line in asked.items():
        if name not in known:
            return f"{shown(name)} was not asked"
        if (known[name].text, known[name].golds) != (line.text, line.golds):
            return f"{shown(name)} has not the same text and golds"
    return _other_ids(known, asked)


def _other_ids(known: Iterable[str], asked: Iterable[str]) -> str | None:
    """The first question that only one of two runs has."""
    first, second = dict.fromkeys(known), dict.fromkeys(asked)
    for name in second:
        if name not in first:
            return f"{shown(name)} was not asked"
    missing = next((name for name in first if name not in second), None)
    return None if missing is None else f"{shown(missing)} is missing, which was asked"


def _named(runs: Iterable[Run]) -> list[Run]:
    """The runs with names that differ, which their entries know."""
    named: list[Run] = []
    for number, run in enumerate(runs, 1):
        taken = any(run.name == other.name for other in named)
        name = f"{run.name} ({number})" if taken else run.name
        entries = [replace(entry, run=name, made=_made(run, name, entry)) for entry in run.entries]
        named.append(replace(run, name=name, entries=entries))
    return named


def _unfinished(run: Run) -> list[str]:
    """A remark if a run was stopped."""
    wanted = run.settings.get("questions")
    if not isinstance(wanted, int) or run.questions >= wanted:
        return []
    return [
        f"The run {run.name} is not finished: {run.questions} of its {wanted} questions are "
        "answered by all entries, and only they count."
    ]


def _notes(group: Sequence[Run]) -> list[str]:
    """What besides the entries may explain differences between runs of the same questions."""
    first, *others = group
    notes = []
    for other in others:
        names = [*first.settings, *(name for name in other.settings if name not in first.settings)]
        parts = [
            f"{name} was {_shown(first.settings.get(name))}, is {_shown(other.settings.get(name))}"
            for name in names
            if name not in _OF_ENTRIES and first.settings.get(name) != other.settings.get(name)
        ]
        if parts:
            notes.append(
                f"The runs {first.name} and {other.name} differ in more than their entries: "
                f"{'; '.join(parts)}."
            )
    return notes


def _shown(value: object) -> str:
    return "not said" if value is None else shown(json.dumps(value), quoted=False)


def _together(group: Sequence[Run]) -> Run:
    """One run of all entries."""
    whole = group[0]
    for number, other in enumerate(group[1:], 1):
        other = _renamed(other, whole, group[:number])
        new = {entry.name for entry in other.entries} - whole.by_name.keys()
        whole = replace(
            whole,
            documents=max(whole.documents, other.documents),
            entries=[*whole.entries, *(each for each in other.entries if each.name in new)],
            rankers=_added(whole.rankers, other.rankers, lambda each: each.name),
            pairs=_added(whole.pairs, other.pairs, lambda each: (each.a, each.b, each.score)),
            break_even=_added(
                whole.break_even, other.break_even, lambda each: (each.entry, each.against)
            ),
            kept=_added(whole.kept, other.kept, lambda each: each.system),
            answers=[*whole.answers, *(line for line in other.answers if line.entry in new)],
            rankings=[*whole.rankings, *other.rankings],
        )
    return whole


def _renamed(run: Run, whole: Run, before: Sequence[Run]) -> Run:
    """The run; of what another has under the same name with other figures, with its own name too.

    Times differ whenever something is measured again, so they make no difference. Two indexes may
    have the same scores by chance: what was recorded of them tells them apart.

    Args:
        whole: the runs before it as one.
        before: these runs.
    """
    scores = {entry.name: entry.scores for entry in whole.entries}
    names = {
        e.name
        for e in run.entries
        if scores.get(e.name, e.scores) != e.scores
        or _is_of_others(run, before, "systems", e.name.partition("+")[0])
        or _is_of_others(run, before, "rankers", e.ranker)
    }
    measures = {ranker.name: ranker.scores for ranker in whole.rankers}
    rankers = {
        r.name
        for r in run.rankers
        if measures.get(r.name, r.scores) != r.scores
        or _is_of_others(run, before, "rankers", r.name)
    }
    sizes = {kept.system: kept.sizes for kept in whole.kept}
    systems = {
        k.system
        for k in run.kept
        if sizes.get(k.system, k.sizes) != k.sizes
        or _is_of_others(run, before, "systems", k.system)
    }

    def name(old: str, clashing: set[str] = names) -> str:
        return f"{old} ({run.name})" if old in clashing else old

    return replace(
        run,
        entries=[replace(each, name=name(each.name)) for each in run.entries],
        rankers=[replace(each, name=name(each.name, rankers)) for each in run.rankers],
        kept=[replace(each, system=name(each.system, systems)) for each in run.kept],
        pairs=[replace(each, a=name(each.a), b=name(each.b)) for each in run.pairs],
        break_even=[
            replace(each, entry=name(each.entry), against=name(each.against))
            for each in run.break_even
        ],
        answers=[replace(each, entry=name(each.entry)) for each in run.answers],
    )


def _is_of_others(run: Run, before: Iterable[Run], kind: str, name: str | None) -> bool:
    """Whether an earlier run has a system or ranker of this name that was made otherwise."""
    own = _recorded(run, kind, name)
    first = next(filter(None, (_recorded(each, kind, name) for each in before)), own)
    return own is not None and first != own


def _recorded(run: Run, kind: str, name: str | None) -> object:
    """What a run has recorded of a system or ranker; None where it has nothing."""
    recorded = run.settings.get(kind)
    return recorded.get(name) if isinstance(recorded, dict) else None


def _made(run: Run, name: str, entry: Entry) -> str:
    """What decides the answers of an entry but rates.

    Args:
        name: of the run. It stands for what the run does not tell, which is the same in all of it.
    """
    system = _recorded(run, "systems", entry.name.partition("+")[0])
    ranker = _recorded(run, "rankers", entry.ranker)
    known = system is not None and (ranker is not None or entry.ranker is None)
    return json.dumps([_without_rates(system), _without_rates(ranker), "" if known else name])


def _without_rates(value: object) -> object:
    """A JSON value; objects in it have their fields in order."""
    if isinstance(value, dict):
        return {key: _without_rates(value[key]) for key in sorted(value) if key not in _RATES}
    return value


def _added(
    known: Sequence[Figures], new: Iterable[Figures], key: Callable[[Figures], object]
) -> list[Figures]:
    """What is known, and what of `new` has a key that is not known."""
    keys = {key(each) for each in known}
    return [*known, *(each for each in new if key(each) not in keys)]
