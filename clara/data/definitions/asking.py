"""Questions about definitions: "What does \\"burp\\" mean?"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from clara.data.definitions.wordnet import Entry
from clara.data.factbook.answers import folded
from clara.data.factbook.drawing import drawn

LONGEST_DEFINITION = 30  # words of an answer
LONGEST_ASKED = 16  # words of a definition in a question

DEFINE = (
    'What does "{word}" mean?',
    'Define "{word}".',
    'What is meant by "{word}"?',
    'How is "{word}" defined?',
)
NAME = ('Which word means "{definition}"?', 'What is the word for "{definition}"?')
SYNONYM = ('Which other word means the same as "{word}"?', 'What is another word for "{word}"?')
EXAMPLE = ('In which example is "{word}" used?', 'How is "{word}" used in the example?')

_WORDINGS = 2


class Pair(NamedTuple):
    """A question about an entry; `kind` is "define", "name", "synonym" or "example"."""

    kind: str
    entry: str
    question: str
    answer: str

    def __str__(self) -> str:
        return f"{self.entry}/{self.kind}/{self.question}"


def pairs_of(
    entries: Sequence[Entry], words: Mapping[str, int], definitions: Mapping[str, int]
) -> Iterator[Pair]:
    """Everything that is asked about entries, in two wordings for most.

    Only words with a single meaning are asked for, and only definitions that are of one entry
    alone, so that a question has one answer in all of WordNet. The answer stands literally in the
    line of the entry.

    Args:
        words: the number of entries of each word, in small letters.
        definitions: the number of entries of each definition, folded.
    """
    for entry in entries:
        yield from _asked(entry, words)
        definition = entry.definition
        if (
            definitions[folded(definition)] == 1
            and len(definition.split()) <= LONGEST_ASKED
            and '"' not in definition
            and not any(folded(word) in folded(definition) for word in entry.words)
        ):
            for wording in drawn(NAME, 1, entry.id):
                question = wording.format(definition=definition)
                yield Pair("name", entry.id, question, entry.words[0])


def _asked(entry: Entry, words: Mapping[str, int]) -> Iterator[Pair]:
    """Questions that name a word of the entry."""
    single = [word for word in entry.words if words[word.casefold()] == 1]
    for word in drawn(single, 1, entry.id):
        if len(entry.definition.split()) <= LONGEST_DEFINITION:
            for wording in drawn(DEFINE, _WORDINGS, entry.id):
                yield Pair("define", entry.id, wording.format(word=word), entry.definition)
        others = [each for each in entry.words if each != word]
        if len(others) == 1:
            for wording in drawn(SYNONYM, 1, entry.id):
                yield Pair("synonym", entry.id, wording.format(word=word), others[0])
        if len(entry.examples) == 1 and folded(word) in folded(entry.examples[0]):
            for wording in drawn(EXAMPLE, 1, entry.id):
                yield Pair("example", entry.id, wording.format(word=word), entry.examples[0])
