"""The folder of a run: lines are added as work is done, and nothing is overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clara.errors import shortened
from clara.evaluation.errors import EvaluationError
from clara.evaluation.metrics import SCORES
from clara.evaluation.ranking_metrics import write_qrels, write_run
from clara.files.writing import write_text
from clara.terminal.printing import say

FORMAT = "clara-evaluation/1"
RUN = "run.json"
ANSWERS = "answers.jsonl"
RANKINGS = "rankings.jsonl"
DOCUMENTS = "documents.jsonl"
SUMMARY = "summary.json"
QRELS = "qrels.trec"

Line = dict[str, Any]

_NUMBER = (int, float)
_ANSWER: dict[str, Any] = {
    "ranked": list,
    "prompt_tokens": _NUMBER,
    "scores": dict,
    "timings_ms": dict,
    **{f"scores.{name}": _NUMBER for name in SCORES},
}
_RANKING: dict[str, Any] = {"ranked": list, "scores": list, "positives": list, "timings_ms": dict}
_KEPT: dict[str, Any] = {
    "documents": int,
    **{f"{name}_per_document": _NUMBER for name in ("bytes", "seconds", "tokens", "vectors")},
}
_WORDS = {list: "a list", dict: "an object", int: "an integer", _NUMBER: "a number"}


class Lines:
    """Lines of one kind, in memory and, with a file, on disk too.

    Args:
        path: of the file; None keeps the lines in memory alone.
        key: fields that tell a line from all others.
        others: types of more fields that a line must have; "scores.f1" is a field in a field.

    Raises:
        EvaluationError: a line of the file is no line of a run; names the file, the line and the
            field. A last line that a kill cut off is dropped with a remark.
    """

    def __init__(
        self, path: Path | None, key: tuple[str, ...], others: Mapping[str, Any] | None = None
    ) -> None:
        self._path, self._key, self._others = path, key, others or {}
        self._lines: dict[tuple[Any, ...], Line] = {}
        if path is not None and path.exists():
            self._read(path)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._lines

    def __getitem__(self, key: tuple[Any, ...]) -> Line:
        return self._lines[key]

    def add(self, lines: Sequence[Line]) -> None:
        """Add lines, all but those that are there; they are on disk when this returns."""
        new = {self._key_of(line): line for line in lines}
        new = {key: line for key, line in new.items() if key not in self._lines}
        if self._path is not None and new:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new.values())
            with self._path.open("ab") as file:
                file.write(text.encode(errors="replace"))
                file.flush()
                os.fsync(file.fileno())
        self._lines.update(new)

    def _key_of(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in self._key)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            say(f"{path}: the last line is cut off; it is dropped and its work done again")
            os.truncate(path, whole)
        for number, raw in enumerate(content[:whole].split(b"\n")[:-1], 1):
            line = read_line(raw, f"{path}:{number}", self._key, self._others)
            self._lines[self._key_of(line)] = line


def read_line(raw: bytes, place: str, fields: Sequence[str], others: Mapping[str, Any]) -> Line:
    """One line of a run.

    Args:
        fields: that must be strings.
        others: types of other fields, see `Lines`.

    Raises:
        EvaluationError: it is no JSON object, or a field is missing or of another type; begins with
            the place.
    """
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{place}: is not a line of an evaluation: not JSON") from error
    if not isinstance(line, dict):
        raise EvaluationError(f"{place}: is not a line of an evaluation: not a JSON object")
    for name in fields:
        if not isinstance(line.get(name), str):
            raise EvaluationError(
                f"{place}: field {name!r} must be a string, got {line.get(name)!r:.80}"
            )
    for name, wanted in others.items():
        outer, _, inner = name.partition(".")
        value = line[outer].get(inner) if inner else line.get(outer)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise EvaluationError(
                f"{place}: field {name!r} must be {_WORDS[wanted]}, got {value!r:.80}"
            )
    return line


class RunFolder:
    """The lines of a run: in a folder, or in memory alone.

    Attributes:
        path: None in memory.
        answers, rankings: see the lines' fields in `clara.evaluation.run`.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.answers = Lines(self._file(ANSWERS), ("entry", "question"), _ANSWER)
        self.rankings = Lines(self._file(RANKINGS), ("ranker", "question"), _RANKING)
        self.documents: list[Line] = []
        file = self._file(DOCUMENTS)
        if file is not None and file.exists():
            lines = file.read_bytes().splitlines()
            self.documents = [
                read_line(raw, f"{file}:{number}", ("system",), _KEPT)
                for number, raw in enumerate(lines, 1)
            ]

    def _file(self, name: str) -> Path | None:
        return None if self.path is None else self.path / name

    def write(self, name: str, text: str) -> None:
        """Write a file of the run that replaces an earlier one; nothing in memory."""
        if self.path is not None:
            write_text(self.path / name, text)

    def write_trec(self) -> None:
        """Write the rankings and the positives as TREC's tools read them."""
        if self.path is None:
            return
        lines: dict[str, list[Line]] = defaultdict(list)
        positives = {}
        for line in self.rankings:
            lines[line["ranker"]].append(line)
            positives[line["question"]] = line["positives"]
        if positives:
            write_qrels(self.path / QRELS, positives)
        for name, each in lines.items():
            write_run(
                self.path / f"ranking.{quote(name, safe='@')}.trec",
                {line["question"]: line["ranked"] for line in each},
                {line["question"]: line["scores"] for line in each},
                name=name,
            )

    def write_documents(self, lines: Sequence[Line]) -> None:
        self.documents = list(lines)
        self.write(DOCUMENTS, "".join(json.dumps(line) + "\n" for line in lines))


@contextmanager
def opened(
    path: Path | None, settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> Iterator[RunFolder]:
    """The folder of a run with these settings: a new one, or one to go on with.

    No other process can open the folder until the block is left.

    Args:
        path: nothing, an empty folder or a run with the same settings; None is a run in memory.
        settings: all that decides the results, as a JSON object.
        environment: what else is good to know.

    Raises:
        EvaluationError: something else is at the path, a run of other settings, or another process
            is writing to it. Nothing was changed there.
    """
    if path is None:
        yield RunFolder(None)
        return
    _check_place(path)
    if (path / RUN).exists():
        _check_settings(path, settings)
        _remark_other_place(path, environment)
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if not (path / RUN).exists():
            record = {"format": FORMAT, "settings": settings, "environment": environment}
            write_text(path / RUN, json.dumps(record, indent=2) + "\n", sync=True)
        yield RunFolder(path)


def read_run(path: Path) -> dict[str, Any]:
    """`run.json` of a run.

    Raises:
        EvaluationError: there is none, or it cannot be read.
    """
    file = path / RUN
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(
            f"{path}: is not the folder of an evaluation: it has no {RUN}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{file}: cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise EvaluationError(f"{file}: field 'format' must be {FORMAT!r}, got {found!r:.80}")
    if not isinstance(record.get("settings"), dict):
        raise EvaluationError(f"{file}: field 'settings' must be an object")
    return record


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise EvaluationError(f"{path}: is a file, not the folder of an evaluation")
    if not path.is_dir() or (path / RUN).exists():
        return
    # What a process left that was killed before it wrote run.json is no reason to refuse.
    found = [name for name in os.listdir(path) if not (name[0] == "." and name.endswith(".tmp"))]
    if found:
        raise EvaluationError(
            f"{path}: holds {min(found)!r} and no {RUN}, so it is not the folder of an evaluation; "
            "choose another"
        )


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    before = read_run(path)["settings"]
    now = json.loads(json.dumps(settings))
    difference = _difference(before, now)
    if difference is not None:
        name, old, new = difference
        raise EvaluationError(
            f"{path}: is a run of other settings: {name} is {_shown(old)} there and "
            f"{_shown(new)} here; choose another folder"
        )


def _remark_other_place(path: Path, environment: Mapping[str, Any]) -> None:
    """Say if a run goes on where times, and the last digits of scores, may be others."""
    before = read_run(path).get("environment")
    difference = _difference(before, json.loads(json.dumps(environment)))
    if difference is not None:
        name, old, new = difference
        say(
            f"{path}: was begun in another environment: {name or 'environment'} was {_shown(old)} "
            f"and is {_shown(new)}; what is measured from here on may not compare"
        )


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Name and both values of the first setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else key
            found = _difference(before.get(key), now.get(key), inner)
            if found is not None:
                return found
        return None
    return None if before == now else (name, before, now)


def _shown(value: Any) -> str:
    return "not set" if value is None else shortened(json.dumps(value, ensure_ascii=False), 80)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only process that writes; on a file system without locks hope for it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"{path}: another process is writing there") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        yield
    finally:
        os.close(handle)
