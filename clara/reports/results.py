"""Results of benchmarks, and the file that stores them."""

from __future__ import annotations

import json
import reprlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from clara.errors import ClaraError
from clara.errors.checks import is_number
from clara.files.writing import write_text

FORMAT = "clara-benchmark/1"
OUTCOMES = ("kept", "missed", "not reachable here")

Parameter = str | int | float

REFERENCE_WAY = "reference way"
"""What measurements call the way of the public reference implementation."""

USUAL: dict[str, Parameter] = {"k": 5, "documents": 1000}
"""Parameters of what plots and quoted tables show of a case; sweeps have others too."""

_NOT_STORED = {"stored": False}
_SMALLEST, _LARGEST = 1e-30, 1e30  # so that no ratio of two numbers is 0 or infinite
_NUMBERS = f"numbers of 0 or from {_SMALLEST:g} to {_LARGEST:g}"


class ResultsError(ClaraError, ValueError):
    """A file is not a results file of benchmarks; the message names it and says why."""


@dataclass(frozen=True)
class Measurement:
    """Samples of one implementation in one case.

    Attributes:
        suite: such as "compress".
        case: what is measured, such as "time to first token".
        implementation: whose way of it, such as "memory" or "text".
        parameters: what tells cases of this name apart, such as the compression rate.
        unit: of the samples, "s" or "bytes".
        samples: in the order they were taken. Those of the implementations of a case were taken
            in turns, so that the i-th of all of them belong to one round.
        quantities: what one call does, such as "documents", "tokens", "bytes" or "flops".
        withheld: why there are no samples, such as an answer that differs; "" where there are.
    """

    suite: str
    case: str
    implementation: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    unit: str = "s"
    samples: list[float] = field(default_factory=list)
    quantities: dict[str, float] = field(default_factory=dict)
    withheld: str = ""

    def __post_init__(self) -> None:
        for name in ("suite", "case", "implementation", "unit", "withheld"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a string")
        for name in ("parameters", "quantities"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} must be an object")
        if not all(isinstance(v, str) or _is_number(v) for v in self.parameters.values()):
            raise ValueError(f"parameters must be strings or {_NUMBERS}")
        if not all(map(_is_number, self.quantities.values())):
            raise ValueError(f"quantities must be {_NUMBERS}")
        samples = self.samples
        if not isinstance(samples, list) or not all(_is_number(v) and v >= 0 for v in samples):
            raise ValueError(f"samples must be a list of {_NUMBERS}, none below 0")
        if self.unit not in ("s", "bytes"):
            raise ValueError(f"unit must be s or bytes, got {reprlib.repr(self.unit)}")
        if bool(samples) is bool(self.withheld):
            raise ValueError("there must be either samples or a reason why they are withheld")

    @property
    def case_key(self) -> tuple[Any, ...]:
        """The same for all implementations of a case."""
        return self.suite, self.case, tuple(sorted(self.parameters.items()))

    @property
    def key(self) -> tuple[Any, ...]:
        """Names a measurement among those of a run."""
        return *self.case_key, self.implementation

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The 20th and the 80th percentile."""
        return spread(self.samples)

    def per_second(self, quantity: str) -> float | None:
        """How much of a quantity one second does, if calls have any and are timed."""
        amount = self.quantities.get(quantity)
        if amount is None or self.unit != "s" or not self.samples or not self.median:
            return None
        return amount / self.median


@dataclass(frozen=True)
class Promise:
    """A figure that was promised, and whether the promise was kept: made by `judged`.

    Attributes:
        outcome: "kept", "missed", or "not reachable here": a limit measured by the run is lower.
        reason: why it is not reachable. Files of results do not hold it.
    """

    what: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    outcome: str = "kept"
    reason: str = field(default="", metadata=_NOT_STORED)

    def __post_init__(self) -> None:
        if not isinstance(self.what, str) or not _is_number(self.measured):
            raise ValueError("a promise must have a string 'what' and a number 'measured'")
        if not all(bound is None or _is_number(bound) for bound in (self.at_least, self.at_most)):
            raise ValueError(f"at_least and at_most must be null or {_NUMBERS}")
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}")

    @classmethod
    def judged(
        cls,
        what: str,
        measured: float,
        at_least: float | None = None,
        at_most: float | None = None,
        *,
        possible: float | None = None,
        limit: str = "the limit allows",
    ) -> Promise:
        """Compare a figure with its bound.

        Args:
            possible: the most that `limit`, measured in the same run, allows.
        """
        kept = (at_least is None or measured >= at_least) and (
            at_most is None or measured <= at_most
        )
        outcome, reason = "kept" if kept else "missed", ""
        if not kept and at_least is not None and possible is not None and possible < at_least:
            outcome, reason = "not reachable here", f"{limit} at most {possible:.3g}"
        return cls(what, measured, at_least, at_most, outcome, reason)

    @property
    def missed(self) -> bool:
        return self.outcome == "missed"

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_least is None else f"{self.at_least:g}"
        outcome = {"kept": "", "missed": ", MISSED"}.get(self.outcome, f", {self.outcome}")
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.what}: {self.measured:.3g} (promised {bound}){outcome}{reason}"


@dataclass
class Results:
    """A run of benchmarks.

    Attributes:
        environment: what the figures depend on besides the code: device, versions, commit, command.
        ceilings: "bandwidth" in bytes/s and "matrix_rate" in FLOP/s, measured by the same run.
    """

    environment: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def of(self, suite: str, case: str | None = None) -> list[Measurement]:
        """The measurements of a suite, or of one of its cases, that have samples."""
        return [
            each
            for each in self.measurements
            if each.suite == suite and case in (None, each.case) and each.samples
        ]

    def find(self, suite: str, case: str, implementation: str, **parameters: Parameter) -> Any:
        """The measurement of this name whose parameters include the given ones, or None."""
        for each in self.of(suite, case):
            if each.implementation == implementation and parameters.items() <= (
                each.parameters.items()
            ):
                return each
        return None

    def write(self, path: Path) -> None:
        """All of it or nothing."""
        content = {
            "format": FORMAT,
            "environment": self.environment,
            "ceilings": self.ceilings,
            "measurements": [_row(each) for each in self.measurements],
            "promises": [_row(each) for each in self.promises],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """The 20th and the 80th percentile; between two samples, interpolated."""
    several = samples if len(samples) > 1 else [*samples, *samples]
    low, *_, high = statistics.quantiles(several, n=5, method="inclusive")
    return low, high


def pairs(
    measured: Iterable[Measurement], ours: str, theirs: str
) -> list[tuple[Measurement, Measurement | None]]:
    """Measurements of an implementation, each with that of another one in the same case."""
    known = list(measured)
    others = {each.case_key: each for each in known if each.implementation == theirs}
    return [(e, others.get(e.case_key)) for e in known if e.implementation == ours]


def ratios(ours: Measurement, theirs: Measurement) -> list[float]:
    """How many times as much theirs takes, in every round that both have."""
    pairs = zip(ours.samples, theirs.samples, strict=False)
    return [b / a for a, b in pairs if a > 0]


def usual(measurements: Iterable[Measurement], but: Iterable[str] = ()) -> list[Measurement]:
    """Measurements with the parameters of `USUAL`; if none has them, with the most common ones.

    Args:
        but: parameters that may be anything.
    """
    kept = list(measurements)
    for name, wanted in USUAL.items():
        values = [each.parameters[name] for each in kept if name in each.parameters]
        if values and name not in but:
            chosen = wanted if wanted in values else statistics.mode(values)
            kept = [each for each in kept if each.parameters.get(name, chosen) == chosen]
    return kept


def read_results(path: str | Path) -> Results:
    """Read what `Results.write` wrote.

    Raises:
        ResultsError: no such file, or not one of ours.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: is not JSON") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ResultsError(f"{path}: is not a results file: 'format' is not {FORMAT!r}")
    try:
        return _results(content)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path}: {error}") from error


def _results(content: Mapping[str, Any]) -> Results:
    environment, ceilings = content.get("environment"), content.get("ceilings")
    if not isinstance(environment, dict) or not all(map(_is_detail, environment.values())):
        raise ValueError("'environment' must be an object of strings, numbers, and lists of them")
    if not isinstance(ceilings, dict) or not all(map(_is_number, ceilings.values())):
        raise ValueError("'ceilings' must be an object of numbers")
    measurements = _records(content, "measurements", Measurement)
    seen = set()
    for number, found in enumerate(measurements):
        if found.key in seen:
            raise ValueError(f"measurements[{number}]: {reprlib.repr(found.case)} is there twice")
        seen.add(found.key)
    promises = _records(content, "promises", Promise)
    return Results(environment, ceilings, measurements, promises)


Record = TypeVar("Record", Measurement, Promise)


def _stored(kind: type[Record]) -> list[Field[Any]]:
    """Fields that files hold."""
    return [each for each in fields(kind) if each.metadata.get("stored", True)]


def _row(record: Record) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in _stored(type(record))}


def _records(content: Mapping[str, Any], name: str, kind: type[Record]) -> list[Record]:
    rows = content.get(name)
    if not isinstance(rows, list):
        raise ValueError(f"{name!r} must be a list")
    known = {each.name: each.default is each.default_factory is MISSING for each in _stored(kind)}
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(_record(row, kind, known))
        except ValueError as error:
            raise ValueError(f"{name}[{number}]: {error}") from error
    return found


def _record(row: Any, kind: type[Record], known: Mapping[str, bool]) -> Record:
    """An instance of `kind` whose fields, and whether they have to be given, are `known`."""
    if not isinstance(row, dict):
        raise ValueError("must be an object")
    for name in row:
        if name not in known:
            raise ValueError(f"has an unknown field {reprlib.repr(name)}")
    for name, needed in known.items():
        if needed and name not in row:
            raise ValueError(f"lacks the field {name!r}")
    return kind(**row)


def _is_number(value: Any) -> bool:
    if not is_number(value):
        return False
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def _is_detail(value: Any) -> bool:
    """Whether a value may stand in an environment."""
    listed = value if isinstance(value, list) else [value]
    return all(each is None or isinstance(each, str | bool) or _is_number(each) for each in listed)
