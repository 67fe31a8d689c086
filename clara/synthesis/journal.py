"""Store every reply on disk as soon as it arrives, so that no reply is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clara.data.values import DataError
from clara.synthesis.generators import Completion
from clara.synthesis.prompts import Message

_TABLE = (
    "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, digest BLOB NOT NULL)"
)


class Journal:
    """Replies by what was asked, in an SQLite file that one process at a time has open.

    A reply is committed before it is used: a run that is killed and started again asks only for
    what had not arrived.

    Attributes:
        held: replies that were in it when it was opened.

    Raises:
        DataError: another process has it open, it cannot be written, or it is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        with self._errors():
            self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            with self._errors():
                self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.execute("BEGIN EXCLUSIVE")
                self._connection.execute(_TABLE)
                (self.held,) = self._connection.execute("SELECT count(*) FROM replies").fetchone()
                self._connection.execute("COMMIT")
        except BaseException:
            self._connection.close()
            raise

    def get(self, key: bytes) -> Completion | None:
        """The reply to what was asked, if it was given.

        Raises:
            DataError: the file cannot be read, or it is damaged.
        """
        with self._errors():
            row = self._connection.execute(
                "SELECT text, prompt_tokens, completion_tokens, digest FROM replies WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        # SQLite has no checksums: a flipped bit would come back as a word of the generator's.
        if row[3] != _digest(key, *row[:3]):
            raise DataError(f"{self._path}: is damaged: a reply is not what was written")
        return Completion(*row[:3])

    def put(self, key: bytes, reply: Completion) -> None:
        """Keep a reply; it is on disk when this returns.

        Raises:
            DataError: the file cannot be written.
        """
        values = (reply.text, reply.prompt_tokens, reply.completion_tokens)
        with self._errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)",
                (key, *values, _digest(key, *values)),
            )

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise DataError(f"{self._path}: another process is writing there") from error
            raise DataError(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self._path}: is not a journal of replies: {error}") from error


def request_key(generator: str, messages: Sequence[Message], attempt: int) -> bytes:
    """A digest of all that a reply depends on."""
    return _digest(generator, list(messages), attempt)


def _digest(*values: object) -> bytes:
    spelled = json.dumps(values, default=repr)
    return hashlib.blake2b(spelled.encode(), digest_size=20).digest()
