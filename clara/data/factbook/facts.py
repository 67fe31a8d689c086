"""Questions that name a field of the World Factbook by its label: "Coastline of Kenya?"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clara.data.factbook.answers import NOUN, PLACE, folded, is_answer, leading
from clara.data.factbook.build import Country, field_lines
from clara.data.factbook.drawing import drawn
from clara.data.factbook.labels import name_of
from clara.data.records import Document

# Each names the field and the country. "{named}" is both, as in "coastline of Kenya".
WORDINGS = (
    "{named}?",
    "{country}: {field}?",
    "What does the entry of {country} say for {field}?",
    "What is given as {field} for {country}?",
    "Tell me the {named}.",
    "What is listed under {field} in the entry of {country}?",
    "Look up {field} for {country}.",
    "{field}, {country}?",
)
# Without the country only the document that is given can answer them.
BARE_WORDINGS = (
    "{field}?",
    "What does the entry say for {field}?",
    "What is given as {field}?",
    "What is listed under {field}?",
    "Look up {field}.",
)

# Values that are one thing although they have commas. In other fields a comma separates entries.
_WITH_COMMAS = re.compile(
    r"^(?:Location|Capital, name|.*geographic coordinates|National symbol\(s\)"
    r"|.*, (?:embassy|chancery|mailing address|chief of mission))$",
    re.IGNORECASE,
)
# What is asked for in these is a list, or their value belongs to another year or system.
_NOT_ASKED = re.compile(
    r"\bnote$|^Background$|^Major urban areas|email address|parties elected|, by type$"
    r"|^International organization participation$|^Preliminary statement$"
)
_MISSING = re.compile(r"\b(?:NA|NEGL)\b")
# As the templates that ask for the same: "Mount Fuji", not "Mount Fuji 3,776 m".
_ANSWERS = {
    "Elevation, highest point": PLACE,
    "Elevation, lowest point": PLACE,
    "Nationality, noun": NOUN,
}
_NUMBER_TO_CALL = re.compile(r"(?:telephone|FAX)$")  # "[1] (202) 387-6101": no remark is in it
_DATE_CELL = re.compile(r"[1-9]\d{4}")  # 45161: a date as a spreadsheet counts it


@dataclass(frozen=True)
class Fact:
    """A field with a short value.

    Attributes:
        country: whose field it is.
        label: as the Factbook writes it.
        answer: its value without remarks, literally in the line of every positive.
        positives: ids of the documents with that line, at least one.
    """

    country: Country
    label: str
    answer: str
    positives: tuple[str, ...]

    def questions(self, count: int) -> list[str]:
        """Ask for the fact in `count` of the `WORDINGS`, drawn by country and label."""
        name = name_of(self.label)
        return [
            _sentence(
                wording.format(
                    named=name.with_country(self.country.phrase),
                    field=name.alone,
                    country=self.country.phrase,
                )
            )
            for wording in self._drawn(WORDINGS, count)
        ]

    def bare_questions(self, count: int) -> list[str]:
        """Ask for the fact in `count` of the `BARE_WORDINGS`, the first of which is the first."""
        field = name_of(self.label).alone
        shortest, *others = BARE_WORDINGS
        return [
            _sentence(wording.format(field=field))
            for wording in [shortest, *self._drawn(others, count - 1)]
        ]

    def _drawn(self, wordings: Sequence[str], count: int) -> list[str]:
        return drawn(wordings, count, self.country.slug, self.label)


def value_of(label: str, text: str) -> str:
    """The short value of a field, literally a part of its text; "" where it has none.

    "536 km" of "536 km", "58%" of "58% of total population (2019 est.)". A field has no value
    that can be asked for if it is a note, a list, missing, or longer than `LONGEST_ANSWER` words.
    """
    without_remarks = re.sub(r" ?\([^()]*\)", "", text)
    if _NOT_ASKED.search(label) or _MISSING.search(text) or ";" in without_remarks:
        return ""
    if ", " in without_remarks and not _WITH_COMMAS.match(label):
        return ""
    if _NUMBER_TO_CALL.search(label):
        return text if is_answer(text) else ""
    value = "".join(_ANSWERS.get(label, leading)(text))
    value = value.removesuffix(" per US dollar")  # of currencies
    if quoted := re.fullmatch(r"[\"“]([^\"“”]+)[\"”]", value):
        value = quoted[1].rstrip(",")
    if "date" in label and _DATE_CELL.fullmatch(value):
        return ""
    return value if value in ("yes", "no") or is_answer(value) else ""


def build_facts(countries: Iterable[Country], documents: Iterable[Document]) -> list[Fact]:
    """Find all fields with a short value that a document holds.

    A value that is the country's own name is left out, and so is one that chunking cut in two.

    Args:
        countries: from `load_factbook`.
        documents: from `build_documents`.

    Returns:
        Facts in the Factbook's order. A field that stands in two sections is one fact if its
        value is the same in both.
    """
    holders = field_lines(documents)
    facts = []
    for country in countries:
        lines = holders.get(country.slug, {})
        fields = (field for section in country.sections.values() for field in section)
        values = dict.fromkeys((field.label, value_of(field.label, field.text)) for field in fields)
        for label, value in values:
            if not value or folded(value) == folded(country.name):
                continue
            start = f"{label}: "
            found = [name for name, line in lines.get(label, []) if value in line[len(start) :]]
            if found:
                facts.append(Fact(country, label, value, tuple(dict.fromkeys(found))))
    return facts


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
