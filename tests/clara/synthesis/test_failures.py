"""Errors of the server that synthesis asks, those that pass and those that do not."""

import json
import time

import pytest

from clara.data import DataError
from clara.data.records import Document
from clara.synthesis.document import Limits
from clara.synthesis.generators import Sampling
from clara.synthesis.prompts import SynthesisPrompts
from clara.synthesis.run import SynthesisSettings, synthesize
from clara.synthesis.server import OpenAIGenerator

from .conftest import by_kind
from .server import completion


class TestFailures:
    def test_errors_that_pass(self, run, server, documents):
        wanted = run("plain.jsonl", documents[:3])[1]
        server.seen.clear()
        failures = {
            "simple": (429, {"Retry-After": "0.01"}, b"{}"),
            "answer": (500, {}, b"oops"),
            "judge": (None, {}, b""),
            "coverage": (503, {}, b"{}"),
        }
        server.behave = lambda step, text, count: failures.get(step) if count == 0 else None
        report, records = run("out.jsonl", documents[:3], retries=3)
        assert records == wanted
        failed = sum(1 for count in server.seen.values() if count > 1)
        assert report["retries"] == failed > 5

    def test_a_time_out(self, run, server, documents):
        def behave(step, text, count):
            if step == "complex" and count == 0:
                time.sleep(4.0)

        server.behave = behave
        report, records = run(only=[documents[1]], timeout=2.0)
        assert report["retries"] == 1
        assert set(by_kind(records, "d1")) == {"simple", "complex", "paraphrase"}

    def test_errors_that_do_not_pass(self, run, server, documents):
        server.behave = lambda step, text, count: (500, {}, b"oops") if "Arvia1" in text else None
        report, records = run(only=documents[:3], retries=1)
        assert {r["document_id"] for r in records} == {"d0", "d2"}
        assert report["left_out"] == {"questions: status 500": 1}

    def test_a_document_that_is_too_long_for_the_model(self, run, server, documents):
        body = json.dumps({"error": {"message": "maximum context length is 8"}}).encode()
        server.behave = lambda step, text, count: (400, {}, body) if "Arvia1" in text else None
        report, records = run(only=documents[:3])
        assert {r["document_id"] for r in records} == {"d0", "d2"}
        assert report["left_out"] == {"questions: longer than the model reads": 1}
        assert "context length is 8" in report["failed_requests"]["longer than the model reads"]
        assert report["retries"] == 0

    def test_a_request_that_no_server_would_take(self, run, server, documents):
        body = json.dumps({"error": {"message": "unknown setting temperature"}}).encode()
        server.behave = lambda step, text, count: (400, {}, body)
        with pytest.raises(DataError, match=r"400: .*unknown setting"):
            run(only=documents[:3])

    def test_a_bad_request_among_good_ones(self, run, server, documents):
        body = json.dumps({"error": {"message": "odd"}}).encode()
        server.behave = lambda step, text, count: (
            (400, {}, body) if step == "complex" and "Arvia1" in text else None
        )
        report, records = run(only=documents[:3])
        assert {r["document_id"] for r in records} == {"d0", "d2"}
        assert report["left_out"] == {"questions: status 400": 1}

    def test_the_limit_under_its_newer_name(self, run, server, documents, monkeypatch):
        body = json.dumps({"error": {"message": "use 'max_completion_tokens' instead"}}).encode()
        server.behave = lambda *_: (
            (400, {}, body) if "max_tokens" in server.requests[-1][4] else None
        )
        report, _ = run(only=documents[:1], concurrency=1)
        assert report["finished"] == 1
        assert ["max_tokens" in asked for *_, asked in server.requests].count(True) == 1

    def test_no_quota(self, run, server, documents):
        error = {"error": {"message": "no quota left", "code": "insufficient_quota"}}
        server.behave = lambda *_: (429, {}, json.dumps(error).encode())
        with pytest.raises(DataError, match="no quota left"):
            run(only=documents[:3], concurrency=1)
        assert len(server.requests) == 1

    def test_retry_after(self, run, server, documents):
        later = (429, {"Retry-After": "0.6"}, b"{}")
        server.behave = lambda step, text, count: (
            later if step == "judge" and count == 0 and "Arvia0" in text else None
        )
        run(only=documents[:1], concurrency=8, retries=1)
        judged = [moment for moment, step, *_ in server.requests if step == "judge"]
        assert judged[1] - judged[0] >= 0.6

    def test_a_server_that_asks_for_too_long(self, run, server, documents):
        server.behave = lambda *_: (429, {"Retry-After": "86400"}, b"{}")
        with pytest.raises(DataError, match="asks to wait 86400 s"):
            run(only=documents[:2])

    def test_nobody_listens(self, tmp_path, documents):
        sampling = Sampling(retries=0)
        generator = OpenAIGenerator("m", "http://127.0.0.1:9/v1", sampling, 1)
        settings = SynthesisSettings(SynthesisPrompts(), Limits())
        with pytest.raises(DataError, match="cannot be reached"):
            synthesize(documents, tmp_path / "out.jsonl", generator, settings)

    def test_a_server_that_fails_all_the_time(self, run, server):
        server.behave = lambda *_: (500, {}, b"{}")
        many = [Document(str(i), f"The x of y{i} is z.") for i in range(150)]
        with pytest.raises(DataError, match=r"100 requests in a row had no reply.*status 500"):
            run(only=many, retries=0, concurrency=8)
        assert len(server.requests) < 120

    @pytest.mark.parametrize(
        "body",
        [
            b"not json",
            b"[]",
            b"null",
            b'{"choices": [{}]}',
            b'{"choices": [{"message": {"content": ["a"]}}]}',
        ],
    )
    def test_answers_of_other_shapes(self, run, server, documents, body):
        server.behave = lambda *_: (200, {}, body)
        report, _ = run(only=documents[:1])
        assert report["left_out"] == {"questions: unreadable answer of the server": 1}

    @pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://a/v1", "http://", "http://[/v1"])
    def test_addresses_that_are_none(self, url):
        with pytest.raises(DataError, match="base_url"):
            OpenAIGenerator("m", url, Sampling(), 1)

    def test_keys(self, run, server, documents, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
        with pytest.raises(DataError, match="OPENAI_API_KEY"):
            run(only=documents[:1])
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        body = json.dumps({"error": {"message": "bad key sk-secret"}}).encode()
        server.behave = lambda *_: (401, {}, body)
        with pytest.raises(DataError, match="bad key …"):
            run(only=documents[:1])

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_what_no_other_request_would_do_better_ends_the_run(
        self, run, server, documents, status, tmp_path
    ):
        body = json.dumps({"error": {"message": "no such key"}}).encode()
        server.behave = lambda step, text, count: (status, {}, body) if step == "judge" else None
        with pytest.raises(DataError, match=rf"{status}: .*no such key"):
            run(only=documents[:3])
        assert not (tmp_path / "out.jsonl").exists()
        paid = len(server.requests)
        server.behave = lambda step, text, count: None
        report, _ = run(only=documents[:3])
        assert report["reused_replies"] > 0
        assert len(server.requests) - paid == report["calls"] - report["reused_replies"]

    def test_an_answer_that_is_no_completion(self, run, server, documents):
        server.behave = lambda step, text, count: (200, {}, b'{"choices": []}')
        report, _ = run(only=documents[:1])
        assert report["left_out"] == {"questions: unreadable answer of the server": 1}

    def test_an_empty_reply(self, run, server, documents):
        body = completion("").replace(b'"content": ""', b'"content": null')
        server.behave = lambda step, text, count: (200, {}, body)
        report, _ = run(only=documents[:1])
        assert report["left_out"] == {"questions: unreadable reply": 1}

    def test_rate_limit(self, run, server, documents):
        run(only=documents[:2], requests_per_minute=1200, concurrency=8)
        times = [moment for moment, *_ in server.requests]
        assert (times[-1] - times[0]) >= 0.9 * (len(times) - 1) * 0.05
