"""Text and Markdown: a document is a file."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterator

from clara.corpus.documents import Extracted
from clara.corpus.limits import Limits
from clara.data.marks import Mark
from clara.data.values import DataError

# UTF-32 first: its mark in one order begins with that of UTF-16.
_FOREIGN_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_SETTINGS = 1 << 16  # characters that a block of settings takes at most
_ENDS = ("---", "...")
_PIECE = 1 << 24  # bytes
_NEWLINE = re.compile(r"\r?\n")
_TITLE = re.compile(
    r"""title:[ \t]+(?:"([^"\\]+)"[ \t]*|'([^']+)'[ \t]*|([^\s"'>|&*!%@`\[{#][^#]*))"""
)
# What a paragraph, and so a heading that is underlined, does not begin with.
_NO_PARAGRAPH = re.compile(r" {0,3}(?:[>|]|[-+*][ \t]|\d+[.)][ \t])|(?: {4}|\t)")


def read_text(descriptor: int, limits: Limits) -> Extracted:
    """The text of a file in UTF-8.

    Args:
        descriptor: of the open file, which is closed.

    Raises:
        DataError: it is too long, not UTF-8, or holds NUL bytes or nothing.
    """
    with os.fdopen(descriptor, "rb") as file:
        raw = b""
        while len(raw) <= limits.document_bytes and (piece := file.read(_PIECE)):
            raw += piece  # a read of as much as the limit would need its memory for any file
    if len(raw) > limits.document_bytes:
        raise DataError(limits.too_long("the file"))
    text = decoded(raw)
    if not text.strip():
        raise DataError("is empty")
    return Extracted(text)


def read_markdown(descriptor: int, limits: Limits) -> Extracted:
    """A file in Markdown as it stands, with its headings as marks.

    The title is the one in the block of settings that the file may begin with, or else the first
    heading of level 1.

    Raises:
        DataError: as `read_text`.
    """
    text = read_text(descriptor, limits).text
    marks = tuple(_headings(text))
    title = _title_of_settings(text)
    if title is None:
        title = next((mark.label[2:] for mark in marks if mark.label.startswith("# ")), None)
    return Extracted(text, title, marks)


def decoded(raw: bytes) -> str:
    """Bytes as UTF-8, without the mark at the start that some programs write.

    Raises:
        DataError: says at which byte they are something else.
    """
    text = raw.removeprefix(codecs.BOM_UTF8)
    if flaw := byte_flaw(text, len(raw) - len(text)):
        raise DataError(flaw)
    return text.decode("utf-8")


def byte_flaw(raw: bytes, offset: int) -> str | None:
    """Why bytes are no text in UTF-8, with the place in the file; None where they are.

    Args:
        offset: bytes before them in the file.
    """
    if offset == 0:
        for mark, name in _FOREIGN_MARKS:
            if raw.startswith(mark):
                return f"is text in {name}; convert it to UTF-8"
    place = raw.find(b"\0")
    if place >= 0:
        return (
            f"holds a NUL byte at offset {offset + place}: it is binary, or text in UTF-16; "
            "convert it to UTF-8"
        )
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not valid UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
    return None


def _headings(text: str) -> Iterator[Mark]:
    """Headings outside of code and of the block of settings that a file may begin with."""
    fence = ""
    before: tuple[int, str] | None = None  # a paragraph of one line
    offset, inside = 0, False
    settings = _is_settings(text)
    for line in io.StringIO(text, newline=""):  # ends at line feeds and returns alone
        begin, offset = offset, offset + len(line)
        content = line.rstrip("\r\n")
        if settings:
            settings = begin == 0 or content.rstrip() not in _ENDS
            continue
        opened = _FENCE.match(content)
        if fence:
            if opened and opened[1].startswith(fence) and not opened[2].strip():
                fence = ""
            continue
        if opened and not (opened[1][0] == "`" and "`" in opened[2]):
            fence, before, inside = opened[1], None, False
            continue
        if heading := _ATX.match(content):
            if said := _unclosed(heading[2] or ""):
                yield Mark(begin, f"{heading[1]} {said}")
            before, inside = None, False
        elif before and (underline := _UNDERLINE.match(content)):
            yield Mark(before[0], f"{'#' if underline[1][0] == '=' else '##'} {before[1]}")
            before, inside = None, False
        elif not content.strip():
            before, inside = None, False
        else:
            alone = not inside and not _NO_PARAGRAPH.match(content)
            before, inside = (begin, content.strip()) if alone else None, True


def _unclosed(heading: str) -> str:
    """A heading without the signs that may close it. Takes no more time than it is long."""
    said = heading.strip()
    left = said.rstrip("#")
    return left.rstrip() if not left or left[-1] in " \t" else said


def _is_settings(text: str) -> bool:
    """Whether a file begins with a block between lines of three hyphens."""
    first, *others = _NEWLINE.split(text[:_SETTINGS])
    return first.rstrip() == "---" and any(line.rstrip() in _ENDS for line in others)


def _title_of_settings(text: str) -> str | None:
    """The title in the block of settings at the start, if it is a plain or quoted word or more."""
    if not _is_settings(text):
        return None
    for line in _NEWLINE.split(text[:_SETTINGS])[1:]:
        if line.rstrip() in _ENDS:
            return None
        if found := _TITLE.fullmatch(line):
            return str(found[1] or found[2] or found[3].rstrip())
    return None
