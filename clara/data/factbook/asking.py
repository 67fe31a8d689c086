"""All questions about a field in one place: those of templates and those that name its label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clara.data.factbook.answers import folded
from clara.data.factbook.build import Country, build_questions, latest
from clara.data.factbook.facts import build_facts
from clara.data.factbook.questions import TEMPLATES
from clara.data.records import Document

GUESSABLE = 0.2

_WORDINGS = 2


@dataclass(frozen=True)
class Asked:
    """What is asked of a country in several wordings.

    Attributes:
        kind: the key of the template or the label; what is asked of other countries too.
        label: of the field that holds the answer.
        country: slug of the country.
        named: questions that name the country.
        bare: questions that do not; empty for templates.
        answer: literally in the text of every positive, letter case aside.
        positives: ids of the documents that hold the answer, at least one.
        others: further answers that are accepted, each literally in every positive too.
    """

    kind: str
    label: str
    country: str
    named: tuple[str, ...]
    bare: tuple[str, ...]
    answer: str
    positives: tuple[str, ...]
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.country}/{self.kind}: {self.answer}"


def ask_all(countries: Sequence[Country], documents: Sequence[Document]) -> list[Asked]:
    """Everything that can be asked of these documents, by template and by label.

    Args:
        countries: from `load_factbook`.
        documents: of these countries, from `build_documents`.
    """
    asked = [
        Asked(
            kind=fact.label,
            label=fact.label,
            country=fact.country.slug,
            named=tuple(fact.questions(_WORDINGS)),
            bare=tuple(fact.bare_questions(_WORDINGS)),
            answer=fact.answer,
            positives=fact.positives,
        )
        for fact in build_facts(countries, documents)
    ]
    texts = {
        country.slug: {f.label: f.text for fields in country.sections.values() for f in fields}
        for country in countries
    }
    for question in build_questions(countries, documents):
        slug, kind = question.id.split("/")
        label = _label(kind, texts[slug])
        answer, *others = question.golden_answers
        named = (question.question,)
        asked.append(Asked(kind, label, slug, named, (), answer, question.positives, tuple(others)))
    return asked


def guessable(asked: Iterable[Asked]) -> frozenset[str]:
    """Kinds of which one answer is right for more than a share of `GUESSABLE` of the countries.

    "Dual citizenship recognized?" can be answered without reading anything, as often as not.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for each in asked:
        answers[each.kind][folded(each.answer)] += 1
    return frozenset(
        kind
        for kind, counts in answers.items()
        if max(counts.values()) > max(1, GUESSABLE * counts.total())
    )


def _label(kind: str, texts: dict[str, str]) -> str:
    """The label of the field that a template asks for, the first of those that there are."""
    labels = (latest(texts, each.label)[0] for each in TEMPLATES if each.key == kind)
    return next(label for label in labels if label in texts)
