"""A server that speaks OpenAI's protocol and answers from the documents it is shown.

Documents consist of sentences "The X of Y is Z." Every request is recorded; `behave` decides what
happens to it before it is answered.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FACT = re.compile(r"The (\w+) of (\w+) is (\w+)\.")


def value(text, name):
    """The JSON value that stands after `name:` in a request, the document's first."""
    decode = json.JSONDecoder(strict=False).raw_decode
    document, end = decode(text, text.index("Document: ") + len("Document: "))
    if name == "Document":
        return document
    return decode(text, text.index(f"{name}: ", end) + len(name) + 2)[0]


def answered(text):
    """The reply of a good model."""
    document = value(text, "Document")
    facts = FACT.findall(document)
    if '"missing"' in text and "Questions and answers" in text:
        told = {pair["answer"] for pair in value(text, "Questions and answers")}
        return {"missing": [f"{x} of {y}" for x, y, z in facts if z not in told]}
    if '"preserved"' in text:
        paraphrase = value(text, "Paraphrase")
        return {"preserved": all(z in paraphrase for _, _, z in facts)}
    if '"correct"' in text:
        return {"correct": value(text, "Answer") != "wrong"}
    if '"answerable"' in text:
        question = value(text, "Question")
        found = [z for x, y, z in facts if x in question and y in question]
        return {"answerable": bool(found), "answer": " and ".join(found)}
    if '"paraphrase"' in text:
        return {"paraphrase": " ".join(f"{y}'s {x}: {z}." for x, y, z in reversed(facts))}
    if "Facts that no question covers" in text:
        return {"questions": [f"What is the {fact}?" for fact in value(text, "covers")]}
    if "joining two or more" in text:
        names = " and ".join(x for x, _, _ in facts[:2])
        return {"questions": [f"What are the {names} of {facts[0][1]}?"] if len(facts) > 1 else []}
    # The last fact of a long document is forgotten at first: coverage has something to find.
    asked = facts[:-1] if len(facts) > 2 else facts
    return {"questions": [f"What is the {x} of {y}?" for x, y, _ in asked]}


def step(text):
    """Which prompt a request comes from."""
    for mark, name in (
        ('"preserved"', "check"),
        ('"correct"', "judge"),
        ('"answerable"', "answer"),
        ('"paraphrase"', "paraphrase"),
        ("Questions and answers", "coverage"),
        ("Facts that no question covers", "supplementary"),
        ("joining two or more", "complex"),
    ):
        if mark in text:
            return name
    return "simple"


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that is gone is no news; the traceback would be taken for the command's."""


class Server:
    """Attributes:
    behave: called with the request's step, user text and number among equal ones; returns None
        for the good reply, a text to reply instead, or (status, headers, body).
    delay: seconds that every answer takes.
    """

    def __init__(self):
        self.behave = lambda step, text, count: None
        self.delay = 0.0
        self.requests = []
        self.seen = Counter()
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet, for which no acknowledgement is awaited

            def do_POST(self):
                server._handle(self)

            def log_message(self, *arguments):
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, handler):
        asked = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        # A repair repeats the request and adds to it.
        text = asked["messages"][1]["content"]
        repair = len(asked["messages"]) > 2
        with self._lock:
            key = json.dumps(asked["messages"])
            count = self.seen[key]
            self.seen[key] += 1
            self.requests.append((time.monotonic(), step(text), text, repair, dict(asked)))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            time.sleep(self.delay)
            name = "repair" if repair else step(text)
            given = self.behave(name, text, count)
            if isinstance(given, tuple):
                status, headers, body = given
            else:
                reply = json.dumps(answered(text)) if given is None else given
                status, headers, body = 200, {}, completion(reply)
            if status is None:
                handler.close_connection = True
                return
            handler.send_response(status)
            for name, header in {"Content-Type": "application/json", **headers}.items():
                handler.send_header(name, header)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self.busy -= 1


def completion(reply):
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": reply},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()
