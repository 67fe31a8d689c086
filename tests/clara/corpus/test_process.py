"""The process that extracts: one for many files, and every way in which it can come to an end."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from clara.corpus.extraction import process
from clara.corpus.extraction.process import Extractor
from clara.corpus.limits import Limits
from clara.data import DataError
from clara.data.marks import Mark

from .made_files import DEEP, docx_of, pdf_of


@pytest.fixture
def read(tmp_path):
    """Have an extractor read some content."""

    def read_content(extractor, kind, content):
        path = tmp_path / f"file.{kind}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return extractor.read(kind, os.open(path, os.O_RDONLY))

    return read_content


@pytest.fixture
def extractor():
    with Extractor(Limits(seconds=20)) as made:
        yield made


def test_one_process_serves_many_files(extractor, read):
    assert extractor.pid is None
    found = read(extractor, "html", "<h1>A</h1><p>b")
    first = extractor.pid
    assert (found.text, found.title, found.marks) == ("A\n\nb", "A", (Mark(0, "# A"),))
    assert read(extractor, "pdf", pdf_of(["one", "two"])).marks[1] == Mark(5, "page 2")
    assert read(extractor, "docx", docx_of()).title == "Manual"
    with pytest.raises(DataError, match=r"^is not a PDF file$"):
        read(extractor, "pdf", "text")
    assert extractor.pid == first  # refusing a file is no failure of the process
    long = "x" * 3_000_000
    assert read(extractor, "html", f"<p>{long}").text == long
    descriptors = len(os.listdir("/proc/self/fd"))
    read(extractor, "html", "<p>b")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    extractor.close()
    assert not psutil.pid_exists(first)


def test_a_file_that_takes_too_much_processor_time(read, monkeypatch):
    monkeypatch.setattr(process, "_PATIENCE", 100)  # other programs may take most of the time
    with Extractor(Limits(seconds=0.6)) as extractor:
        read(extractor, "html", "<p>before")
        first = extractor.pid
        with pytest.raises(
            DataError, match=r"^takes more than 0.6 s of processor time, the limit s"
        ):
            read(extractor, "html", DEEP)
        assert not psutil.pid_exists(first)
        assert read(extractor, "html", "<p>after").text == "after"


def test_a_file_that_hangs(read, monkeypatch):
    code = "import os, time; os.write(0, b'.'); time.sleep(60)"
    monkeypatch.setattr(process, "_CODE", code)
    with Extractor(Limits(seconds=0.1)) as extractor:
        with pytest.raises(
            DataError, match=r"^takes longer than 0.3 s, 3 times the limit seconds$"
        ):
            read(extractor, "html", "<p>")
        assert extractor.pid is None


def test_a_process_that_does_not_start(read, monkeypatch):
    monkeypatch.setattr(process, "_CODE", "import time; time.sleep(60)")
    monkeypatch.setattr(process, "_START", 0.2)
    with (
        Extractor() as extractor,
        pytest.raises(DataError, match=r"^its reader did not start within 0.2 s$"),
    ):
        read(extractor, "html", "<p>")
    assert extractor.pid is None


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "^its reader was killed, perhaps since the system lacked memory$"),
        (signal.SIGSEGV, "^its reader crashed with the signal SIGSEGV$"),
    ],
)
def test_a_process_that_is_killed_is_replaced(extractor, read, number, message):
    read(extractor, "html", "<p>before")
    first = extractor.pid
    killing = threading.Timer(0.3, os.kill, (first, number))
    killing.start()
    with pytest.raises(DataError, match=message):
        read(extractor, "html", DEEP)
    killing.join()
    assert extractor.pid is None
    assert read(extractor, "html", "<p>after").text == "after"
    assert extractor.pid != first


def test_a_process_that_dies_between_two_files(extractor, read):
    read(extractor, "html", "<p>before")
    os.kill(extractor.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"^its reader was killed"):
        read(extractor, "html", "<p>this")
    assert read(extractor, "html", "<p>after").text == "after"


def test_a_file_that_needs_too_much_memory(tmp_path, read):
    path = tmp_path / "large.html"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)
    with Extractor(Limits(memory_mb=500)) as extractor:
        read(extractor, "html", "<p>before")
        with pytest.raises(DataError, match=r"^needs more memory than 500 MB, the limit mem"):
            extractor.read("html", os.open(path, os.O_RDONLY))
        assert read(extractor, "html", "<p>after").text == "after"


def test_nothing_of_the_working_folder_or_the_environment_gets_in(read, tmp_path, monkeypatch):
    (tmp_path / "selectolax.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with Extractor() as extractor:
        assert read(extractor, "html", "<p>text").text == "text"
        seen = psutil.Process(extractor.pid)
        assert "OPENAI_API_KEY" not in seen.environ()
        assert seen.rlimit(psutil.RLIMIT_FSIZE)[0] == 0


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "{}",
        '{"text": 1, "title": null, "marks": []}',
        '{"text": "a", "title": null, "marks": [[2, "b"]]}',
        '{"text": "a", "title": null, "marks": [["0", "b"]]}',
        '{"text": "\\ud800", "title": null, "marks": []}',
        '{"text": "a", "title": null, "marks": [[0, "\\ud800"]]}',
        '{"text": "a", "title": null, "marks": [[1, "b"], [0, "c"]]}',
    ],
)
def test_answers_that_make_no_sense(read, monkeypatch, answer):
    """What a process answers that its file has taken over."""
    code = f"""
import socket
channel = socket.socket(fileno=0)
channel.sendall(b".")
channel.recv(1 << 16)
channel.sendall(len({answer!r}).to_bytes(8, "big") + {answer!r}.encode())
channel.recv(1 << 16)
"""
    monkeypatch.setattr(process, "_CODE", code)
    with (
        Extractor() as extractor,
        pytest.raises(DataError, match=r"^cannot be read: its reader's answer makes no sense$"),
    ):
        read(extractor, "html", "<p>")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "^its reader ended with the exit status 3$"),
        (
            "import os, time; os.write(0, b'\\xff' * 9); time.sleep(60)",
            "^cannot be read: its reader's answer is too long$",
        ),
        (
            "import os, time; os.write(0, b'\\0' * 8 + b'\\1{'); time.sleep(60)",
            "^cannot be read: its reader's answer makes no sense$",
        ),
    ],
)
def test_other_ends(read, monkeypatch, code, message):
    monkeypatch.setattr(process, "_CODE", code)
    with Extractor() as extractor, pytest.raises(DataError, match=message):
        read(extractor, "html", "<p>")
    assert extractor.pid is None


def test_the_process_ends_with_the_one_that_asks(tmp_path):
    (tmp_path / "deep.html").write_text(DEEP)
    code = f"from clara.corpus import Reading; list(Reading([{str(tmp_path)!r}]))"
    asking = subprocess.Popen([sys.executable, "-c", code])
    reading = []
    while not reading:
        time.sleep(0.05)
        reading = psutil.Process(asking.pid).children()
    while reading[0].cpu_times().user < 0.8:  # until it has begun with the page
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    assert psutil.wait_procs(reading, timeout=10)[1] == []
