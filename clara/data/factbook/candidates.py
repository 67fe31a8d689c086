"""Candidates that are hard to tell from the document that holds the answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from clara.data.factbook.answers import folded
from clara.data.factbook.asking import Asked
from clara.data.factbook.build import field_lines
from clara.data.factbook.drawing import drawn
from clara.data.records import Document

NEIGHBOURS = 3


class Candidates:
    """Chooses candidates among documents with ids such as "france/geography/0".

    Half of them are other documents of the same country. The others are documents of other
    countries: first those with the same field, then those of the same section. Where neighbours are
    given, up to `NEIGHBOURS` of their documents with the same field come before these.

    Args:
        documents: from `build_documents`.
        neighbours: slugs of a country's neighbours, see `neighbours`.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        neighbours: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._texts = {document.id: folded(document.text) for document in documents}
        self._neighbours = neighbours or {}
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
        wanted = [(asked.country, asked.label)]
        key = (asked.country, asked.kind)
        return self.around(asked.positives[:1], wanted, count, key, answer=asked.answer)

    def around(
        self,
        golds: Sequence[str],
        wanted: Sequence[tuple[str, str]],
        count: int,
        key: Sequence[str],
        *,
        answer: str | None = None,
        decoys: Iterable[str] = (),
    ) -> list[str]:
        """The ids of `count` candidates in random order, the `golds` among them.

        Args:
            golds: ids of the documents that hold the answer, at most `count`; may be empty.
            wanted: the fields that the question asks for, each as slug of the country and label.
                No other document of these countries with its field is a candidate.
            key: names of the question, which decide the draw.
            answer: no other document of the countries with this in its text is a candidate.
            decoys: ids that come before all others that are no golds.
        """
        barred = {name for each in wanted for name in self.holders(*each)}
        own = tuple(dict.fromkeys(country for country, _ in wanted))
        labels = tuple(dict.fromkeys(label for _, label in wanted))
        banned = None if answer is None else folded(answer)
        chosen = list(dict.fromkeys([*golds, *decoys]))[:count]
        # Drawn first and looked at then: most of what is drawn is not needed.
        near = (
            name
            for name in drawn((n for c in own for n in self._of_country[c]), None, *key)
            if name not in barred
            and name not in chosen
            and (banned is None or banned not in self._texts[name])
        )
        chosen += list(islice(near, max(0, (count + len(golds)) // 2 - len(chosen))))
        for others in self._foreign(golds, own, labels, key):
            if len(chosen) == count:
                break
            taken = set(chosen)
            foreign = (
                name
                for name in drawn(others, None, *key)
                if name.split("/")[0] not in own and name not in taken
            )
            chosen += list(islice(foreign, count - len(chosen)))
        return drawn(chosen, None, "order", *key)

    def holders(self, country: str, label: str) -> list[str]:
        """Ids of the documents that hold a field of a country, or a part of it."""
        return list(dict.fromkeys(n for n, _ in self._fields.get(country, {}).get(label, ())))

    def _foreign(
        self, golds: Sequence[str], own: Sequence[str], labels: Sequence[str], key: Sequence[str]
    ) -> Iterator[Iterable[str]]:
        """Documents of other countries, the most similar ones first."""
        bordering = [
            name
            for country in own
            for neighbour in self._neighbours.get(country, ())
            for label in labels
            for name in self.holders(neighbour, label)
        ]
        yield drawn(dict.fromkeys(bordering), NEIGHBOURS, *key)
        yield _joined([self._with_field.get(label, []) for label in labels])
        sections = dict.fromkeys(gold.split("/")[1] for gold in golds)
        yield _joined([self._of_section[section] for section in sections])
        yield self._texts


def _joined(lists: Sequence[list[str]]) -> Iterable[str]:
    """What is in any of the lists, once each; each of them has its entries once."""
    return lists[0] if len(lists) == 1 else dict.fromkeys(chain.from_iterable(lists))
