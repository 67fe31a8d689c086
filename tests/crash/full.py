"""A disk that is full at a random moment of an operation.

On a small file system in memory where this user may mount one; elsewhere no file may grow beyond a
random size, which fails in the same place. The operation ends with an error of one line, what was
committed stays, and once there is room the same process goes on.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clara.index import MemoryIndex, MemoryIndexError
from tests.crash.children import Child, Died
from tests.crash.contents import Wrong, check_searches, first_of, new_index, state_of
from tests.crash.operations import OPERATIONS, World

_KINDS = ("add", "upsert", "delete", "compact", "build")
_ROOM = 8 << 20  # of the file system
_MOST = 48 << 10  # bytes that are left for an operation, at most
_TRIES = 10 * len(_KINDS)  # for a failure of each kind
_TIDIED = 16  # operations until files that are needed no more are removed


def serve(connection: Any, path: str, limited: bool) -> None:
    """What the child does: operations, with so many bytes for each file if that is the way."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    index = MemoryIndex.open(path)
    while True:
        kind, arguments, most = connection.recv()
        if limited:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard if most is None else most, hard))
        try:
            OPERATIONS[kind].do(index, arguments)
        except MemoryIndexError as error:
            connection.send(str(error))
        except BaseException as error:
            connection.send(error)
        else:
            connection.send(None)


class Full:
    """An index on a disk that is full again and again.

    Args:
        limited: do not fill the disk, but limit the size of files.

    Attributes:
        failed, done: operations that failed for lack of room, and that had enough, by kind.
    """

    def __init__(self, folder: Path, seed: int, *, limited: bool) -> None:
        self._chance = random.Random(seed)
        self._world = World(folder, self._chance)
        self._limited = limited
        new_index(self._world.path)
        self._reader = MemoryIndex.open(self._world.path)
        self._child = Child(serve, self._world.path, limited)
        self.failed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def run(self, failures: int) -> None:
        """Until so many operations of each kind have failed.

        Raises:
            Wrong: an error is not a clean one, or the index is not what was committed.
        """
        kinds = list(_KINDS)
        for number in range(failures * _TRIES):
            if number % _TIDIED == 0:
                self._carry_out("compact", None)
            self._carry_out("upsert", None)  # there is room again
            kinds = [kind for kind in kinds if self.failed[kind] < failures]
            if not kinds:
                return
            kind = min(kinds, key=lambda each: self.failed[each] + self.done[each])
            self._carry_out(kind, self._chance.randrange(_MOST))
        raise Wrong(f"there was room {self.done} times, and none {self.failed} times")

    def close(self) -> None:
        self._child.kill()

    def _carry_out(self, kind: str, room: int | None) -> None:
        world = self._world
        while (order := OPERATIONS[kind].plan(world)) is None:
            self._carry_out("delete" if kind == "add" else "upsert", None)
        with self._left(room):
            self._child.send((order.kind, order.arguments, room))
            try:
                error = self._child.receive()
            except Died as died:
                raise Wrong(f"{kind} with {room} bytes left: {died}") from died
        where = f"{kind} with {room} bytes left"
        if error is None:
            self.done[kind] += room is not None
        elif room is None or not isinstance(error, str):
            raise Wrong(f"{where}: {error!r}")
        elif "\n" in error or world.path not in error or len(error) > 400:
            raise Wrong(f"{where}: not a clean error: {error!r}")
        else:
            self.failed[kind] += 1
        state = state_of(MemoryIndex.open(world.path))
        first_of(order.states if error else order.states[-1:], state)
        world.state = state
        first_of([state], state_of(self._reader))
        check_searches(self._reader, state, self._chance.getrandbits(32))

    @contextmanager
    def _left(self, room: int | None) -> Iterator[None]:
        """A disk with so much room."""
        if room is None or self._limited:
            yield
            return
        ballast = self._world.folder / "ballast"
        with open(ballast, "wb") as file:
            free = shutil.disk_usage(self._world.folder).free
            os.posix_fallocate(file.fileno(), 0, max(1, free - room))
        try:
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few megabytes.

    Raises:
        PermissionError: this user may not mount one.
    """
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError("this user may not mount a file system") from error
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
