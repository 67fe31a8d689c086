"""A pytest plugin that runs programs in Python without the seconds that imports take.

Tests that start `clara` or a program of their own spend most of their time on imports: two seconds
of PyTorch and transformers, and four more to train. `warm(environment)` gives the commands `python`
and `clara` that have a server (`warm_server.py`), which has imported all of it, fork for each
program (`warm_client.py` says what such a command does, and what it leaves to a new Python).

A test whose subject is the start itself (what is imported, how long that takes, the entry point,
streams that are closed, random seeds of hashes) runs `sys.executable`.

A fixture of a session; a server starts at its first use, and ends with the session.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from . import warm_client

MODULES = (
    "clara.*",
    "clara_kernels.*",
    "torch._dynamo",
    "peft.tuners.lora",
    "transformers.models.llama.modeling_llama",
)


class Warm:
    """A server and the commands that it serves.

    Args:
        environment: of the server; programs with another one are run by it too, unless the two
            differ in what is read when packages are imported.
        modules: what is imported; `package.*` is all of a package.

    Attributes:
        bin: the folder of the commands `python` and `clara`.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, modules: tuple[str, ...] = MODULES
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="warm-"))  # short, as sockets want it
        self.bin = self._folder / "bin"
        self.bin.mkdir()
        path = str(self._folder / "socket")
        told = warm_client.read_at_import(environment)
        for command in ("python", "clara"):
            program = self._folder / f"{command}.py"
            source = Path(warm_client.__file__).read_text(encoding="utf-8")
            program.write_text(f"{source}\n\nmain({path!r}, {told!r}, {command!r})\n")
            start = shlex.join([sys.executable, "-ISs", str(program)])
            (self.bin / command).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
            (self.bin / command).chmod(0o755)
        server = Path(__file__).with_name("warm_server.py")
        self._server = subprocess.Popen(
            [sys.executable, str(server), path, *modules],
            # Bars that have no other switch: tqdm reads this when it is imported, in the command
            # line after `clara` has set it. And NumPy's library must not start threads: a baseline
            # of the benchmarks, which tests import, asks for as many as there are cores.
            env={**environment, "TQDM_DISABLE": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt of the tests is not its own
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the warm Python did not start; its errors are above")

    @property
    def python(self) -> str:
        """Stands in for `sys.executable`."""
        return str(self.bin / "python")

    @property
    def clara(self) -> str:
        """Stands in for the command `clara`."""
        return str(self.bin / "clara")

    def close(self) -> None:
        """End the server and what it runs."""
        for stream in (self._server.stdin, self._server.stdout):
            assert stream is not None
            stream.close()
        self._server.wait()
        shutil.rmtree(self._folder)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a program that runs in a warm Python with -9; when this returns, it is dead.

    To kill the process itself would only end the command that waits for the program.
    """
    process.send_signal(signal.SIGUSR1)
    process.wait()


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[[Mapping[str, str]], Warm]]:
    """A function: the warm Python for programs with this environment."""
    servers: dict[frozenset[tuple[str, str]], Warm] = {}

    def serving(environment: Mapping[str, str] = os.environ) -> Warm:
        key = frozenset(warm_client.read_at_import(environment).items())
        if key not in servers:
            servers[key] = Warm(environment)
        return servers[key]

    yield serving
    for each in servers.values():
        each.close()
