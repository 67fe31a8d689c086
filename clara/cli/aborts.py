"""Say what to do where a damaged index ends the process that reads it.

Some damage makes Lance's Rust code abort the process, from a thread of its own: nothing of Python
runs then, so there is no error that names the index. Python's faulthandler has a handler in C. It
writes to a pipe, at the other end of which a shell waits, which prints the line instead. The shell
ends with the process, and says nothing if that ends in another way.
"""

from __future__ import annotations

import faulthandler
import os
import shlex
from contextlib import suppress
from typing import IO

from clara.terminal.printing import one_line

_SHELL = "/bin/sh"
_SCRIPT = 'read -r first && printf "%s\\n" "$0" >&2'
_paths: list[str] = []
_pipes: list[IO[bytes]] = []  # the last is written to


def explain_aborts(path: str | os.PathLike[str]) -> None:
    """From now on, if a signal such as SIGABRT ends this process, name an index and its check.

    The process ends by that signal as before. Nothing is done if faulthandler is in use already,
    as with `python -X faulthandler`, or where there is no shell.
    """
    if faulthandler.is_enabled() and not _pipes:
        return
    shown = shlex.quote(one_line(os.path.realpath(path)))
    if shown in _paths:
        return
    checks = " and ".join(f"'clara index verify {each}'" for each in [*_paths, shown])
    message = (
        f"error: {shown}: the process ended while it was in use, perhaps because a file is "
        f"damaged; {checks} names what is"
    )
    with suppress(OSError, ValueError):  # the command does without
        reading, writing = os.pipe()
        pipe = os.fdopen(writing, "wb", buffering=0)
        try:
            os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _SCRIPT, message],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, 1)],
            )
        except (OSError, ValueError):
            pipe.close()
            raise
        finally:
            os.close(reading)
        faulthandler.enable(pipe, all_threads=False)
        _paths.append(shown)
        for earlier in _pipes:
            earlier.close()
        _pipes[:] = [pipe]
