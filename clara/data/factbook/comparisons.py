"""Questions that compare two countries: "Which is larger in area, Kenya or Uganda?"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clara.data.factbook.asking import Asked
from clara.data.factbook.build import Country, slug_of
from clara.data.factbook.drawing import drawn
from clara.data.factbook.neighbours import is_one
from clara.data.factbook.two_chunks import TwoChunks

PARTNERS = 3
"""The most countries that are drawn to compare a country with, by measure; neighbours are extra."""


@dataclass(frozen=True)
class Measure:
    """A number that countries can be compared by.

    Attributes:
        kind: of `Asked`, whose answer begins with the number.
        most: asks for the country with the larger number; with places for `a` and `b`.
        least: asks for the other one.
    """

    kind: str
    most: str
    least: str


def _measure(kind: str, most: str, least: str) -> Measure:
    return Measure(kind, f"{most} {{a}} or {{b}}?", f"{least} {{a}} or {{b}}?")


MEASURES = (
    _measure("Area, total", "Which is larger in area,", "Which is smaller in area,"),
    _measure("Population, total", "Which has more inhabitants,", "Which has fewer inhabitants,"),
    _measure("Coastline", "Which has the longer coastline,", "Which has the shorter coastline,"),
    _measure(
        "peak-height",
        "Where is the highest point higher, in",
        "Where is the highest point lower, in",
    ),
    _measure(
        "Mean elevation", "Where is the mean elevation higher, in", "Which lies lower on average,"
    ),
    _measure(
        "Median age, total",
        "Where is the median age higher, in",
        "Where is the median age lower, in",
    ),
    _measure(
        "Life expectancy at birth, total population",
        "Where do people live longer on average, in",
        "Where is the life expectancy at birth lower, in",
    ),
    _measure("Birth rate", "Where is the birth rate higher, in", "Which has the lower birth rate,"),
    _measure("Death rate", "Where is the death rate higher, in", "Which has the lower death rate,"),
    _measure("Airports", "Which has more airports,", "Which has fewer airports,"),
    _measure(
        "Railways, total", "Which has more km of railways,", "Which has fewer km of railways,"
    ),
    _measure("Labor force", "Which has the larger labor force,", "Whose labor force is smaller,"),
    _measure(
        "Electricity, consumption",
        "Which consumes more electricity,",
        "Which consumes less electricity,",
    ),
    _measure(
        "Internet users, percent of population",
        "Where does a larger share of people use the internet, in",
        "Where does a smaller share of people use the internet, in",
    ),
    _measure(
        "Urbanization, urban population",
        "Which is more urban by share of population,",
        "Which is less urban by share of population,",
    ),
)

_SCALES = {"": 1.0, " million": 1e6, " billion": 1e9, " trillion": 1e12}
_NUMBER = re.compile(r"\$?(-?\d[\d,]*(?:\.\d+)?)( (?:m|b|tr)illion)?(.*)")


def number_of(value: str) -> tuple[float, str] | None:
    """Number and unit of a value: 23.781e6 and "kWh" of "23.781 million kWh".

    None where it does not begin with a number.
    """
    found = _NUMBER.fullmatch(value)
    if found is None:
        return None
    return float(found[1].replace(",", "")) * _SCALES[found[2] or ""], found[3].strip()


def comparisons(
    countries: Sequence[Country],
    asked: Mapping[tuple[str, str], Asked],
    borders: Mapping[str, Mapping[str, str]],
) -> Iterator[TwoChunks]:
    """Compare each country with its neighbours and with `PARTNERS` others, by each measure.

    Half of the questions ask for the larger number and half for the smaller one, and the country
    that is the answer comes first in half of them. Countries with the same number, or with numbers
    of different units, are not compared.

    Args:
        countries: of one split.
        asked: what can be asked, by country and kind.
        borders: from `neighbours`.
    """
    by_slug = {country.slug: country for country in countries if is_one(country)}
    for measure in MEASURES:
        numbers = {
            slug: number
            for slug in by_slug
            if (slug, measure.kind) in asked
            and (number := number_of(asked[slug, measure.kind].answer)) is not None
        }
        pairs: dict[tuple[str, str], None] = {}
        for slug in numbers:
            others = [other for other in numbers if other != slug]
            partners = drawn(others, PARTNERS, "compare", measure.kind, slug)
            near = [other for other in borders.get(slug, ()) if other in numbers]
            for other in (*near, *partners):
                pairs[min(slug, other), max(slug, other)] = None
        for pair in pairs:
            (first, unit), (second, other_unit) = (numbers[slug] for slug in pair)
            if first != second and unit == other_unit:
                larger = pair[first < second]
                yield _comparison(measure, pair, larger, by_slug, asked)


def _comparison(
    measure: Measure,
    pair: tuple[str, str],
    larger: str,
    by_slug: Mapping[str, Country],
    asked: Mapping[tuple[str, str], Asked],
) -> TwoChunks:
    form, *_ = drawn(("most", "least"), 1, measure.kind, *pair)
    order = drawn(pair, None, "order", measure.kind, *pair)
    a, b = (by_slug[slug] for slug in order)
    answer = by_slug[larger if form == "most" else next(slug for slug in pair if slug != larger)]
    wording = measure.most if form == "most" else measure.least
    facts = [asked[slug, measure.kind] for slug in order]
    return TwoChunks(
        id=f"compare/{slug_of(measure.kind)}/{form}/{a.slug}/{b.slug}",
        question=wording.format(a=a.phrase, b=b.phrase),
        answer=answer.name,
        golds=(facts[0].positives[0], facts[1].positives[0]),
        wanted=((a.slug, facts[0].label), (b.slug, facts[1].label)),
    )
