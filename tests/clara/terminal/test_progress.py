"""Progress bars: seen on a terminal, nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from clara.terminal.progress import Lines, document_progress, duration


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


def test_a_log_gets_a_line_every_so_often(monkeypatch, capsys):
    times = iter([0.0, 4.0, 10.0, 10.0, 15.0, 30.0, 30.0])
    lines = Lines("build", 1500, 100, "documents", 10.0, lambda: next(times))
    lines.advance(100)
    lines.advance(100, "8.0x compression")
    lines.advance(50)
    lines.advance(10, "8.1x\x1b compression")
    assert capsys.readouterr().err.splitlines() == [
        "build: 300 of 1,500 documents, 20.0 documents/s, 8.0x compression, 1 min left",
        "build: 360 of 1,500 documents, 3.0 documents/s, 8.1x\ufffd compression, 6 min left",
    ]


def test_lines_only_where_there_is_no_terminal(monkeypatch):
    text = shown(monkeypatch, terminal=False, lines_every=0.0)
    assert len(text.splitlines()) == 2
    assert "40 of 40 documents" in text
    assert shown(monkeypatch, terminal=False, visible=False, lines_every=0.0) == ""
    assert "40 of 40" not in shown(monkeypatch, terminal=True, lines_every=0.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (450_000, "125 h 0 min")],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
