"""Recognise a file that is not JSON lines, to name its kind in one line."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

CORPUS = 'a corpus is JSON lines, one {"id": "…", "contents": "…", "title"?: "…"} a line'
QUESTIONS = 'questions are JSON lines, one {"id", "question", "golden_answers"} a line'
RECORDS = "records are JSON lines, one JSON object a line"

HEAD = 1 << 16
"""Bytes of a file that are looked at."""

# What a file begins with, by how people call it.
_BEGINNINGS = (
    (b"%PDF-", "a PDF file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an office program"),
    (b"{\\rtf", "a document in RTF"),
)
_SUFFIXES = {
    ".md": "a Markdown file",
    ".markdown": "a Markdown file",
    ".rst": "a text file",
    ".txt": "a text file",
    ".csv": "a CSV file",
    ".tsv": "a TSV file",
    ".yaml": "a YAML file",
    ".yml": "a YAML file",
    ".py": "a Python file",
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def folder(path: str | os.PathLike[str], expected: str) -> str:
    """The message about a folder."""
    return f"{os.fspath(path)}: is a folder; {expected}"


def foreign(path: str | os.PathLike[str], head: bytes, expected: str) -> str | None:
    """The message about a file that holds no JSON lines; None about one that does or may.

    A file in which some line begins an object is taken for JSON lines: what is wrong with it is
    said by line.

    Args:
        head: what the file begins with, `HEAD` bytes where there are as many.
        expected: what should be in the file, such as `CORPUS`.
    """
    kind = _kind(Path(os.fspath(path)), head)
    return None if kind is None else f"{os.fspath(path)}: is {kind}; {expected}"


def _kind(path: Path, head: bytes) -> str | None:
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head.startswith(b"PK\x03\x04"):
        return _archive(head)
    if head.startswith(_UTF16) or _looks_like_utf16(head):
        return "text in UTF-16; convert it to UTF-8"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        return None
    if text.startswith(b"["):
        return "a JSON array"
    if text.startswith(b"{"):
        return "one JSON object over several lines" if _spread(text) else None
    begins = [line.lstrip()[:1] for line in text.splitlines()]
    if b"{" in begins or _is_json(text.splitlines()[0]):
        return None
    if b"\0" in text or not _is_utf8(text):
        return "a binary file"
    lowered = text[:100].lower()
    if lowered.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if lowered.startswith(b"<"):
        return "an XML or HTML file"
    return _SUFFIXES.get(path.suffix.lower(), "text without a JSON object")


def _archive(head: bytes) -> str:
    """What a ZIP archive is, by the names of its first files."""
    if b"word/" in head:
        return "a Word document"
    if b"xl/" in head:
        return "an Excel sheet"
    if b"ppt/" in head:
        return "a PowerPoint presentation"
    if b"application/epub+zip" in head:
        return "an EPUB book"
    return "a ZIP archive"


def _looks_like_utf16(head: bytes) -> bool:
    """Whether every other byte of the beginning is zero, as in UTF-16 without its mark."""
    pairs = head[:64]
    if len(pairs) < 4:
        return False
    return any(not any(pairs[i::2]) and all(pairs[1 - i :: 2]) for i in (0, 1))


def _spread(text: bytes) -> bool:
    """Whether the object that a text begins with goes on over its lines."""
    first, newline, _ = text.partition(b"\n")
    if not newline or _is_json(first):
        return False
    if first.strip() == b"{":
        return True
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and end > len(first)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_utf8(text: bytes) -> bool:
    """Whether a text, perhaps cut within a character, is UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return True
