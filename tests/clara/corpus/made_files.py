"""Small files of each kind, made of their bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import docx

from clara.corpus.documents import Failure
from clara.corpus.readers.rows import Row

DEEP = "<div>" * 200_000 + "the end"
"""A page so deeply nested that its parser takes minutes."""


def pdf_of(pages: Sequence[str], title: str | None = None) -> bytes:
    """A PDF file with a line of text on each page; a page of "" has none."""
    first = 4
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        shown = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents "
            f"{first + 2 * number + 1} 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(shown)} >>\nstream\n{shown}\nendstream",
        ]
    objects.append(f"<< /Title ({title or ''}) >>")
    content, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        content
        + (
            f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R "
            f"/Info {len(objects)} 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
        ).encode()
    )


def docx_of() -> bytes:
    """A Word document with a title, headings, a table with a merged row, and paragraphs."""
    document = docx.Document()
    document.add_heading("Manual", 0)
    document.add_heading("Start", 1)
    document.add_paragraph("Press the \tbutton.")
    table = document.add_table(3, 2)
    for row, values in enumerate((("part", "number"), ("bolt", "7"))):
        for column, value in enumerate(values):
            table.cell(row, column).text = value
    table.cell(2, 0).merge(table.cell(2, 1)).text = "all of them"
    document.add_heading("Stop", 2)
    document.add_paragraph("Pull it.")
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def archive_of(files: dict[str, bytes]) -> bytes:
    """A ZIP archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def outcome(rows: Iterable[Row | Failure]) -> list[tuple[str, Any]]:
    """Values of rows and reasons of failures, by place."""
    return [
        (each.where, each.reason if isinstance(each, Failure) else dict(each.values))
        for each in rows
    ]
