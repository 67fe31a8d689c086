"""Processes that carry out what their parent sends: forked from one that has imported everything.

The process they are forked from never uses Lance, whose threads would not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# That process never uses Lance, of whose threads the warning is.
warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.crash.children",
        "tests.crash.kills",
        "tests.crash.flips",
        "tests.crash.crowd",
        "tests.crash.full",
        "torch._dynamo",  # PyTorch imports it at the first call of an operator, for seconds
    ]
)
_PATIENCE = 600.0  # seconds, for an answer: a busy machine is slow, and `verify` starts a Python


class Died(Exception):
    """A child ended before it had answered.

    Attributes:
        how: "signal 6" or "status 1".
    """

    def __init__(self, code: int | None) -> None:
        self.how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        super().__init__(f"the child ended with {self.how}")


class Child:
    """A process that runs `serve(connection, *arguments)` and talks to its parent.

    Args:
        quiet: what the child writes to standard error is thrown away.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any, quiet: bool = False) -> None:
        self._connection, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_run, args=(serve, other, arguments, quiet), daemon=True
        )
        self._process.start()
        other.close()

    def send(self, message: Any) -> None:
        self._connection.send(message)

    def receive(self, patience: float = _PATIENCE) -> Any:
        """The next message of the child.

        Raises:
            Died: it ended without one.
            TimeoutError: it says nothing.
        """
        if not self._connection.poll(patience):
            raise TimeoutError(f"the child has said nothing for {patience:.0f} s")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise Died(self._process.exitcode) from None

    def kill(self) -> list[Any]:
        """End it with -9; what it had said before."""
        pid = self._process.pid
        assert pid is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)
        self._process.join()
        said = []
        while self._connection.poll(0):
            try:
                said.append(self._connection.recv())
            except (EOFError, ConnectionResetError):
                break
        self._connection.close()
        return said

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.is_alive():
            self.kill()
        self._process.join()


def _run(
    serve: Callable[..., None], connection: Any, arguments: tuple[Any, ...], quiet: bool
) -> None:
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(connection, *arguments)


def sleep_until(moment: float) -> None:
    """Wait for a moment of `time.perf_counter`, to a fraction of a millisecond."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(max(0.0, left - 0.0002))
