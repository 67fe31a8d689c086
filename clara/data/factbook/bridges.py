"""Questions whose country has to be found first: "… of the country whose capital is Nairobi?"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from clara.data.factbook.answers import folded, leading
from clara.data.factbook.asking import Asked
from clara.data.factbook.build import Country, slug_of
from clara.data.factbook.candidates import Candidates
from clara.data.factbook.labels import name_of
from clara.data.factbook.neighbours import BORDERS, fields_of, is_one
from clara.data.factbook.two_chunks import TwoChunks
from clara.data.records import Document

# What is asked of a country that is not named.
TARGETS = (
    "Area, total",
    "Coastline",
    "Elevation, highest point",
    "Mean elevation",
    "Population, total",
    "Population growth rate",
    "Nationality, noun",
    "Median age, total",
    "Birth rate",
    "Death rate",
    "Life expectancy at birth, total population",
    "Total fertility rate",
    "Carbon dioxide emissions, total emissions",
    "Capital, name",
    "Country name, local short form",
    "National anthem(s), title",
    "Exchange rates, Currency",
    "Labor force",
    "Electricity, consumption",
    "Internet country code",
    "Airports",
    "Railways, total",
    "Total ports",
)
# Fields that tell a country from all others, with what a question says of it.
KEYS = (
    ("Capital, name", "the country whose capital is {value}"),
    ("Internet country code", "the country with the internet country code {value}"),
)


class Bridges:
    """Makes the questions about countries of one split.

    Args:
        every: the countries of all splits; what tells a country from the others does so in all.
        passages: of the split.
        asked: what can be asked, by country and kind.
        candidates: of the passages.
    """

    def __init__(
        self,
        every: Sequence[Country],
        passages: Sequence[Document],
        asked: Mapping[tuple[str, str], Asked],
        candidates: Candidates,
    ) -> None:
        self._texts = {passage.id: folded(passage.text) for passage in passages}
        self._asked, self._candidates = asked, candidates
        fields = [fields_of(country) for country in every]
        self._values = {
            label: Counter(folded("".join(leading(each.get(label, "")))) for each in fields)
            for label, _ in KEYS
        }

    def of_neighbours(
        self, countries: Sequence[Country], borders: Mapping[str, Mapping[str, str]]
    ) -> Iterator[TwoChunks]:
        """Ask for a field of the neighbour with the longest border, or with a border of a length.

        "What is the capital of the country that has the longest border with Kenya?" One passage
        says which country that is, and another says what its capital is. The passage with the
        capital of Kenya is a decoy.

        Args:
            countries: of the split.
            borders: from `neighbours`, with the neighbours of all splits.
        """
        by_slug = {country.slug: country for country in countries if is_one(country)}
        for slug, country in by_slug.items():
            holders = self._candidates.holders(slug, BORDERS)
            lengths = borders.get(slug, {})
            if len(holders) != 1:  # a list that is cut tells of some neighbours only
                continue
            longest = max((_kilometres(each) for each in lengths.values()), default=0.0)
            counts = Counter(lengths.values())
            for neighbour, length in lengths.items():
                if neighbour not in by_slug or counts[length] > 1:
                    continue
                if _kilometres(length) == longest:
                    found = f"the country that has the longest border with {country.phrase}"
                else:
                    found = f"the country whose border with {country.phrase} is {length} km long"
                wanted = ((slug, BORDERS), (neighbour, BORDERS))
                yield from self._targets(f"border/{slug}", found, holders[0], wanted, neighbour)

    def of_keys(self, countries: Sequence[Country]) -> Iterator[TwoChunks]:
        """Ask for a field of the country with a capital, or with an internet country code."""
        for country in countries:
            for label, wording in KEYS:
                key = self._asked.get((country.slug, label))
                if not is_one(country) or key is None:
                    continue
                if self._values[label][folded(key.answer)] != 1:
                    continue
                found = wording.format(value=key.answer)
                name = f"{slug_of(label)}/{country.slug}"
                wanted = ((country.slug, label),)
                for each in self._targets(name, found, key.positives[0], wanted, country.slug):
                    if folded(key.answer) not in self._texts[each.golds[1]]:
                        yield each

    def _targets(
        self,
        name: str,
        found: str,
        first: str,
        wanted: tuple[tuple[str, str], ...],
        slug: str,
    ) -> Iterator[TwoChunks]:
        """Ask for each target of the country `slug`, which the passage `first` tells.

        The passage of the target holds none of the fields that tell the country, and `first` does
        not hold the answer.
        """
        telling = {name for each in wanted for name in self._candidates.holders(*each)}
        for label in TARGETS:
            target = self._asked.get((slug, label))
            if target is None or telling & set(target.positives):
                continue
            answer = folded(target.answer)
            if any(answer in self._texts[name] for name in telling):
                continue
            source = wanted[0][0]
            own = self._asked.get((source, label))
            decoys: tuple[str, ...] = ()
            if own is not None and source != slug:
                if folded(own.answer) == answer:
                    continue
                decoys = tuple(n for n in own.positives[:1] if answer not in self._texts[n])
            yield TwoChunks(
                id=f"{name}/{slug}/{slug_of(label)}",
                question=f"What is the {name_of(label).with_country(found)}?",
                answer=target.answer,
                golds=(first, target.positives[0]),
                wanted=(*wanted, (slug, label)),
                banned=target.answer,
                decoys=decoys,
            )


def _kilometres(length: str) -> float:
    return float(length.replace(",", ""))
