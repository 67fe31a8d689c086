import json
import sys

import pytest

from clara.terminal.printing import (
    excerpt,
    is_terminal,
    one_line,
    print_json,
    printable,
    say,
    size,
)

HOSTILE = [
    "\x1b[31mred\x1b[0m",  # colour
    "\x1b]0;title\x07",  # window title
    "\x9b2J",  # the one-character form of ESC [
    "back\b\b\b\bover",
    "first\rsecond",
    "\u202etxt.exe",
    "half \ud800 pair",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_steers_the_terminal(text):
    for shown in (printable(text), one_line(text), excerpt(text)):
        assert shown.isprintable()
        assert "\ufffd" in shown
        shown.encode()


def test_ordinary_text_is_left_alone():
    text = "Zürich: 3 °C\n\t[bold]not markup[/bold] :smile: 東京"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
    assert one_line(" a\n\n b\t c ") == "a b c"


def test_excerpt_has_the_length_asked_for():
    assert excerpt("word " * 100, longest=21) == "word word word word…"
    assert excerpt("word", longest=4) == "word"


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_ascii_and_reads_back(text, capsys):
    print_json({"text": text})
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    assert printed[:-1].isascii()
    assert printed[:-1].isprintable()
    assert json.loads(printed) == {"text": text}


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (15_240_000, "15.2 MB"),
        (3_000_000_000, "3.0 GB"),
        (4_500_000_000_000, "4500.0 GB"),
    ],
)
def test_size(count, shown):
    assert size(count) == shown


def test_what_is_said_is_one_line_on_standard_error(capsys):
    say("a file\x1b[31m\nof  many lines")
    assert capsys.readouterr() == ("", "a file\ufffd[31m of many lines\n")


def test_a_stream_that_is_closed_stops_nothing(monkeypatch, tmp_path):
    closed = open(tmp_path / "log", "w", encoding="utf-8")  # noqa: SIM115
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        say("nobody hears it")
        assert not is_terminal()
