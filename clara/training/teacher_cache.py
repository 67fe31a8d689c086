"""A teacher's probabilities on disk: arrays that are filled answer by answer, and never changed.

Every process writes files of its own, so that several runs and the processes of one may share a
folder without a lock. A part has two of them, both `.npy` files with room for more than they hold:

- `*.tokens.npy`: a row for each token of an answer, with the most likely tokens in its place and
  the logarithms of their probabilities, and of the remaining probability.
- `*.answers.npy`: a row for each answer: its key, where its tokens lie, and a checksum. It is
  written after the tokens. What a killed process leaves behind without it is not read. An answer
  that the teacher cannot read has a row too, with no tokens, so that no later run tries it again.

Reading maps the files into memory. `teacher.json` says what the probabilities were made of.
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from clara.errors import shortened
from clara.files.writing import replacing, write_text
from clara.terminal.printing import say
from clara.training.settings import SettingsError

_HEADER = "teacher.json"
_FORMAT = 1
_KEY_BYTES = 16
_ROWS_OF_TOKENS = 1 << 16
_ROWS_OF_ANSWERS = 1 << 14
_ANSWER = np.dtype(
    [("key", "u1", _KEY_BYTES), ("first", "<i8"), ("tokens", "<u4"), ("check", "<u4")]
)
Array = npt.NDArray[Any]


class Kept(NamedTuple):
    """A teacher's probabilities of an answer.

    Attributes:
        tokens: int32 `[P]`, the answer's own; none, P = 0, where the teacher cannot read it.
        ids: int32 `[P, K]`, the most likely ones in its place.
        log_probs: float16 `[P, K + 1]`, their logarithms, and that of the remaining probability.
    """

    tokens: Array
    ids: Array
    log_probs: Array


class TeacherCache:
    """Probabilities by the key of an answer, in a folder.

    Args:
        path: of the folder; made if there is none. One made earlier is used and added to.
        made_of: what the probabilities depend on, as JSON; "distillation_top" is the number of
            most likely tokens that are kept, K. A folder of other probabilities is refused.

    Attributes:
        path: of the folder.
        top: K.

    Raises:
        SettingsError: the folder holds probabilities that were made of something else, or other
            files.
    """

    def __init__(self, path: str | os.PathLike[str], made_of: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.top = int(made_of["distillation_top"])
        ids, log_probs = ("ids", "<i4", (self.top,)), ("log_probs", "<f2", (self.top + 1,))
        self._row = np.dtype([("token", "<i4"), ids, log_probs])
        self._parts: list[tuple[Array, Array]] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        self._writer: _Writer | None = None
        self._name = uuid.uuid4().hex[:12]
        check_made_of(self.path, made_of)
        self._make(made_of)
        for file in sorted(self.path.glob("*.answers.npy")):
            self._read_part(file)

    def __len__(self) -> int:
        """Answers that are kept, those that the teacher cannot read among them."""
        return len(self._place)

    def get(self, key: bytes) -> Kept | None:
        """What is kept of an answer; None if nothing is, or it is damaged."""
        place = self._place.get(key)
        if place is None:
            return None
        answers, tokens = self._parts[place[0]]
        entry = answers[place[1]]
        first = int(entry["first"])
        rows = tokens[first : first + int(entry["tokens"])]
        if _checksum(key, rows) != int(entry["check"]):
            del self._place[key]
            return None
        return Kept(rows["token"], rows["ids"], rows["log_probs"])

    def add(self, key: bytes, tokens: Sequence[int], ids: Array, log_probs: Array) -> None:
        """Keep the probabilities of an answer; they are in the files when this returns.

        Args:
            key: 16 bytes.
            tokens: of the answer.
            ids, log_probs: see `Kept`.

        Raises:
            OSError: the files cannot be written.
        """
        rows = np.empty(len(tokens), self._row)
        rows["token"], rows["ids"], rows["log_probs"] = tokens, ids, log_probs
        if self._writer is None or not self._writer.has_room(len(rows)):
            self._writer = self._new_part(len(rows))
        row = self._writer.append(key, rows)
        self._place[key] = len(self._parts) - 1, row

    def add_unreadable(self, key: bytes) -> None:
        """Keep that the teacher cannot read an answer: `get` gives one of no tokens.

        Args:
            key: 16 bytes.

        Raises:
            OSError: the files cannot be written.
        """
        self.add(key, (), np.empty((0, self.top)), np.empty((0, self.top + 1)))

    def _make(self, made_of: Mapping[str, Any]) -> None:
        if not (self.path / _HEADER).is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            written = {"format": _FORMAT, "made_of": made_of}
            write_text(self.path / _HEADER, json.dumps(written, indent=2) + "\n")

    def _read_part(self, answers_file: Path) -> None:
        tokens_file = _tokens_file(answers_file)
        try:
            answers = np.load(answers_file, mmap_mode="r", allow_pickle=False)
            tokens = np.load(tokens_file, mmap_mode="r", allow_pickle=False)
            if answers.dtype != _ANSWER or tokens.dtype != self._row:
                raise ValueError("it has other columns")
        except (OSError, ValueError, EOFError) as error:  # EOFError: the file is empty
            say(f"{answers_file}: is damaged, its answers are computed again: {error}")
            return
        # A row that was not written is all zeros; that of an unreadable answer has a checksum.
        ends = np.flatnonzero((answers["tokens"] == 0) & (answers["check"] == 0))
        count = int(ends[0]) if len(ends) else len(answers)
        keys = answers["key"][:count].tobytes()
        self._parts.append((answers, tokens))
        for row in range(count):
            key = keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]
            # Two runs may have added it, or one because the other's is damaged.
            if key not in self._place or self.get(key) is None:
                self._place[key] = len(self._parts) - 1, row

    def _new_part(self, tokens: int) -> _Writer:
        """Files with room for so many tokens and more, and the writer of them."""
        answers_file = self.path / f"{self._name}-{len(self._parts):05d}.answers.npy"
        tokens_file = _tokens_file(answers_file)
        _make(tokens_file, self._row, max(tokens, _ROWS_OF_TOKENS))
        _make(answers_file, _ANSWER, _ROWS_OF_ANSWERS)
        self._parts.append((np.load(answers_file, mmap_mode="r"), np.load(tokens_file, "r")))
        return _Writer(answers_file, tokens_file, *self._parts[-1])


def check_made_of(path: str | os.PathLike[str], made_of: Mapping[str, Any]) -> None:
    """Refuse a folder that cannot be a `TeacherCache` of these probabilities; nothing is written.

    Raises:
        SettingsError: the folder holds probabilities that were made of something else, or other
            files; names what differs.
    """
    folder = Path(path).expanduser()
    header = folder / _HEADER
    if not header.is_file():
        if folder.exists() and not folder.is_dir():
            raise SettingsError(f"teacher_cache {folder}: is a file, not a folder")
        if folder.is_dir() and any(each.name[0] != "." for each in folder.iterdir()):
            raise SettingsError(
                f"teacher_cache {folder}: holds other files; choose an empty folder"
            )
        return
    try:
        found = json.loads(header.read_text(encoding="utf-8"))
        before, version = dict(found["made_of"]), found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{header}: cannot be read: {error}") from error
    if version != _FORMAT:
        raise SettingsError(f"{header}: format must be {_FORMAT}, got {version!r}")
    differing = [name for name, value in made_of.items() if before.get(name) != value]
    if differing:
        told = ", ".join(
            f"{name} is {_shown(before.get(name))} there and {_shown(made_of[name])} here"
            for name in differing
        )
        raise SettingsError(
            f"teacher_cache {folder}: was made for something else: {told}; choose another "
            "teacher_cache"
        )


class _Writer:
    """Appends to the files of one part.

    Written as files are, not through memory: a full disk is an error there, and the end of the
    process here.
    """

    def __init__(
        self, answers_file: Path, tokens_file: Path, answers: Array, tokens: Array
    ) -> None:
        self._files = answers_file, tokens_file
        self._arrays = answers, tokens
        self._used = [0, 0]

    def has_room(self, tokens: int) -> bool:
        answers_used, tokens_used = self._used
        answers, rows = self._arrays
        return answers_used < len(answers) and tokens_used + tokens <= len(rows)

    def append(self, key: bytes, rows: Array) -> int:
        """Write an answer's tokens, then the answer; returns its row."""
        row, first = self._used
        entry = np.zeros(1, _ANSWER)
        entry["key"] = np.frombuffer(key, np.uint8)
        entry["first"], entry["tokens"] = first, len(rows)
        entry["check"] = _checksum(key, rows)
        self._write(1, first, rows)
        self._write(0, row, entry)
        self._used = [row + 1, first + len(rows)]
        return row

    def _write(self, which: int, row: int, values: Array) -> None:
        begin: int = self._arrays[which].offset  # type: ignore[attr-defined]  # of a memmap
        with open(self._files[which], "r+b") as file:
            file.seek(begin + row * values.dtype.itemsize)
            file.write(values.tobytes())


def _tokens_file(answers_file: Path) -> Path:
    return answers_file.with_name(answers_file.name.replace(".answers.", ".tokens."))


def _make(path: Path, dtype: np.dtype[Any], rows: int) -> None:
    """An array of zeros, which take no space on most file systems."""
    with replacing(path) as unfinished:
        open_memmap(unfinished, mode="w+", dtype=dtype, shape=(rows,))


def _checksum(key: bytes, rows: Array) -> int:
    return zlib.crc32(rows.tobytes(), zlib.crc32(key))


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 100)
