"""Questions that the World Factbook does not answer, because the entry lacks the field."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from clara.data.factbook.asking import Asked
from clara.data.factbook.build import Country, slug_of
from clara.data.factbook.drawing import drawn
from clara.data.factbook.facts import Fact
from clara.data.factbook.neighbours import fields_of, is_one

COMMON = 0.5
"""The share of the countries that have a field, above which it is missed where it is not."""


def missing(countries: Sequence[Country], asked: Iterable[Asked]) -> dict[str, Fact]:
    """Fields that most countries of a split have and one of them lacks, as facts without answer.

    No field of the country begins with the same words: who has no "Railways, total" has no
    "Railways" and no "Railways, narrow gauge" either. Of each country comes one field, then of each
    another one, in random order: entries that say little do not outnumber the others at first.

    Args:
        countries: of one split.
        asked: what can be asked of the countries; what nobody is asked for is not missed.

    Returns:
        Facts by an id such as "kenya/missing/railways-total".
    """
    members = [country for country in countries if is_one(country)]
    having: dict[str, set[str]] = defaultdict(set)
    for each in asked:
        if each.bare:
            having[each.label].add(each.country)
    common = [label for label, slugs in having.items() if len(slugs) > COMMON * len(members)]
    facts: dict[str, Fact] = {}
    rounds: list[list[str]] = []
    for country in members:
        stems = {stem(label) for label in fields_of(country)}
        lacking = {
            f"{country.slug}/missing/{slug_of(label)}": Fact(country, label, "", ())
            for label in common
            if stem(label) not in stems
        }
        facts |= lacking
        rounds.append(drawn(lacking, None, "missing"))
    by_round = (drawn(filter(None, row), None, "round") for row in zip_longest(*rounds))
    return {name: facts[name] for row in by_round for name in row}


def stem(label: str) -> str:
    """The field that a label is a part of: "exports" of "Exports 2023" and "Exports - partners"."""
    return re.split(r",| - | \d{4}$| \(", label)[0].casefold()
