"""What a report is made of: the figures and the lines of one or more runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from clara.evaluation.summary import NOT_FROM_MEMORY


@dataclass(frozen=True)
class Score:
    """A mean with its interval; `low` and `high` are None where there is no interval."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a stage for one question: the median and where most of them lie."""

    median: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Entry:
    """The figures of a way to answer.

    Attributes:
        name: such as "clara@4+bm25".
        system: without its rate, such as "clara" or "text".
        rate: tokens of a document for each vector or token that is read; None where all are.
        control: "shuffled" or "none" for a control.
        questions: that it answered.
        scores: by name, such as "exact_match".
        by_type: questions and exact match by the type of their answers.
        compression: tokens of the documents for each vector.
        timings: by stage.
        reads_memory: False if its controls answer about as well; None if that is not known.
        trained: False for adapters that were not trained; None if that is not known.
        run: that it is of. Its name stands in brackets at the end of an entry's where an earlier
            run has the same entry with other figures.
        made: what decides its answers but rates, such as the models, as far as it is recorded.
    """

    name: str
    system: str
    rate: float | None
    ranker: str | None
    control: str | None
    questions: int
    scores: dict[str, Score]
    by_type: dict[str, tuple[int, Score]]
    prompt_tokens: float | None = None
    text_prompt_tokens: float | None = None
    compression: float | None = None
    bytes_per_document: float | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    reads_memory: bool | None = None
    trained: bool | None = None
    run: str = ""
    made: str = ""

    @property
    def ranker_kind(self) -> str | None:
        """The name of the ranker without its compression rate."""
        return None if self.ranker is None else rate_apart(self.ranker)[0]

    @property
    def ranker_rate(self) -> float | None:
        """The compression rate of the memory that the documents were ranked by, where it is known.

        Runs of earlier versions name none: all entries were ranked at the first rate of the run.
        """
        return None if self.ranker is None else rate_apart(self.ranker)[1]

    @property
    def apart(self) -> str:
        """What the name of the run adds to that of the entry."""
        return f" ({self.run})" if self.run and self.name.endswith(f" ({self.run})") else ""

    @property
    def exact_match(self) -> Score | None:
        return self.scores.get("exact_match")

    @property
    def total_ms(self) -> Timing | None:
        """The whole answer: the stage "total", or else the sum of all stages."""
        if "total" in self.timings or not self.timings:
            return self.timings.get("total")
        stages = list(self.timings.values())
        lows = [stage.median if stage.low is None else stage.low for stage in stages]
        highs = [stage.median if stage.high is None else stage.high for stage in stages]
        return Timing(sum(stage.median for stage in stages), sum(lows), sum(highs))

    @property
    def mark(self) -> str:
        return NOT_FROM_MEMORY if self.reads_memory is False else ""

    @property
    def remark(self) -> str:
        """What else to know of it: the mark, or that it is a control or untrained."""
        if self.control is not None:
            return "control"
        untrained = "untrained adapters" if self.trained is False else ""
        return "; ".join(filter(None, (self.mark, untrained)))


@dataclass(frozen=True)
class RankerFigures:
    """The figures of a ranker; `scores` by name, such as "recall@5"."""

    name: str
    scores: dict[str, Score]
    timings: dict[str, Timing] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """How much better `a` is than `b` on the same questions, with interval and p-value."""

    a: str
    b: str
    score: str
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def tied(self) -> bool:
        """Whether the interval holds 0; without an interval nothing is known to be better."""
        if self.low is None or self.high is None:
            return True
        return self.low <= 0 <= self.high

    def turned(self) -> Pair:
        """The same pair with `b` first."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Pair(self.b, self.a, self.score, -self.difference, low, high, self.p)


@dataclass(frozen=True)
class BreakEven:
    """Questions per document from which on compressing beforehand pays; None if it never does."""

    entry: str
    against: str
    questions_per_document: float | None
    why: str


@dataclass(frozen=True)
class Kept:
    """What a system keeps of documents, each figure for one document."""

    system: str
    documents: int
    bytes: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    vectors: float | None = None

    @property
    def sizes(self) -> tuple[float | None, ...]:
        """What is the same whenever it is made."""
        return self.bytes, self.tokens, self.vectors


@dataclass(frozen=True)
class AnswerLine:
    """One question answered by one entry.

    Attributes:
        gold_rank: of the first document that holds the answer, from 1, among those that were read.
    """

    entry: str
    question: str
    text: str
    golds: tuple[str, ...]
    answerable: bool
    ranked: tuple[str, ...]
    gold_rank: int | None
    answer: str
    scores: dict[str, float]
    answer_type: str


@dataclass(frozen=True)
class RankingLine:
    """How many documents a ranker ordered for one question, and how many hold its answer."""

    ranker: str
    question: str
    ranked: int
    positives: int


@dataclass
class Run:
    """A folder of a run, or several of the same questions together.

    Attributes:
        name: of the folder.
        questions: that were asked.
        documents: that there are.
    """

    name: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    questions: int
    documents: int
    entries: list[Entry]
    rankers: list[RankerFigures]
    pairs: list[Pair]
    break_even: list[BreakEven]
    kept: list[Kept]
    answers: list[AnswerLine]
    rankings: list[RankingLine]

    @property
    def by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def asked(self) -> dict[str, AnswerLine]:
        """One line of each question by its id, in order."""
        found: dict[str, AnswerLine] = {}
        for line in self.answers:
            found.setdefault(line.question, line)
        return found

    def ranked(self) -> dict[str, None]:
        """The ids of questions for which something was ranked or answered, in order."""
        ranked = [line.question for line in self.rankings]
        return dict.fromkeys([*ranked, *(line.question for line in self.answers)])

    def pair(self, a: str, b: str, score: str = "exact_match") -> Pair | None:
        """The comparison of two entries, turned so that `a` comes first."""
        for each in self.pairs:
            if each.score == score and (each.a, each.b) == (a, b):
                return each
            if each.score == score and (each.a, each.b) == (b, a):
                return each.turned()
        return None


def rate_apart(name: str) -> tuple[str, float | None]:
    """The name of a ranker without its compression rate, and the rate; None where it has none.

    Example:
        >>> rate_apart("clara@4"), rate_apart("bm25")
        (('clara', 4.0), ('bm25', None))
    """
    found = re.fullmatch(r"(.+)@([0-9]+)", name, re.DOTALL)
    return (name, None) if found is None else (found[1], float(found[2]))


def by_rows(entries: Iterable[Entry]) -> list[Entry]:
    """Entries in the order of tables: as they come, each control below what it controls.

    A control that belongs to several entries stands below the last of them.
    """
    entries = list(entries)
    controls = [entry for entry in entries if entry.control is not None]
    last: dict[str, str] = {}
    for entry in entries:
        last.update({control.name: entry.name for control in _controls(entry, controls)})
    ordered = []
    for entry in entries:
        if entry.control is None:
            below = [control for control in controls if last.get(control.name) == entry.name]
            ordered += [entry, *below]
    return ordered + [control for control in controls if control.name not in last]


def _controls(entry: Entry, controls: Iterable[Entry]) -> Iterable[Entry]:
    """The controls of an entry of CLaRa, of each kind one.

    They are of its rate and ranker, or of every one, and of its run if that has its own.
    """
    if entry.system != "clara" or entry.control is not None:
        return ()
    found: dict[str | None, Entry] = {}
    for control in controls:
        fits = control.rate in (None, entry.rate) and control.ranker in (None, entry.ranker)
        if fits and (control.control not in found or control.run == entry.run):
            found[control.control] = control
    return found.values()
