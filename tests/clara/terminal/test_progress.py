"""Progress bars: seen on a terminal, nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from clara.terminal.progress import document_progress


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(monkeypatch, *, terminal: bool, **options) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with document_progress("compress [docs]", 40, done=10, **options) as bar:
        bar.advance(20)
        bar.advance(10, "5.2x")
    return stream.getvalue()


def test_a_terminal_shows_counts_and_details(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    assert "40/40" in text
    assert "5.2x" in text
    assert "compress [docs]" in text


@pytest.mark.parametrize(
    "options", [{"terminal": False}, {"terminal": True, "visible": False}], ids=["pipe", "off"]
)
def test_nothing_is_written_otherwise(monkeypatch, capfd, options):
    assert shown(monkeypatch, **options) == ""
    assert capfd.readouterr() == ("", "")
