"""Sections of a report's page: tables, pictures, and anchors for the list of contents."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clara.reports.tables import Table


@dataclass
class Picture:
    """A drawn PNG file and where the page has it from.

    Attributes:
        dark: the same for readers who prefer a dark page; "" if there is no such.
        width: in CSS pixels; None for one of them for each of its own.
    """

    name: str
    caption: str
    source: str
    dark: str = ""
    width: int | None = None


@dataclass
class Section:
    """A part of the page that the list of contents names.

    Attributes:
        plots: names of the pictures that belong here, without suffix.
        pictures: those of them that were drawn.
        anchor: of the section in the page.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    plots: tuple[str, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    anchor: str = ""


def inline(picture: Path) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def filled(sections: Sequence[Section], pictures: Sequence[Picture]) -> list[Section]:
    """Sections that have anything in them, with the pictures that were drawn and with anchors."""
    drawn = {Path(picture.name).stem: picture for picture in pictures}
    found: dict[str, Section] = {}
    for section in sections:
        section.pictures = [drawn[name] for name in section.plots if name in drawn]
        if section.pictures or any(table.rows or table.note for table in section.tables):
            section.anchor = _anchor(section.title, found)
            found[section.anchor] = section
    return list(found.values())


def _anchor(title: str, taken: dict[str, Section]) -> str:
    """A name in the page made of letters, digits and hyphens, whatever the title holds."""
    name = "-".join(re.findall("[a-z0-9]+", title.lower()))[:60] or "section"
    number = 2
    anchor = name
    while anchor in taken:
        anchor, number = f"{name}-{number}", number + 1
    return anchor
