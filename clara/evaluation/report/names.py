"""What entries, systems and rankers are called, and what numbers look like."""

from __future__ import annotations

from collections.abc import Sequence

from clara.evaluation.report.records import Entry, Score, rate_apart
from clara.reports.tables import short

_SYSTEMS = {
    "clara": "CLaRa",
    "clara-shuffled": "CLaRa, memory of other documents",
    "clara-none": "CLaRa without memory",
    "text": "text",
    "text-tuned": "tuned text",
    "closed-book": "the closed book",
    "lead": "the beginnings of the texts",
    "sentences": "the best sentences of the texts",
    "prefix-cache": "text from kept keys and values",
    "llmlingua2": "text by LLMLingua-2",
}
_RANKERS = {
    "clara": "CLaRa's ranking",
    "bm25": "BM25",
    "minilm": "MiniLM",
    "contrastive": "the contrastive baseline",
    "random": "a random order",
    "given": "the given order",
    "gold": "the gold document",
}
_MEANINGS = {
    "clara": "the backbone with adapters reads the documents' memory",
    "text": "the bare backbone reads the documents' text",
    "text-tuned": "a backbone tuned on text reads the documents' text",
    "closed-book": "the bare backbone answers without documents",
    "lead": "the bare backbone reads the beginning of each text, as long as the memory would be",
    "sentences": "the bare backbone reads the sentences that BM25 finds best, as long as the "
    "memory would be",
    "prefix-cache": "the bare backbone reads the text, whose keys and values were kept",
    "llmlingua2": "the bare backbone reads text that LLMLingua-2 has shortened",
}
_CONTROLS = {
    "shuffled": "a control: memory of other documents in place of the right one",
    "none": "a control: no memory",
}


def phrase(entry: Entry) -> str:
    """An entry in the words of a sentence, such as "CLaRa at rate 4 with BM25"."""
    name = _SYSTEMS.get(entry.system, entry.system)
    rate = "" if entry.rate is None else f" at rate {short(entry.rate)}"
    ranker = None if entry.ranker is None else _ranking(entry.ranker)
    if entry.ranker_kind == entry.system and entry.ranker_rate in (None, entry.rate):
        ranker = "its own ranking"
    with_ = "" if ranker is None else f" with {ranker}"
    return f"{name}{rate}{with_}"


def meanings(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Parts of the names of entries, each with what it means: systems, then rankers."""
    found = {}
    for entry in entries:
        rate = "" if entry.rate is None else "@RATE"
        what = _CONTROLS.get(entry.control or "", "a control")
        if entry.control is None:
            what = _MEANINGS.get(entry.system, "a system of its own")
        found[f"{entry.system}{rate}"] = what
    if any(entry.rate is not None for entry in entries):
        found["@RATE"] = "tokens of a document for each vector or token that is read in its place"
    for entry in entries:
        if entry.ranker is None:
            continue
        if entry.ranker_rate is not None and entry.ranker_rate == entry.rate:
            what = f"documents by {_ranking(str(entry.ranker_kind))} at the rate of the entry"
            found.setdefault(f"+{entry.ranker_kind}", what)
        else:
            found[f"+{entry.ranker}"] = f"documents by {_ranking(entry.ranker)}"
    if "+gold" in found:
        found["+gold"] = "the gold document is read first: what a perfect ranker would give"
    if "+given" in found:
        found["+given"] = "documents in the order in which the question has them"
    return list(found.items())


def _ranking(name: str) -> str:
    """A ranker in words, such as "BM25" or "CLaRa's ranking at rate 4"."""
    kind, rate = rate_apart(name)
    words = _RANKERS.get(kind, kind)
    return words if rate is None else f"{words} at rate {short(rate)}"


def percent(share: float, of: int = 0) -> str:
    """A share in per cent, with a decimal where so many questions give it a meaning."""
    return f"{100 * share:.{_decimals(of)}f} %"


def interval(score: Score, of: int = 0) -> str:
    """The ends of the interval of a share in per cent, such as "34 to 48"; "" without one."""
    if score.low is None or score.high is None:
        return ""
    return f"{_number(score.low, of)} to {_number(score.high, of)}"


def points(difference: float, of: int = 0) -> str:
    """A difference of shares in points, with its sign."""
    shown = _number(abs(difference), of)
    return shown if not float(shown) else f"{'−' if difference < 0 else '+'}{shown}"


def _number(share: float, of: int) -> str:
    shown = f"{100 * share:.{_decimals(of)}f}"
    return shown.replace("-", "" if not float(shown) else "−")


def _decimals(questions: int) -> int:
    return 1 if questions >= 1000 else 0


def with_interval(score: Score | None, of: int = 0) -> str:
    """A share with its interval, such as "41 % (34 to 48)"; "" without a score."""
    if score is None:
        return ""
    ends = interval(score, of)
    return percent(score.mean, of) + (f" ({ends})" if ends else "")


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
