"""Synthesis that goes on where it was stopped, and pays for no reply twice."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from clara.data import DataError, write_jsonl


class TestResuming:
    def command(self, server, corpus, output):
        return [
            *(sys.executable, "-c", "from clara.cli import main; main()", "synthesize"),
            *("--corpus", str(corpus), "--output", str(output), "--generator", "openai:m"),
            *("--base-url", server.url, "--concurrency", "3", "--json"),
        ]

    @pytest.mark.slow
    def test_a_killed_run_pays_for_nothing_twice(self, run, server, tmp_path, documents):
        wanted = run("whole.jsonl")[1]
        corpus, output = tmp_path / "docs.jsonl", tmp_path / "out.jsonl"
        write_jsonl(corpus, documents)
        server.requests.clear()
        server.seen.clear()
        server.delay = 0.03
        process = subprocess.Popen(
            self.command(server, corpus, output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        deadline = time.monotonic() + 300
        while len(server.requests) < 40:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
        server.delay = 0.0
        done = subprocess.run(
            self.command(server, corpus, output), capture_output=True, text=True, check=True
        )
        report = json.loads(done.stdout)
        assert [json.loads(line) for line in output.read_text().splitlines()] == wanted
        twice = [key for key, count in server.seen.items() if count > 1]
        assert len(twice) <= 3  # in flight when it was killed
        assert report["reused_replies"] >= 37
        assert json.loads((tmp_path / "out.jsonl.report.json").read_text()) == report
        assert report["paid_tokens"]["prompt"] < report["tokens"]["prompt"]

    def test_other_prompts_do_not_match(self, run, server, documents, tmp_path):
        run(only=documents[:2])
        before = len(server.requests)
        assert run(only=documents[:2])[0]["reused_replies"] == before
        assert len(server.requests) == before
        report, _ = run(only=documents[:2], temperature=0.1)
        assert report["reused_replies"] == 0

    def test_one_process_at_a_time(self, run, server, documents, tmp_path):
        from clara.synthesis.journal import Journal

        journal = Journal(tmp_path / "out.jsonl.journal")
        with pytest.raises(DataError, match="another process is writing there"):
            run()
        journal.close()
        run()

    def test_a_lone_surrogate_in_a_reply(self, run, server, documents):
        server.behave = lambda step, text, count: "no \ud800" if step == "simple" else None
        first, records = run(only=documents[:1])
        assert first["repaired_replies"] == 1
        before = len(server.requests)
        assert run(only=documents[:1])[1] == records
        assert len(server.requests) == before

    def test_a_reply_that_was_changed_on_disk(self, run, documents, tmp_path):
        run(only=documents[:1])
        connection = sqlite3.connect(tmp_path / "out.jsonl.journal")
        connection.execute("UPDATE replies SET text = replace(text, 'Brenn0', 'Brenn1')")
        connection.commit()
        connection.close()
        with pytest.raises(DataError, match=r"out\.jsonl\.journal: is damaged"):
            run(only=documents[:1])

    def test_outputs_that_cannot_be(self, run, server, documents, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match="folder: is a folder"):
            run("folder", documents[:1])
        with pytest.raises(DataError, match=r"journal: unable to open"):
            run("none/out.jsonl", documents[:1])
        assert not server.requests

    def test_a_journal_that_is_none(self, run, tmp_path):
        file = tmp_path / "out.jsonl.journal"
        file.write_bytes(b"not a journal " * 100)
        with pytest.raises(DataError, match=r"out.jsonl.journal: is not a journal"):
            run()
        assert file.read_bytes() == b"not a journal " * 100
