"""Candidates that are hard to tell from the document that holds the answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice

from clara.data.factbook.answers import folded
from clara.data.factbook.asking import Asked
from clara.data.factbook.build import field_lines
from clara.data.factbook.drawing import drawn
from clara.data.records import Document


class Candidates:
    """Chooses candidates among documents with ids such as "france/geography/0".

    Half of them are other documents of the same country. The others are documents of other
    countries: first those with the same field, then those of the same section.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._texts = {document.id: folded(document.text) for document in documents}
        self._of_country: dict[str, list[str]] = defaultdict(list)
        self._of_section: dict[str, list[str]] = defaultdict(list)
        for name in self._texts:
            country, section, _ = name.split("/")
            self._of_country[country].append(name)
            self._of_section[section].append(name)
        self._with_field: dict[str, list[str]] = defaultdict(list)
        self._fields: dict[str, Mapping[str, Sequence[tuple[str, str]]]] = {}
        for country, lines in field_lines(documents).items():
            self._fields[country] = lines
            for label, holders in lines.items():
                self._with_field[label] += dict.fromkeys(name for name, _ in holders)

    def of(self, asked: Asked, count: int) -> list[str]:
        """The ids of `count` candidates in random order; one of them holds the answer.

        No other document of the country has the field, or the answer anywhere in its text.
        """
        gold = asked.positives[0]
        key = (asked.country, asked.kind)
        fields = self._fields[asked.country].get(asked.label, ())
        holders = {name for name, _ in fields}
        answer = folded(asked.answer)
        # Drawn first and looked at then: most of what is drawn is not needed.
        near = (
            name
            for name in drawn(self._of_country[asked.country], None, *key)
            if name not in holders and answer not in self._texts[name]
        )
        chosen = [gold, *islice(near, (count - 1) // 2)]
        for others in (
            self._with_field[asked.label],
            self._of_section[gold.split("/")[1]],
            self._texts,
        ):
            if len(chosen) == count:
                break
            own = f"{asked.country}/"
            foreign = (
                name
                for name in drawn(others, None, *key)
                if not name.startswith(own) and name not in chosen
            )
            chosen += list(islice(foreign, count - len(chosen)))
        return drawn(chosen, None, "order", *key)
