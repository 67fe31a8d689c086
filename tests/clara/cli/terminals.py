"""Read what a command shows on a terminal."""

from __future__ import annotations

import os


def read_terminal(terminal: int) -> bytes:
    """Read a pseudo-terminal up to the end of the processes that write to it, and close it."""
    shown = b""
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # what Linux says at the end of a pseudo-terminal
            break
        if not block:
            break
        shown += block
    os.close(terminal)
    return shown
