"""The fields of a passage told in sentences, by rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clara.data.factbook.asking import Asked
from clara.data.factbook.build import Country
from clara.data.factbook.drawing import drawn
from clara.data.factbook.labels import name_of
from clara.data.records import Document

FEWEST = 3
"""Sentences of a paraphrase, at least."""

# As questions, they name the field with the country or beside it.
SENTENCES = (
    "The {named} is {value}.",
    "{value} is the {named}.",
    "For {country}, the {field} is {value}.",
    "The entry of {country} gives {value} as {field}.",
)
TASKS = (
    "Write the facts of the background in sentences.",
    "Tell in sentences what the background lists.",
    "Put the background into other words.",
)


def paraphrase_records(
    passages: Iterable[Document], asked: Iterable[Asked], countries: Sequence[Country]
) -> Iterator[dict[str, Any]]:
    """Records of pretraining with the type "paraphrase", one for a passage with enough fields.

    The paraphrase tells every field that has a short value, in random order and in one of the
    forms of `SENTENCES`. A passage has none if it tells fewer than `FEWEST` fields, or fewer than
    half of the passage's.
    """
    phrases = {country.slug: country.phrase for country in countries}
    facts: Mapping[str, list[Asked]] = _facts(asked)
    for passage in passages:
        found = facts.get(passage.id, [])
        if len(found) < max(FEWEST, passage.text.count("\n") / 2):
            continue
        told = drawn(found, None, "paraphrase", passage.id)
        (task,) = drawn(TASKS, 1, passage.id)
        yield {
            "data_type": "paraphrase",
            "question": [task],
            "answers": [" ".join(_sentence(each, phrases[each.country]) for each in told)],
            "docs": [passage.text],
        }


def _facts(asked: Iterable[Asked]) -> dict[str, list[Asked]]:
    """The fields of each passage, in the order in which they are asked for."""
    facts: dict[str, list[Asked]] = defaultdict(list)
    for each in asked:
        if each.bare and each.answer not in ("yes", "no"):
            for name in each.positives:
                facts[name].append(each)
    return facts


def _sentence(fact: Asked, country: str) -> str:
    name = name_of(fact.label)
    (form,) = drawn(SENTENCES, 1, fact.country, fact.kind)
    text = form.format(
        named=name.with_country(country), field=name.alone, country=country, value=fact.answer
    )
    return text[0].upper() + text[1:]
