"""A Python that has imported what takes seconds, and forks for each program that it is handed.

    python warm_server.py SOCKET MODULE...

It imports the modules (`package.*` is a package with all that is in it), prints a line and listens
on the socket for `warm_client.py`. Each program runs in a child, with the streams, the environment
and the folder of the client. It ends as any Python ends, but for the destruction of all modules,
which takes a second for those that share their memory with the server. Children whose client is
gone are killed; the server ends with its standard input.
"""

import array
import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
import warnings

# Its own thread, which the library starts again after a fork.
HARMLESS = {"jemalloc_bg_thd"}


def import_all(names):
    for name in names:
        package, all_of_it, _ = name.partition(".*")
        module = importlib.import_module(package)
        if all_of_it:
            for each in pkgutil.walk_packages(module.__path__, f"{package}."):
                importlib.import_module(each.name)


def demand_one_thread():
    """A lock that another thread holds when we fork is never released in the child."""
    threads = set()
    for each in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{each}/comm") as file:
            threads.add((each == str(os.getpid()), file.read().strip()))
    others = {name for main, name in threads if not main} - HARMLESS
    if others:
        raise SystemExit(f"warm_server.py: importing started threads: {sorted(others)}")


def received(connection):
    """A request and the three streams that came with it."""
    _, extra, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    for _, _, data in extra:
        streams.frombytes(data)
    with connection.makefile() as lines:
        return json.loads(lines.readline()), list(streams)


def become(request, streams):
    """Give this child the streams, environment and folder of its client."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    text = {"encoding": encoding or "utf-8", "errors": errors or "strict"}
    of_errors = {**text, "errors": "backslashreplace"}
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False, **text)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False, **of_errors)
    raw = os.fdopen(1, "wb", buffering=0 if request["unbuffered"] else -1, closefd=False)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(
        raw, **text, line_buffering=raw.isatty(), write_through=request["unbuffered"]
    )


def run(how, what, arguments):
    """Run a program as Python does at its start."""
    if how == "-m":
        sys.argv = [what, *arguments]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    if how == "-c":
        sys.argv, code = ["-c", *arguments], compile(what, "<string>", "exec")
        sys.path.insert(0, "")
    else:
        sys.argv, main.__file__ = [what, *arguments], what
        sys.path.insert(0, os.path.dirname(os.path.realpath(what)))
        with open(what, "rb") as file:
            code = compile(file.read(), what, "exec")
    exec(code, main.__dict__)


def end_of(how, what, arguments):
    """Run a program to its end, with all that Python says and does then; its exit status."""
    status = 0
    try:
        run(how, what, arguments)
    except SystemExit as stop:
        status = stop.code
        if status is None:
            status = 0
        elif not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            status = 120
    return status & 0xFF


class Server:
    """Forks for each request; `serve` returns in each child, with its request and streams."""

    def __init__(self, path):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._clients = {}  # connections by the process id of the child
        self._selector = selectors.DefaultSelector()
        self._woken, waker = socket.socketpair()
        for each in (self._woken, waker):
            each.setblocking(False)
        self._waker = waker
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for each in (self._listener, self._woken, sys.stdin):
            self._selector.register(each, selectors.EVENT_READ)

    def serve(self):
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                if source is sys.stdin:
                    self._end()
                elif source is self._woken:
                    self._reap()
                elif source is not self._listener:
                    self._kill(source)
                else:
                    job = self._accept()
                    if job is not None:
                        return job

    def _accept(self):
        connection, _ = self._listener.accept()
        try:
            request, streams = received(connection)
        except (OSError, ValueError):  # gone before it had said what it wants
            connection.close()
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pylance, whose threads only start when it is used
            child = os.fork()
        if not child:
            self._leave()
            connection.close()
            return request, streams
        for stream in streams:
            os.close(stream)
        self._clients[child] = connection
        self._selector.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):  # gone already: `_kill` comes next
            connection.sendall(f"{child}\n".encode())
        return None

    def _leave(self):
        """Close in a child what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (self._listener, self._woken, self._waker, *self._clients.values()):
            each.close()

    def _reap(self):
        """Tell clients how their children ended."""
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._clients:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                break
            connection = self._clients.pop(child)
            self._forget(connection)
            with contextlib.suppress(OSError):
                connection.sendall(f"{status}\n".encode())
            connection.close()

    def _kill(self, connection):
        """The child of a client that is gone; `_reap` sees its end."""
        self._forget(connection)
        for child, each in self._clients.items():
            if each is connection:
                os.kill(child, signal.SIGKILL)

    def _forget(self, connection):
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)

    def _end(self):
        for child in self._clients:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os._exit(0)


def main():
    """Import and serve; returns in a child, with its request and streams."""
    path, *modules = sys.argv[1:]
    sys.path.pop(0)  # the folder of this file, where no program looks for modules
    import_all(modules)
    demand_one_thread()
    gc.collect()
    gc.freeze()
    server = Server(path)
    print("ready", flush=True)
    return server.serve()


if __name__ == "__main__":
    REQUEST, STREAMS = main()
    become(REQUEST, STREAMS)
    os._exit(end_of(*REQUEST["program"]))
