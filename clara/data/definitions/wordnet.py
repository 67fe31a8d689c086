"""Read the dictionary WordNet where the package wordnet-base installs it.

The format is that of the manual page wndb(5WN).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clara.data.factbook.drawing import drawn
from clara.errors import ClaraError

FOLDER = Path("/usr/share/wordnet")

# Of the files data.*, in the order in which they are read.
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
# Subjects by number, as in lexnames(5WN); "" where a number tells nothing but the part of speech.
_NOUNS = (
    "act animal artifact attribute body cognition communication event feeling food group location "
    "motive object person phenomenon plant possession process quantity relation shape state "
    "substance time"
)
_VERBS = (
    "body change cognition communication competition consumption contact creation emotion motion "
    "perception possession social stative weather"
)
SUBJECTS = ("", "", "", "", *_NOUNS.split(), *_VERBS.split(), "")
_LINE = re.compile(r"(\d{8}) (\d\d) ([nvasr]) ([0-9a-f]{2}) (.*?) \| (.*)")
_MARK = re.compile(r"\((?:p|a|ip)\)$")  # where an adjective may stand


class DefinitionsError(ClaraError, ValueError):
    """A package with texts is not installed, or its files are not what they should be."""


@dataclass(frozen=True)
class Entry:
    """Words with one meaning.

    Attributes:
        id: part of speech and place, "n02084071".
        part: "noun", "verb", "adjective" or "adverb".
        subject: of nouns and verbs, such as "animal"; may be empty.
        words: that have this meaning, at least one.
        gloss: definition and examples as WordNet writes them.
    """

    id: str
    part: str
    subject: str
    words: tuple[str, ...]
    gloss: str

    @property
    def line(self) -> str:
        return f"{', '.join(self.words)} ({self.part}): {self.gloss}"

    @cached_property
    def definition(self) -> str:
        """The gloss without examples."""
        return re.split(r'[;:,]? ?"', self.gloss)[0].strip(" ;") or self.gloss

    @cached_property
    def examples(self) -> tuple[str, ...]:
        """The quoted parts of the gloss, with two words or more."""
        quoted = re.findall(r'"([^"]+)"', self.gloss[len(self.definition) :])
        return tuple(each for each in quoted if " " in each)

    @property
    def split(self) -> str:
        """The split of the entry: 90% train, 5% validation, 5% test."""
        share = drawn(range(20), 1, "wordnet", self.id)[0]
        return ("validation", "test")[share] if share < 2 else "train"


def read_wordnet(folder: str | os.PathLike[str] = FOLDER) -> list[Entry]:
    """All entries, nouns first, in the order of the files.

    Raises:
        DefinitionsError: the package is not installed, or a line is none of WordNet.
    """
    return [entry for part in PARTS for entry in _entries(Path(folder) / f"data.{part}", part)]


def _entries(path: Path, part: str) -> Iterator[Entry]:
    if not path.is_file():
        raise DefinitionsError(
            f"{path}: no such file; WordNet is in Debian's package wordnet-base: "
            "apt-get install wordnet-base"
        )
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("  "):  # the licence
                continue
            entry = _entry(line.rstrip("\n"), part)
            if entry is None:
                raise DefinitionsError(f"{path}:{number}: not an entry of WordNet")
            yield entry


def _entry(line: str, part: str) -> Entry | None:
    found = _LINE.fullmatch(line)
    if found is None or int(found[2]) >= len(SUBJECTS):
        return None
    fields = found[5].split(" ")
    count = int(found[4], 16)  # each word is followed by a number that tells its meanings apart
    if count < 1 or len(fields) < 2 * count:
        return None
    words = tuple(_MARK.sub("", word).replace("_", " ") for word in fields[: 2 * count : 2])
    gloss = " ".join(found[6].split())
    subject = SUBJECTS[int(found[2])]
    return Entry(f"{found[3]}{found[1]}", PARTS[part], subject, words, gloss) if gloss else None
