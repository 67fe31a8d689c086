"""Folders of runs as `clara evaluate` leaves them, their figures made up by simple laws."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara.evaluation.statistics import mean_interval, paired_test

TYPES = ("number", "date", "name", "place", "phrase")
RECALL = {"bm25": 0.8, "minilm": 0.6, "gold": 1.0}
# Chance of an exact answer where a gold document is read, bytes kept of a document, milliseconds.
SYSTEMS: dict[str, tuple[float, float | None, float]] = {
    "text": (0.55, 900.0, 1400.0),
    "text-tuned": (0.75, 900.0, 1450.0),
    "prefix-cache": (0.55, 5_900_000.0, 300.0),
    "clara@4": (0.45, 147_456.0, 420.0),
    "clara@16": (0.06, 36_864.0, 260.0),
    "lead@4": (0.25, 225.0, 390.0),
}
CONTROL = 0.04


class MadeUpRun:
    """Collects the files of a run.

    Args:
        count: of questions.
        seed: of the answers.
        label: of the ids of questions; another label is another data set.
    """

    def __init__(self, count: int, seed: int, label: str) -> None:
        self.random = random.Random(seed)
        self.questions = [
            (f"{label}{row}", f"What is fact {row} of {label}?", f"answer {row}", TYPES[row % 5])
            for row in range(count)
        ]
        self.answers: list[dict[str, Any]] = []
        self.rankings: list[dict[str, Any]] = []
        self.described: list[dict[str, Any]] = []
        self.timings: dict[str, float] = {}

    def rank(self, ranker: str) -> None:
        for name, *_ in self.questions:
            ids = [f"{name}/{number}" for number in range(20)]
            first = 0 if self.random.random() < RECALL[ranker] else self.random.randrange(1, 20)
            ids[0], ids[first] = ids[first], ids[0]
            scores = [1.0 - 0.01 * place for place in range(20)]
            self.rankings.append(
                {
                    "ranker": ranker,
                    "question": name,
                    "ranked": ids,
                    "scores": scores,
                    "positives": [f"{name}/0"],
                    "timings_ms": {"rank": 0.8},
                }
            )

    def answer(self, system: str, ranker: str | None, control: str | None = None) -> None:
        entry = system if ranker is None else f"{system}+{ranker}"
        kind, _, rate = system.partition("@")
        chance, kept, took = SYSTEMS.get(system, (CONTROL, None, 350.0))
        self.described.append(
            {
                "entry": entry,
                "system": kind,
                "rate": int(rate) if rate else None,
                "ranker": ranker,
                "control": control,
                "bytes": kept,
            }
        )
        ranked = {e["question"]: e["ranked"][:5] for e in self.rankings if e["ranker"] == ranker}
        for name, text, gold, of in self.questions:
            read = ranked.get(name, [])
            found = f"{name}/0" in read or control is not None
            right = self.random.random() < (chance if found else CONTROL) * (0.6 + 0.1 * len(of))
            score = {"exact_match": float(right), "f1": 1.0 if right else 0.2}
            prompt = 40 + (0 if ranker is None else 1200 // int(rate or 1))
            self.answers.append(
                {
                    "entry": entry,
                    "question": name,
                    "text": text,
                    "golds": [gold, gold.title()],
                    "answerable": True,
                    "ranked": read,
                    "gold_rank": read.index(f"{name}/0") + 1 if f"{name}/0" in read else None,
                    "prompt_tokens": prompt,
                    "text_prompt_tokens": 1240 if rate else None,
                    "answer": gold if right else f"not {gold}",
                    "scores": {**score, "cover_substring": 1.0, "cover_tokens": float(right)},
                    "answer_type": of,
                    "timings_ms": {"read": took * 0.7, "generate": took * 0.3},
                }
            )

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        settings = {
            "entries": [
                {key: value for key, value in each.items() if key != "bytes"}
                for each in self.described
            ],
            "top_k": 5,
            "questions": len(self.questions),
            "documents": 20 * len(self.questions),
            "max_new_tokens": 32,
            "seed": 0,
        }
        environment = {"device": "Example CPU @ 2.50GHz", "threads": 2, "torch": "2.10.0"}
        record = {"settings": settings, "environment": environment}
        dump(folder / "run.json", {"format": "clara-evaluation/1", **record})
        lines(folder / "answers.jsonl", self.answers)
        lines(folder / "rankings.jsonl", self.rankings)
        kept = [
            {
                "system": system,
                "documents": 20 * len(self.questions),
                "bytes_per_document": SYSTEMS[system][1],
                "seconds_per_document": 0.21,
                "tokens_per_document": 240.0,
                "vectors_per_document": 60.0,
            }
            for system in dict.fromkeys(e["entry"].partition("+")[0] for e in self.described)
            if system in SYSTEMS and system != "text"
        ]
        lines(folder / "documents.jsonl", kept)
        summary = {"format": "clara-evaluation-summary/1", **record, **self._summary()}
        dump(folder / "summary.json", summary)
        return folder

    def _summary(self) -> dict[str, Any]:
        values: dict[str, list[float]] = defaultdict(list)
        for line in self.answers:
            values[line["entry"]].append(line["scores"]["exact_match"])
        entries = [self._entry(each, values) for each in self.described]
        names = [each["entry"] for each in entries]
        pairs = []
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                test = paired_test(values[a], values[b], resamples=1000)
                figures = {"difference": test.difference, "low": test.low, "high": test.high}
                pairs.append({"a": a, "b": b, "score": "exact_match", **figures, "p": test.p})
        return {
            "questions": len(self.questions),
            "documents": 20 * len(self.questions),
            "entries": entries,
            "rankers": self._rankers(),
            "pairs": pairs,
            "break_even": [
                {
                    "entry": "clara@4+bm25",
                    "against": "text+bm25",
                    "questions_per_document": 0.214,
                    "why": "0.210 s to compress a document; an answer takes 420 ms",
                },
                {
                    "entry": "clara@16+bm25",
                    "against": "text+bm25",
                    "questions_per_document": None,
                    "why": "an answer is not faster",
                },
            ][: 2 * ("clara@16+bm25" in names)],
        }

    def _entry(self, described: dict[str, Any], values: dict[str, list[float]]) -> dict[str, Any]:
        name = described["entry"]
        own = [line for line in self.answers if line["entry"] == name]
        by_type: dict[str, list[float]] = defaultdict(list)
        for line in own:
            by_type[line["answer_type"]].append(line["scores"]["exact_match"])
        timings = {
            stage: {"median": took, "low": 0.9 * took, "high": 1.2 * took}
            for stage, took in own[0]["timings_ms"].items()
        }
        reads = None
        if described["system"] == "clara":
            rate, ranker = described["rate"], described["ranker"]
            best = max(
                sum(values[each]) / len(values[each])
                for each in (f"clara-shuffled@{rate}+{ranker}", "clara-none")
            )
            reads = sum(values[name]) / len(own) - best >= 0.1
        return {
            **{key: value for key, value in described.items() if key != "bytes"},
            "questions": len(own),
            "scores": {
                score: interval([line["scores"][score] for line in own])
                for score in own[0]["scores"]
            },
            "prompt_tokens": own[0]["prompt_tokens"],
            "text_prompt_tokens": own[0]["text_prompt_tokens"],
            "compression": described["rate"] and 0.98 * described["rate"],
            "bytes_per_document": described["bytes"],
            "timings_ms": timings,
            "by_type": {
                of: {"questions": len(scores), "exact_match": sum(scores) / len(scores)}
                for of, scores in by_type.items()
            },
            "reads_memory": reads,
        }

    def _rankers(self) -> list[dict[str, Any]]:
        found = []
        for ranker in dict.fromkeys(line["ranker"] for line in self.rankings):
            own = [line for line in self.rankings if line["ranker"] == ranker]
            ranks = [line["ranked"].index(line["positives"][0]) + 1 for line in own]
            scores = {
                f"recall@{k}": interval([float(rank <= k) for rank in ranks]) for k in (1, 3, 5, 20)
            }
            scores["mrr"] = interval([1 / rank for rank in ranks])
            scores["ndcg@10"] = interval([1 / rank**0.5 * (rank <= 10) for rank in ranks])
            timing = {"rank": {"median": 0.8, "low": 0.7, "high": 0.9}}
            found.append({"ranker": ranker, **scores, "timings_ms": timing})
        return found


def interval(values: list[float]) -> dict[str, float]:
    found = mean_interval(values, resamples=1000)
    return {"mean": found.estimate, "low": found.low, "high": found.high}


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """A finished run in a new folder: text and CLaRa at two rates, with controls and opponents."""

    def make(
        folder: Path, *, count: int = 60, seed: int = 0, label: str = "q", small: bool = False
    ) -> Path:
        run = MadeUpRun(count, seed, label)
        for ranker in ("bm25",) if small else RECALL:
            run.rank(ranker)
        for ranker in ("bm25",) if small else RECALL:
            for system in ("text", "clara@4") if small else ("text", "clara@4", "clara@16"):
                run.answer(system, ranker)
                if system.startswith("clara"):
                    shuffled = system.replace("clara", "clara-shuffled")
                    run.answer(shuffled, ranker, "shuffled")
        run.answer("clara-none", None, "none")
        run.answer("closed-book", None)
        if not small:
            run.answer("text-tuned", "bm25")
            run.answer("prefix-cache", "gold")
            run.answer("lead@4", "bm25")
        return run.write(folder)

    return make


@pytest.fixture(scope="session")
def run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "factbook", count=100)


@pytest.fixture
def changed(small_run, tmp_path) -> Callable[..., Path]:
    """A copy of the small run in which one file is another.

    Args of what is returned:
        name: of the file.
        change: of its JSON value or, for JSON lines, of the list of them; changes it in place.
    """

    def change_file(name: str, change: Callable[[Any], Any], folder: str = "changed") -> Path:
        copy = tmp_path / folder
        if not copy.exists():
            shutil.copytree(small_run, copy)
        text = (copy / name).read_text(encoding="utf-8")
        if name.endswith(".jsonl"):
            values = [json.loads(line) for line in text.splitlines()]
            change(values)
            lines(copy / name, values)
        else:
            value = json.loads(text)
            change(value)
            dump(copy / name, value)
        return copy

    return change_file


@pytest.fixture(scope="session")
def small_run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", count=40, seed=5, small=True)
