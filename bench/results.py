"""The file that a run of the operators' benchmarks writes, case by case."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from clara.files.writing import write_text

COMMITTED = Path(__file__).resolve().parent / "results"


def default_path(device: torch.device, file: str = "kernels.json") -> Path:
    """Where results of this GPU are kept."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", torch.cuda.get_device_name(device)).strip("-")
    return COMMITTED / name / file


class Results:
    """A JSON file, written anew whenever something is added.

    Args:
        copies: further files of the same content.
    """

    def __init__(self, path: Path, copies: Iterable[Path] = ()) -> None:
        self.paths = [path, *copies]
        self.content: dict[str, Any] = {}

    def load(self) -> Results:
        self.content = json.loads(self.paths[0].read_text())
        return self

    def start(self, **content: Any) -> None:
        self.content = {**content, "cases": [], "targets": [], "notes": []}
        self.save()

    def add(self, case: dict[str, Any]) -> None:
        self.content["cases"].append(case)
        self.content["targets"] = targets(self.content["cases"])
        self.save()

    def note(self, text: str) -> None:
        self.content["notes"].append(text)
        self.save()

    def save(self) -> None:
        text = json.dumps(self.content, indent=1) + "\n"
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


def targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each promise with the worst of its cases; `reached` is None while a case has no number."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        for target in case["targets"]:
            key = (case["operator"], target["what"])
            entry = {
                "operator": case["operator"],
                **{name: target[name] for name in ("what", "at_least", "at_most", "measured")},
                "case": case["case"],
                "cases": 1,
                "without_number": int(target["measured"] is None),
            }
            found[key] = _worse(found[key], entry) if key in found else entry
    for entry in found.values():
        entry["reached"] = _reached(entry)
    return list(found.values())


def _worse(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    sign = 1 if one["at_least"] is not None else -1
    measured = [each for each in (one, other) if each["measured"] is not None]
    worst = min(measured or [one], key=lambda each: sign * (each["measured"] or 0))
    sums = {name: one[name] + other[name] for name in ("cases", "without_number")}
    return {**worst, **sums}


def _reached(entry: dict[str, Any]) -> bool | None:
    measured = entry["measured"]
    if measured is not None:
        if entry["at_least"] is not None and measured < entry["at_least"]:
            return False
        if entry["at_most"] is not None and measured > entry["at_most"]:
            return False
    return None if entry["without_number"] else True


def table(content: dict[str, Any]) -> str:
    """The promises, one line each, and what could not be measured."""
    rows = [("operator", "promised", "wanted", "measured", "reached", "worst case")]
    for entry in content["targets"]:
        least = entry["at_least"] is not None
        wanted = f"{'>=' if least else '<='} {entry['at_least'] if least else entry['at_most']:g}"
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
        reached = {True: "yes", False: "NO", None: "?"}[entry["reached"]]
        rows.append((entry["operator"], entry["what"], wanted, measured, reached, entry["case"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    without = [case for case in content["cases"] if case["status"] != "measured"]
    lines += [f"{case['operator']}, {case['case']}: {case['status']}" for case in without[:8]]
    if len(without) > 8:
        lines.append(f"… and {len(without) - 8} more cases without a number")
    lines += content["notes"]
    if content["dry_run"]:
        lines.append("A dry run on CPU: the times mean nothing.")
    return "\n".join(lines)
