"""Lists of ids in an option: in its value, or in a file that it names."""

from __future__ import annotations

import codecs
import os

from clara.cli.errors import BAD_USAGE, CommandError
from clara.cli.paths import expanded

_FILE = "@"


def read_ids(values: list[str] | None) -> list[str] | None:
    """The ids that the values of an option give, each once.

    A value is ids with commas between them, or `@FILE` for a file with an id on each line. An id
    that holds a comma, or begins with `@` or a space, can stand in a file only.

    Raises:
        CommandError: a file cannot be read or is no text in UTF-8, or there is no id at all.

    Example:
        >>> read_ids(["s1, s2", "n1"])
        ['s1', 's2', 'n1']
    """
    if not values:
        return None
    found: dict[str, None] = {}
    for value in values:
        ids = _of_file(value[1:]) if value.startswith(_FILE) else map(str.strip, value.split(","))
        found.update(dict.fromkeys(name for name in ids if name))
    if not found:
        listed = ", ".join(repr(value) for value in values)
        raise CommandError(f"--ids {listed} holds no id; give ID,… or @FILE", BAD_USAGE)
    return list(found)


def _of_file(name: str) -> list[str]:
    """The lines of a file, without their ends."""
    path = expanded(name)
    if not name or os.path.isdir(path):
        raise CommandError(f"--ids @{name}: must name a file with an id on each line")
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise CommandError(f"--ids @{name}: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            found.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise CommandError(
                f"{name}:{number}: not valid UTF-8: byte 0x{line[error.start]:02x} at {error.start}"
            ) from error
    return found
