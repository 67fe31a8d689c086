"""Finished trainings of a comparison: a line of JSON each, in a file that later calls go on with.

A comparison takes hours. A call that is killed has lost only the training it was at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clara.errors import ClaraError
from clara.files.writing import write_text

FORMAT = "clara-runs/1"


class RunsError(ClaraError, ValueError):
    """A file does not hold finished trainings, or holds others; the message names it."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        comparison: what it is a part of.
        names: what tells it apart from the others, such as form, rate and seed.
        settings: what it has in common with the others, such as the number of steps.
        found: what was measured.
        environment: machine, versions, commit and command, see `bench.environment`.
    """

    comparison: str
    names: dict[str, Any]
    settings: dict[str, Any]
    found: dict[str, Any]
    environment: dict[str, Any]


class RunFile:
    """The file of a comparison. It holds all of a new line or none of it.

    Args:
        settings: of this call's trainings; a file whose trainings had others is refused.

    Raises:
        RunsError: the file holds trainings of another comparison or with other settings.
    """

    def __init__(
        self,
        path: Path,
        comparison: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> None:
        self.path, self.comparison = path, comparison
        self.settings, self.environment = dict(settings), dict(environment)
        self.runs = read_runs(path) if path.exists() else []
        for run in self.runs:
            if run.comparison != comparison:
                raise RunsError(f"{path}: holds runs of {run.comparison}, not of {comparison}")
            for name in sorted({*run.settings, *self.settings}):
                before, now = run.settings.get(name), self.settings.get(name)
                if before != now:
                    raise RunsError(
                        f"{path}: holds runs with {name} {before}, not {now}; choose another file"
                    )

    def holds(self, names: Mapping[str, Any]) -> bool:
        """Whether the training of these names is finished."""
        return any(run.names == names for run in self.runs)

    def add(self, names: Mapping[str, Any], found: Mapping[str, Any]) -> Run:
        """Keep a training that has just finished."""
        run = Run(self.comparison, dict(names), self.settings, dict(found), self.environment)
        self.runs.append(run)
        lines = (json.dumps({"format": FORMAT, **asdict(each)}) for each in self.runs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(f"{line}\n" for line in lines), sync=True)
        return run


def read_runs(path: Path) -> list[Run]:
    """The trainings that a file holds.

    Raises:
        RunsError: there is no such file, or a line is none of ours; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunsError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunsError(f"{path}: is not UTF-8") from error
    return [_run(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _run(line: str, where: str) -> Run:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunsError(f"{where}: is not JSON") from error
    names = {"comparison": str, **dict.fromkeys((f.name for f in fields(Run)[1:]), dict)}
    if not isinstance(row, dict) or row.pop("format", None) != FORMAT:
        raise RunsError(f"{where}: is not a finished run: 'format' is not {FORMAT!r}")
    if row.keys() != names.keys() or not all(isinstance(row[n], k) for n, k in names.items()):
        raise RunsError(f"{where}: must have the fields {', '.join(names)}")
    return Run(**row)


def common_environment(runs: Sequence[Run]) -> dict[str, Any]:
    """What the figures depend on besides the code; where runs differ, all their values."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in run.environment.items():
            seen = values.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    return {n: v[0] if len(v) == 1 else ", ".join(map(str, v)) for n, v in values.items()}
