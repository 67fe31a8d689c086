"""Who borders on whom, from the field "Land boundaries, border countries"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from clara.data.factbook.answers import folded, leading
from clara.data.factbook.build import Country

BORDERS = "Land boundaries, border countries"

# Names in lists of borders that no entry has.
_OTHER_NAMES = {"us": "united states", "macedonia": "north macedonia"}
_NAMED = tuple(
    f"Country name, {form}"
    for form in ("conventional short form", "conventional long form", "abbreviation")
)
_BORDER = re.compile(r"(?:^|; |, )(?:the )?([A-Z][^\d:;]*?) ([\d,.]+) km")


def neighbours(countries: Iterable[Country]) -> dict[str, dict[str, str]]:
    """For each country the slugs of its neighbours, each with the border's length as it is written.

    "Ethiopia 867 km; Somalia 684 km" of Kenya gives `{"ethiopia": "867", "somalia": "684"}`. A name
    that no country has, such as "French Guiana", is left out, and so is what is a part of a country
    only, such as "Spain (Ceuta)". The world and the European Union have no neighbours.

    Args:
        countries: from `load_factbook`. Those that are not among them are nobody's neighbours.
    """
    countries = [country for country in countries if is_one(country)]
    texts = {country.slug: fields_of(country) for country in countries}
    slugs: dict[str, str] = {}
    for country in countries:
        slugs[_plain(country.name)] = country.slug
    for country in countries:
        for label in _NAMED:
            for name in leading(texts[country.slug].get(label, "")):
                slugs.setdefault(_plain(name), country.slug)
    found: dict[str, dict[str, str]] = {}
    for country in countries:
        borders = _BORDER.findall(texts[country.slug].get(BORDERS, ""))
        lengths = [(slugs.get(_plain(name)), length) for name, length in borders]
        found[country.slug] = {slug: length for slug, length in lengths if slug is not None}
    return found


def is_one(country: Country) -> bool:
    """Whether an entry is of one country or territory, not of the world, an ocean or a union."""
    named = country.name not in ("World", "European Union")
    return named and "Government" in country.sections and "People and Society" in country.sections


def fields_of(country: Country) -> Mapping[str, str]:
    """The texts of a country's fields by label."""
    return {field.label: field.text for fields in country.sections.values() for field in fields}


def _plain(name: str) -> str:
    """A name without accents and letter case, by the name that an entry has."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = folded(letters)
    return _OTHER_NAMES.get(plain, plain)
