"""The command that has a warm Python run a program, and behaves as that program does.

`warm.py` writes commands that run this; see there. Only what starts in milliseconds is imported. It
hands over its arguments, environment, folder and streams, passes signals on, and ends as the
program ends: with its status, or killed by the same signal. SIGUSR1 kills the program with -9.

What a warm Python cannot run as a new one would is given to a new one: other options, a program on
standard input, and an environment that differs in what is read when packages are imported.
"""

import array
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CLARA = "from clara.cli import main; main()"
# Of variables that packages read when they are imported.
READ_AT_IMPORT = (
    "CUDA",
    "HF_",
    "KMP_",
    "LANG",
    "LC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "TORCH_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TRANSFORMERS_",
    "TRITON_",
)
READ_LATER = ("PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHON_EXEC", "TORCH_NCCL_")


def read_at_import(environment):
    """What of an environment packages read when they are imported."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and not name.startswith(READ_LATER)
    }


def program(arguments):
    """What Python would do with its arguments: how, what, and the rest; None for anything else."""
    if not arguments:
        return None
    first, rest = arguments[0], arguments[1:]
    if first in ("-c", "-m") and rest:
        return first, rest[0], rest[1:]
    return None if first.startswith("-") else ("file", first, rest)


def handed_over(path, request):
    """Send a request with our streams to a server; the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))]
    connection.sendmsg([b"!"], streams)
    connection.sendall(json.dumps(request).encode() + b"\n")
    return connection


def end_like(status):
    """End as a process did whose status `os.waitpid` gives."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(path, environment, command):
    """Run a program by the server at `path`, or else by a new Python.

    Args:
        environment: what the server was started with, as far as it is `read_at_import`.
        command: "python" or "clara".
    """
    arguments = sys.argv[1:] if command == "python" else ["-c", CLARA, *sys.argv[1:]]
    unbuffered = arguments[:1] == ["-u"]
    chosen = program(arguments[unbuffered:])
    if chosen is None or read_at_import(os.environ) != environment:
        os.execv(sys.executable, [sys.executable, *arguments])
    child, early = [], []

    def hear(number, frame=None):
        if child:
            os.kill(child[0], signal.SIGKILL if number == signal.SIGUSR1 else number)
        else:
            early.append(number)

    for each in (*PASSED_ON, signal.SIGUSR1):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, hear)
    request = {
        "program": chosen,
        "unbuffered": unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    connection = handed_over(path, request)
    answers = connection.makefile()
    child.append(int(answers.readline()))
    for each in early:
        hear(each)
    # The program has them now, and whoever reads waits until all have closed them.
    for descriptor in range(3):
        os.close(descriptor)
    end_like(int(answers.readline()))
