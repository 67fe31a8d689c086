"""What kind a file is: by its suffix, and by its beginning where the suffix says nothing."""

from __future__ import annotations

import codecs
from importlib.util import find_spec
from pathlib import PurePath

from clara.data import recognition
from clara.data.values import DataError

TABLES = frozenset({"jsonl", "csv", "parquet", "dataset"})
"""Kinds of files that hold many documents."""

EXTRACTED = {"html": "selectolax", "pdf": "pypdf", "docx": "docx"}
"""Kinds that a child process reads, with the module that each needs."""

_PACKAGES = {"docx": "python-docx"}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
}
ACCEPTED = (
    "JSON lines (.jsonl), CSV, TSV, Parquet, text, Markdown, HTML, PDF, DOCX, and folders that "
    "datasets saved; datasets:NAME is a data set of the hub"
)


def by_suffix(path: str) -> str | None:
    """The kind that a name tells; None for other files."""
    return _SUFFIXES.get(PurePath(path).suffix.lower())


def by_content(head: bytes) -> str | None:
    """The kind that the first `recognition.HEAD` bytes tell; None if no kind begins so."""
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        return "docx" if b"word/" in head else None
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text[:100].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    if text.startswith(b"{"):
        return "jsonl"
    foreign = recognition.foreign("", head, "")
    return "text" if foreign is None or ": is text without" in foreign else None


def check_installed(kinds: set[str]) -> None:
    """Refuse kinds whose reader is not installed.

    Raises:
        DataError: names the extra that installs it.
    """
    for kind in sorted(kinds):
        module = EXTRACTED.get(kind)
        if module is not None and find_spec(module) is None:
            raise DataError(
                f"reading {kind.upper()} files needs the package "
                f"{_PACKAGES.get(module, module)}: install the extra files, pip install '.[files]'"
            )
