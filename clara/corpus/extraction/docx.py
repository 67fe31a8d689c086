"""Text of Word documents, with python-docx."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from clara.corpus.documents import Extracted
from clara.corpus.extraction.text import Growing, heading_mark
from clara.corpus.limits import MB, Limits
from clara.data.values import DataError
from clara.errors import reason

_MOST_ENTRIES = 10_000
_HEADING = re.compile(r"heading (\d)", re.IGNORECASE)
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# Content controls, tracked insertions and tags: python-docx passes over all that stands in them.
_WRAPPERS = ("sdt", "ins", "moveTo", "smartTag", "customXml")


def read_docx(file: BinaryIO, limits: Limits) -> Extracted:
    """Paragraphs and tables in their order; headings are marks.

    Headers, footers, footnotes and comments are not read.

    Raises:
        DataError: it is no such file, is damaged, too long, expands to too much, or has no text.
    """
    _check_archive(file, limits)
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    try:
        document = docx.Document(file)
        _unwrap(document.element.body)
        growing = Growing(limits)
        titled = None
        for level, text in _blocks(document):
            mark = None if level is None else heading_mark(max(level, 1), text)
            growing.add(text, mark=mark)
            if level == 0 and titled is None:
                titled = text
        title = document.core_properties.title or titled
    except (
        *(OpcError, LxmlError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError),
        *(KeyError, IndexError, AttributeError, OSError, TypeError),
    ) as error:
        raise DataError(f"is damaged: {reason(error)}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"is no Word document: {reason(error)}") from error
    return growing.done(title, "holds no text")


def _check_archive(file: BinaryIO, limits: Limits) -> None:
    """Refuse what is no archive, and one whose files are too large unpacked.

    An archive may lie about sizes. No more than what it says is ever unpacked.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError("is not a Word document (.docx), or is damaged") from error
    if len(entries) > _MOST_ENTRIES:
        raise DataError(f"holds {len(entries):,} files, a Word document has at most 10,000")
    expanded = sum(entry.file_size for entry in entries)
    if expanded > limits.expanded_bytes:
        raise DataError(
            f"expands to {expanded / MB:,.0f} MB, the limit expanded_mb is {limits.expanded_mb:g}"
        )
    file.seek(0)


def _unwrap(body: Any) -> None:
    """Put what wrappers hold in their place, so that its text is read."""
    for name in _WRAPPERS:
        for wrapper in list(body.iter(_WORD + name)):
            held = wrapper.find(f"{_WORD}sdtContent") if name == "sdt" else wrapper
            for child in reversed([] if held is None else list(held)):
                wrapper.addnext(child)
            wrapper.getparent().remove(wrapper)


def _blocks(container: Any) -> Iterator[tuple[int | None, str]]:
    """Level and text of what a document or a cell of a table holds.

    The level is 0 for the title and from 1 on for headings, None for all else.
    """
    for block in container.iter_inner_content():
        if hasattr(block, "rows"):
            yield None, _table(block)
        else:
            yield _level(block), block.text


def _level(paragraph: Any) -> int | None:
    style = paragraph.style
    name = "" if style is None else style.name or ""
    if name.lower() == "title":
        return 0
    found = _HEADING.fullmatch(name)
    return int(found[1]) if found else None


def _table(table: Any) -> str:
    """The rows of a table, with a tab between the cells; a merged cell is told once."""
    lines = []
    above: set[Any] = set()
    for row in table.rows:
        cells = []
        seen: set[Any] = set()
        for cell in row.cells:
            if cell._tc in seen | above:
                continue
            seen.add(cell._tc)
            inside = "\n".join(text for _, text in _blocks(cell))
            cells.append(" ".join(inside.split()))
        above = seen | (above & {cell._tc for cell in row.cells})
        lines.append("\t".join(cells).strip())
    return "\n".join(line for line in lines if line)
