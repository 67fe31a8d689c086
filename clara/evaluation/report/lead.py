"""The sentence at the top of a report: what was measured and who won."""

from __future__ import annotations

from collections.abc import Sequence

from clara.evaluation.report.names import interval, percent, phrase, with_interval
from clara.evaluation.report.records import Entry, Pair, Run, Score
from clara.evaluation.summary import NOT_FROM_MEMORY

MOST_LEADERS = 4
"""Entries of which a report shows errors."""


def lead(run: Run) -> str:
    """What was measured, how the best ways to answer fared, and who won.

    Entries that were given the gold document win nothing: they are left out unless there are no
    others to compare. Two entries whose paired interval holds 0 are tied.
    """
    where = f"On {_questions(run)}"
    contest = contestants(run)
    if not contest:
        return f"{where}, {_rankers(run)}."
    first, *others = contest
    told = f"{where}, {phrase(first)} answers {_fared(first)}"
    if not others:
        return f"{told}{_memory(contest)}."
    (second,) = others
    return f"{told} and {phrase(second)} {_fared(second)}: {_verdict(run, first, second)}" + (
        f"{_memory(contest)}."
    )


def contestants(run: Run) -> list[Entry]:
    """The best entry, and the best of the other kinds of systems, or of CLaRa if it is another.

    Returns:
        None of them, one or two, best first.
    """
    entries = [e for e in run.entries if e.control is None and e.exact_match is not None]
    kinds = {entry.system for entry in entries}
    # The same answers as from text: no winner of its own.
    entries = [e for e in entries if not (e.system == "prefix-cache" and "text" in kinds)]
    pool = [entry for entry in entries if entry.ranker != "gold"]
    if len({entry.system for entry in pool} - {"closed-book"}) < 2 <= len(kinds - {"closed-book"}):
        pool = [entry for entry in entries if entry.ranker in ("gold", None)] or pool
    best = sorted(pool, key=lambda entry: -_mean(entry))  # stable: the first of equals
    if not best:
        return []
    others = [entry for entry in best if entry.system != best[0].system]
    ours = [entry for entry in others if entry.system == "clara"]
    return [best[0], *(ours or others or best[1:])[:1]]


def leaders(run: Run) -> list[Entry]:
    """The contestants, then the best entries of other kinds: at most `MOST_LEADERS`."""
    chosen = contestants(run)
    others = [e for e in run.entries if e.control is None and e.exact_match is not None]
    for entry in sorted(others, key=lambda entry: (entry.ranker == "gold", -_mean(entry))):
        kinds = {each.system for each in chosen} | {"prefix-cache"}
        if len(chosen) < MOST_LEADERS and entry.system not in kinds:
            chosen.append(entry)
    return chosen


def _mean(entry: Entry) -> float:
    return entry.exact_match.mean if entry.exact_match else 0.0


def _questions(run: Run) -> str:
    asked = f"{run.questions:,} question{'' if run.questions == 1 else 's'}"
    counts = sorted({line.ranked for line in run.rankings})
    # Lists of rankings end at 100 documents; a list of all of them says nothing of candidates.
    if counts and counts[-1] < min(100, run.documents):
        if counts[0] == counts[-1]:
            return f"{asked} with {counts[0]} candidate{'' if counts[0] == 1 else 's'} each"
        return f"{asked} with {counts[0]} to {counts[-1]} candidates each"
    return f"{asked} over {run.documents:,} document{'' if run.documents == 1 else 's'}"


def _fared(entry: Entry) -> str:
    score = entry.exact_match or Score(0.0)
    ends = interval(score, entry.questions)
    return f"{percent(score.mean, entry.questions)} exactly" + (f" ({ends})" if ends else "")


def _verdict(run: Run, first: Entry, second: Entry) -> str:
    pair = run.pair(first.name, second.name)
    if pair is None or pair.low is None or pair.high is None:
        return "no paired test says which of them is better"
    gap = f"{abs(100 * pair.difference):.{1 if run.questions >= 1000 else 0}f}"
    ends = interval(Score(pair.difference, pair.low, pair.high), run.questions)
    unit = "point" if gap in ("1", "1.0") else "points"
    if not pair.difference:
        return "a tie"
    if pair.tied:
        return f"a tie, since the difference of {gap} {unit} ({ends}) may be 0"
    winner = phrase(first if pair.difference > 0 else second)
    return f"{winner} wins by {gap} {unit} ({ends})"


def _memory(contest: Sequence[Entry]) -> str:
    """What controls say of the CLaRa entries that the sentence names."""
    ours = [entry for entry in contest if entry.system == "clara"]
    if any(entry.reads_memory is False for entry in ours):
        return f"; CLaRa's {NOT_FROM_MEMORY}"
    if ours and all(entry.reads_memory for entry in ours):
        return "; CLaRa's answers come from memory, as its controls show"
    if ours:
        return "; without controls, nothing says whether CLaRa's answers come from memory"
    return ""


def _rankers(run: Run) -> str:
    """Where nothing was answered: the best ranker."""
    for name in ("recall@5", "mrr", "ndcg@10"):
        found = [each for each in run.rankers if name in each.scores]
        found = [each for each in found if each.name != "gold"] or found
        if found:
            best = max(found, key=lambda each: each.scores[name].mean)
            score = with_interval(best.scores[name], run.questions)
            shown = name.replace("mrr", "MRR").replace("ndcg", "nDCG")
            return f"{best.name} ranks best, with {shown} of {score}"
    return "nothing was measured"


def outcome(pair: Pair) -> str:
    """Who of a pair is better."""
    if pair.low is None or pair.high is None:
        return "not tested"
    return "tie" if pair.tied else f"{pair.a if pair.difference > 0 else pair.b} is better"
