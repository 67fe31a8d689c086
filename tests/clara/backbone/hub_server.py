"""A hub on this machine: the part of its protocol that downloads take."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves the files of folders; `failure` makes it answer in other ways.

    Attributes:
        endpoint: its address.
        models: folders by "owner/name".
        requests: "GET /path" and the like, in order.
        failure: None, a status to answer with, or "hang".
        error_code: sent in the header by which the hub says what a status means.
    """

    def __init__(self):
        self.models, self.requests = {}, []
        self.failure = self.error_code = None
        self._release = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._release.set()
        self._server.shutdown()
        self._server.server_close()

    def files(self, name):
        folder = self.models[name]
        return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())

    def commit(self, name):
        state = hashlib.sha1(name.encode())
        for file in self.files(name):
            state.update(file.encode() + (self.models[name] / file).read_bytes())
        return state.hexdigest()

    def _answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        if self.failure == "hang":
            self._release.wait(30)
            return
        if self.failure:
            self._send(request, self.failure, b"{}", {"X-Error-Code": self.error_code})
            return
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name not in self.models:
            self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif api:
            listing = self._tree(name) if "tree" in parts else self._info(name)
            kind = {"Content-Type": "application/json"}
            self._send(request, 200, json.dumps(listing).encode(), kind)
        else:
            self._send_file(request, name, "/".join(parts[4:]))

    def _info(self, name):
        siblings = [
            {"rfilename": file, "size": (self.models[name] / file).stat().st_size}
            for file in self.files(name)
        ]
        return {"id": name, "modelId": name, "sha": self.commit(name), "siblings": siblings}

    def _tree(self, name):
        folder = self.models[name]
        return [
            {
                "type": "file",
                "path": file,
                "size": (folder / file).stat().st_size,
                "oid": hashlib.sha1((folder / file).read_bytes()).hexdigest(),
            }
            for file in self.files(name)
        ]

    def _send_file(self, request, name, file):
        path = self.models[name] / file
        if not path.is_file():
            self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": self.commit(name)}
        self._send(request, 200, content, headers)

    def _send(self, request, status, content, headers):
        request.send_response(status)
        for key, value in headers.items():
            if value is not None:
                request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


@contextmanager
def serving():
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


@contextmanager
def within(seconds):
    """Fail if the block takes longer."""
    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    assert taken < seconds, f"{taken:.1f} s"
