"""What decides the results of a run, and where it was computed."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import clara
from clara.evaluation.dataset import Dataset
from clara.evaluation.entries import Entry, systems_of
from clara.evaluation.rankers.protocol import Ranker
from clara.evaluation.systems.protocol import settings_of

BATCH = 8
"""Questions that are answered together; a run that goes on after a kill has the same batches."""


def decisive_settings(
    entries: Sequence[Entry],
    rankers: Sequence[Ranker],
    dataset: Dataset,
    top_k: int,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """All that decides the results of a run, as a JSON object.

    Args:
        more: settings of the caller.
    """
    return {
        "entries": [entry.described() for entry in entries],
        "top_k": top_k,
        **more,
        "questions": len(dataset.questions),
        "questions_sha256": _digest(
            [
                *(each.id, each.question, each.golden_answers, each.positives),
                *(each.candidates, each.answerable),
            ]
            for each in dataset.questions
        ),
        "documents": len(dataset.documents),
        "documents_sha256": _digest(
            [each.id, each.text, each.title] for each in dataset.documents.values()
        ),
        "batch": BATCH,
        "systems": {each.name: settings_of(each) for each in systems_of(entries)},
        "rankers": {each.name: settings_of(each) for each in rankers},
    }


def _digest(records: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record).encode() + b"\n")
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Where a run computes, for whoever compares timings."""
    import torch

    packages = {}
    for name in ("torch", "transformers", "bm25s"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "clara": clara.__version__,
        **packages,
    }
