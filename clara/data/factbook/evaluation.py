"""Questions about the World Factbook to evaluate with: each with the candidates to answer it from.

All documents of a question are passages of the countries of one split; see `divided`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, zip_longest

from clara.data.candidate_questions import CandidateQuestion, EvaluationSet
from clara.data.factbook.asking import Asked, ask_all, guessable
from clara.data.factbook.bridges import Bridges
from clara.data.factbook.build import (
    SPLITS,
    Country,
    FactbookError,
    build_documents,
    load_factbook,
    slug_of,
)
from clara.data.factbook.candidates import Candidates
from clara.data.factbook.comparisons import comparisons
from clara.data.factbook.drawing import drawn
from clara.data.factbook.neighbours import neighbours
from clara.data.factbook.passages import build_passages, divided
from clara.data.factbook.two_chunks import TwoChunks
from clara.data.factbook.unanswerable import missing
from clara.data.records import Document

KINDS = ("facts", "two-chunks", "unanswerable")
CANDIDATES = 20
COUNTS: dict[str, dict[str, int | None]] = {
    "facts": {"train": 2_000, "validation": None, "test": None},
    "two-chunks": {"train": 5_000, "validation": 1_000, "test": 1_000},
    "unanswerable": {"train": 1_000, "validation": 500, "test": 500},
}
"""The most questions by kind and split; None is all of them."""


def evaluation_questions(
    split: str = "validation", limit: int | None = None, kind: str = "facts"
) -> EvaluationSet:
    """Questions about the countries of a split, with twenty passages to answer each from.

    "facts": exactly one candidate holds the answer. The others are hard: passages of the same
    country, and passages of other countries with the same field, of neighbours first. What can be
    guessed without reading is not asked, see `guessable`.

    "two-chunks": the answer follows from two candidates together: two countries are compared, or
    the country that is asked about has to be found first.

    "unanswerable": the country lacks the field, and no candidate holds an answer.

    Questions are in random order, so the first few are a fair sample, and a smaller limit gives the
    first ones of a larger limit. `clara data factbook` writes the same questions to
    questions.<split>.jsonl, questions.two-chunks.<split>.jsonl and
    questions.unanswerable.<split>.jsonl.

    Args:
        split: "train", "validation" or "test".
        limit: the most questions; if None, all that the file has, see `COUNTS`.
        kind: one of `KINDS`.

    Returns:
        The passages of the split's countries, and the questions.

    Raises:
        FactbookError: there is no such split or kind, the limit is below 1, or as `load_factbook`.

    Example:
        >>> documents, questions = evaluation_questions("validation", 200)
        >>> len(questions), len(questions[0].candidates)
        (200, 20)
    """
    for name, value, values in (("split", split, SPLITS), ("kind", kind, KINDS)):
        if value not in values:
            raise FactbookError(f"{name} must be one of {', '.join(values)}, got {value!r}")
    if limit is not None and limit < 1:
        raise FactbookError(f"limit must be at least 1, got {limit}")
    countries = load_factbook()
    splits = divided(countries)
    members = splits[split]
    passages = build_passages(members)
    asked = ask_all(members, passages)
    asking = Evaluation(countries, members, passages, asked, easy_kinds(splits["train"]))
    count = COUNTS[kind][split]
    least = [each for each in (limit, count) if each is not None]
    return EvaluationSet(passages, asking.questions(kind, min(least, default=None)))


def easy_kinds(training: Sequence[Country]) -> frozenset[str]:
    """What `guessable` says of the training countries, without cutting them into passages."""
    # One document for each section, however long.
    sections: list[Document] = build_documents(training, lambda _: 0, 1)
    return guessable(ask_all(training, sections))


class Evaluation:
    """Makes the questions about one split's countries.

    Args:
        every: the countries of all splits.
        members: those of the split.
        passages: of the split.
        asked: of the split, from `ask_all`.
        easy: kinds that are not asked, from `easy_kinds`.
    """

    def __init__(
        self,
        every: Sequence[Country],
        members: Sequence[Country],
        passages: Sequence[Document],
        asked: Sequence[Asked],
        easy: frozenset[str],
    ) -> None:
        self._every, self._members, self._passages = every, members, passages
        self._borders = neighbours(every)
        self._candidates = Candidates(passages, self._borders)
        self._hard = _plain([each for each in asked if each.kind not in easy])

    def questions(self, kind: str, limit: int | None) -> list[CandidateQuestion]:
        """Questions of one of `KINDS` in random order."""
        make = {
            "facts": self._facts,
            "two-chunks": self._two_chunks,
            "unanswerable": self._unanswerable,
        }
        return make[kind](limit)

    def _facts(self, limit: int | None) -> list[CandidateQuestion]:
        """Each question in one of its wordings that name the country."""
        names = _names(self._hard)
        questions = []
        for each in drawn(self._hard, limit, "questions"):
            (question,) = drawn(each.named, 1, each.country, each.kind)
            questions.append(
                CandidateQuestion(
                    id=names[each],
                    question=question,
                    golden_answers=(each.answer, *each.others),
                    positives=each.positives[:1],
                    candidates=tuple(self._candidates.of(each, CANDIDATES)),
                )
            )
        return questions

    def _two_chunks(self, limit: int | None) -> list[CandidateQuestion]:
        """As many comparisons as questions whose country has to be found, if there are as many."""
        asked = {(each.country, each.kind): each for each in self._hard}
        bridges = Bridges(self._every, self._passages, asked, self._candidates)
        kinds = (
            comparisons(self._members, asked, self._borders),
            bridges.of_neighbours(self._members, self._borders),
            bridges.of_keys(self._members),
        )
        ordered = [drawn(each, None, "two-chunks") for each in kinds]
        mixed = [each for row in zip_longest(*ordered) for each in row if each is not None]
        return [self._from_two(each) for each in mixed[:limit]]

    def _from_two(self, each: TwoChunks) -> CandidateQuestion:
        names = self._candidates.around(
            each.golds,
            each.wanted,
            CANDIDATES,
            (each.id,),
            answer=each.banned or None,
            decoys=each.decoys,
        )
        return CandidateQuestion(each.id, each.question, (each.answer,), each.golds, tuple(names))

    def _unanswerable(self, limit: int | None) -> list[CandidateQuestion]:
        questions = []
        for name, fact in islice(missing(self._members, self._hard).items(), limit):
            wanted = [(fact.country.slug, fact.label)]
            (question,) = fact.questions(1)
            names = self._candidates.around((), wanted, CANDIDATES, (name,))
            questions.append(CandidateQuestion(name, question, (), (), tuple(names), False))
        return questions


def _plain(asked: Sequence[Asked]) -> list[Asked]:
    """Without questions that have two answers in their country."""
    answers: dict[str, set[str]] = defaultdict(set)
    for each in asked:
        for question in each.named:
            answers[question].add(each.answer)
    return [each for each in asked if all(len(answers[question]) == 1 for question in each.named)]


def _names(asked: Iterable[Asked]) -> Mapping[Asked, str]:
    """An id for each question, such as "kenya/template/coastline", without white space."""
    names: dict[Asked, str] = {}
    counts: dict[str, int] = defaultdict(int)
    for each in asked:
        form = "label" if each.bare else "template"
        name = f"{each.country}/{form}/{slug_of(each.kind)}"
        counts[name] += 1
        names[each] = name if counts[name] == 1 else f"{name}-{counts[name]}"
    return names
