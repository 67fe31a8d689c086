"""Every reply that was paid for, on disk the moment it arrives."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clara.data.lines import DataError
from clara.data.synthesis.generators import Completion
from clara.data.synthesis.prompts import Message


class Journal:
    """Replies by what was asked, in an SQLite file that one process at a time has open.

    A reply is committed before it is used: a run that is killed and started again asks only for
    what had not arrived.

    Raises:
        DataError: another process has it open, or it is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        with self._errors():
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies ("
                "key BLOB PRIMARY KEY, text TEXT NOT NULL, "
                "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"
            )
            self._connection.execute("COMMIT")

    def get(self, key: bytes) -> Completion | None:
        with self._errors():
            row = self._connection.execute(
                "SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Completion(*row)

    def put(self, key: bytes, reply: Completion) -> None:
        # Halves of surrogate pairs, which no reply of use has, are no text for SQLite.
        text = reply.text.encode(errors="replace").decode()
        with self._errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)",
                (key, text, reply.prompt_tokens, reply.completion_tokens),
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
    asked = json.dumps([generator, list(messages), attempt], ensure_ascii=True)
    return hashlib.blake2b(asked.encode(), digest_size=20).digest()
