"""A corpus as JSON lines, which everything that takes a corpus reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from clara.corpus.documents import CorpusDocument
from clara.corpus.fields import MARKS_FIELD
from clara.data.values import DataError, shown
from clara.files.writing import replacing

_OWN = ("id", "contents", "title", MARKS_FIELD)
_BLOCK = 1 << 22  # bytes


def write_corpus(path: str | os.PathLike[str], documents: Iterable[CorpusDocument]) -> int:
    """Write documents as JSON lines `{"id", "contents", "title"?, …metadata, "marks"?}`.

    Marks are pairs of offset and label. `Reading` reads the file back as the same documents. Of
    documents that replace an earlier one with their id only the last is kept. After an error the
    file is as it was before.

    Args:
        path: the file, which is replaced if it exists. Its folder must exist.

    Returns:
        How many documents the file holds.

    Raises:
        DataError: a field of the metadata is called as one of the fields above; or as what is
            iterated raises.
        OSError: the file cannot be written.
    """
    target = os.path.realpath(path)
    last: dict[str, int] = {}  # where the line begins of every document that may be replaced
    dropped: set[int] = set()
    with replacing(target, sync=True) as unfinished, unfinished.open("w+b") as file:
        offset = lines = 0
        for document in documents:
            lines += 1
            if document.replaces and document.id in last:
                dropped.add(last[document.id])
            last[document.id] = offset
            offset += file.write(_line(document))
        if dropped:
            _close_gaps(file, sorted(dropped))
    return lines - len(dropped)


def _line(document: CorpusDocument) -> bytes:
    taken = [name for name in _OWN if name in document.metadata]
    if taken:
        raise DataError(
            f"{document.where or shown(document.id)}: the field {taken[0]!r} cannot be written "
            f"beside the document's own; choose the fields to keep with --metadata-field"
        )
    fields: dict[str, Any] = {"id": document.id, "contents": document.text}
    if document.title is not None:
        fields["title"] = document.title
    fields.update(document.metadata)
    if document.marks:
        fields[MARKS_FIELD] = document.marks
    return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _close_gaps(file: Any, dropped: list[int]) -> None:
    """Remove the lines that begin at these offsets from a file, in place."""
    file.seek(0)
    write, begin = 0, 0
    for gap in [*dropped, None]:
        end = file.seek(0, os.SEEK_END) if gap is None else gap
        while begin < end:
            file.seek(begin)
            block = file.read(min(end - begin, _BLOCK))
            file.seek(write)
            file.write(block)
            begin += len(block)
            write += len(block)
        if gap is not None:
            file.seek(gap)
            begin = gap + len(file.readline())
    file.truncate(write)
