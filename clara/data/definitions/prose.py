"""Read prose from Python's documentation where the package python3.X-doc installs it.

Only paragraphs of whole sentences are kept, without the marks of reStructuredText. Lists, tables,
programs and what stands in front of them are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clara.data.definitions.wordnet import DefinitionsError
from clara.data.factbook.drawing import drawn

PLACES = "/usr/share/doc/python3.*/html/_sources"
FEWEST_WORDS = 12

# Folders with running text, and files that quote the licences of others.
_FOLDERS = ("c-api", "extending", "faq", "howto", "library", "reference", "tutorial", "whatsnew")
_LEFT_OUT = ("license", "copyright", "index", "changelog")

_MARKUP = (
    (re.compile(r":[\w:+.-]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"\1"),  # a role
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`([^`<]*?)\s*<[^`>]*>`__?"), r"\1"),  # a link
    (re.compile(r"`([^`]*)`_?_?"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"\\(.)"), r"\1"),
)
_SENTENCE = re.compile(r"[A-Z][^`|\\]*[.!?][\"')]*")
_NO_PROSE = re.compile(
    r"^\s*(?:\.\. |[*+#-] |\d+[.)] |>>> |\.\.\. |:\w|[|+=~^-]{3,})", re.MULTILINE
)


@dataclass(frozen=True)
class Text:
    """The paragraphs of one file.

    Attributes:
        name: of the file below the folder, without endings: "tutorial/classes".
        title: its first heading.
        paragraphs: each on one line.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split of the file: 80% train, 10% validation, 10% test."""
        share = drawn(range(10), 1, "prose", self.name)[0]
        return ("validation", "test")[share] if share < 2 else "train"


def prose_folder() -> Path:
    """The folder of the newest documentation of Python that is installed.

    Raises:
        DefinitionsError: there is none.
    """
    root, pattern = Path("/"), PLACES.lstrip("/")
    found = sorted(
        root.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))]
    )
    if not found:
        raise DefinitionsError(
            f"{PLACES}: no such folder; Python's documentation is in Debian's package "
            "python3.11-doc: apt-get install python3.11-doc (or leave it out with --no-prose)"
        )
    return found[-1]


def read_prose(folder: str | os.PathLike[str]) -> list[Text]:
    """The texts of all files with paragraphs, ordered by name.

    Raises:
        DefinitionsError: the folder holds none.
    """
    root = Path(folder)
    texts = []
    for path in sorted(root.glob("*/*.rst.txt")):
        name = str(path.relative_to(root)).removesuffix(".rst.txt")
        if path.parent.name not in _FOLDERS or path.name.split(".")[0] in _LEFT_OUT:
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        paragraphs = tuple(dict.fromkeys(_paragraphs(source)))
        if paragraphs:
            texts.append(Text(name, _title(source) or name, paragraphs))
    if not texts:
        raise DefinitionsError(f"{root}: holds no texts such as tutorial/classes.rst.txt")
    return texts


def _title(source: str) -> str:
    found = re.search(r"^(\S.*)\n[*=#~-]{4,}$", source, re.MULTILINE)
    return _plain(found[1]) if found else ""


def _paragraphs(source: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", source):
        if _NO_PROSE.search(block):
            continue
        depths = {len(line) - len(line.lstrip()) for line in block.splitlines()}
        text = _plain(block)
        if len(depths) == 1 and len(text.split()) >= FEWEST_WORDS and _SENTENCE.fullmatch(text):
            yield text


def _plain(text: str) -> str:
    """One line without the marks of reStructuredText."""
    line = " ".join(text.split())
    for pattern, plain in _MARKUP:
        line = pattern.sub(plain, line)
    return " ".join(line.split())
