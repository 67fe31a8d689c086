"""What must hold of a folder of weights before it comes with the project."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from box_training import BoxError
from model_card import MADE_HERE
from train_weights import SETTINGS, WEIGHTS, places_beside

from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.evaluation.report.records import Run
from clara.evaluation.systems.digests import model_settings
from clara.files.writing import put_back, replace_folder
from clara.model.checkpoint import CONNECTORS, MEMORY_TOKENS
from clara.model.clara import Clara
from clara.model.shipped import CONFIG
from clara.terminal.printing import size

MB = 1_000_000
LARGEST_ADAPTER = 10 * MB
LARGEST_FOLDER = 36 * MB
CARD = "README.md"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_FILES = {CARD, CONFIG, CONNECTORS, MEMORY_TOKENS, *TOKENIZER} | {
    f"{name}/{file}" for name in ADAPTERS for file in (WEIGHTS, SETTINGS)
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

_TEXTS = (
    "Bangladesh: Geography\nCoastline: 580 km\nTerrain: mostly flat alluvial plain",
    "Australia: Geography\nHighest point: Mount Kosciuszko 2,228 m\nCoastline: 25,760 km",
    "Iceland: Government\nCapital: Reykjavik\nIndependence: 1 December 1918",
)
_QUESTIONS = (
    "How long is the coastline of Bangladesh?",
    "What is the highest point of Australia?",
    "What is the capital of Iceland?",
)


def check_name(name: str) -> str:
    """The name of a model, as the hub allows it.

    Raises:
        BoxError: it is a path, or holds something else than ASCII letters, digits, ., _ and -.
    """
    if not _NAME.fullmatch(name):
        raise BoxError(
            f"--name must be at most 96 letters, digits, ., _ and -, and begin with a letter or a "
            f"digit, got {name!r}"
        )
    return name


def check_target(target: Path) -> None:
    """Refuse a place that holds anything but what was made here: it would be lost.

    Raises:
        BoxError: it does.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BoxError(f"{target}: is a link or a file, and is not replaced")
    if not target.exists():
        return
    files = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    foreign = sorted(files - _FILES)
    if foreign:
        raise BoxError(f"{target}: holds {foreign[0]!r}, which would be lost; move it away first")
    card = target / CARD
    if files and not (card.is_file() and MADE_HERE in card.read_text("utf-8", "replace")):
        raise BoxError(f"{target}: was not made by this command, and is not replaced")


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` at the end, and is removed at an error."""
    unfinished, aside = places_beside(target)
    if aside.is_dir():
        put_back(aside, target, unfinished)
    check_target(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        replace_folder(unfinished, target, aside)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@torch.no_grad()
def check_same(original: Clara, folder: Path) -> Clara:
    """The model of a new folder, which has the weights of the original, rounded.

    Args:
        original: is rounded to bfloat16 too.

    Raises:
        BoxError: a weight is another one or not finite, or memory or an answer is another.
    """
    for name in ADAPTERS:
        for value in original.adapters.parameters(name).values():
            value.copy_(value.bfloat16())
    for module in (original.memory_tokens, original.connectors):
        for value in module.state_dict().values():
            value.copy_(value.bfloat16() if value.ndim else value)
    made = Clara.from_pretrained(
        folder, backbone=original.config.backbone, device="cpu", dtype="float32"
    )
    for name in ADAPTERS:
        check_weights(name, original.adapters.state(name), made.adapters.state(name))
    for file in ("memory_tokens", "connectors"):
        ours, theirs = (getattr(model, file).state_dict() for model in (original, made))
        check_weights(file, ours, theirs)
    rate = made.config.compression_rate if made.config.memory_form == "spans" else None
    ours, theirs = (
        model.compress(list(_TEXTS), compression_rate=rate) for model in (original, made)
    )
    if made.fingerprint != original.fingerprint or not torch.equal(ours.memory, theirs.memory):
        raise BoxError(f"{folder}: loads back to other memory than the rounded model's")
    for question in _QUESTIONS:
        answers = [
            model.answer([question], documents, top_k=1, max_new_tokens=16)[0]
            for model, documents in ((original, ours), (made, theirs))
        ]
        if answers[0].text != answers[1].text or answers[0].documents != answers[1].documents:
            raise BoxError(
                f"{folder}: answers {answers[1].text!r} to {question!r}, the rounded model "
                f"{answers[0].text!r}"
            )
    return made


def check_weights(
    name: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> None:
    """Refuse weights that differ, or that are no numbers.

    Args:
        name: of what they are the weights of.
        ours: as they should be.

    Raises:
        BoxError: a weight is missing, another one or not finite.
    """
    if ours.keys() != theirs.keys():
        differing = sorted(ours.keys() ^ theirs.keys())
        raise BoxError(f"{name}: {differing[0]} is not in both the model and the new folder")
    for key, value in ours.items():
        if not torch.isfinite(value).all():
            raise BoxError(f"{name}: {key} holds values that are not finite")
        if not torch.equal(value, theirs[key]):
            raise BoxError(f"{name}: {key} loads back to other weights than the rounded model's")


def check_evaluation(run: Run, model: Clara) -> None:
    """Refuse a run of `clara evaluate` that is of another model.

    Memory is told by its fingerprint; that, backbone, compressor and generator by the digest that
    the run keeps, and the query reasoner by that of its ranking, if it ranked.

    Raises:
        BoxError: it is, or it did not evaluate any model's memory.
    """
    systems = [each for each in (run.settings.get("systems") or {}).values() if each]
    own = [each for each in systems if "fingerprint" in each]
    found = {each["fingerprint"] for each in own}
    if found != {model.fingerprint}:
        what = ", ".join(sorted(str(each)[:12] for each in found)) or "none"
        raise BoxError(
            f"evaluation {run.name}: of memory with the fingerprint {what}, the model has "
            f"{model.fingerprint[:12]}"
        )
    _check_digests(run, "answers", own, model_settings(model, (COMPRESSOR, GENERATOR))["model"])
    rankers = (run.settings.get("rankers") or {}).values()
    ours = [each for each in rankers if each and "fingerprint" in each]
    _check_digests(
        run, "rankings", ours, model_settings(model, (COMPRESSOR, QUERY_REASONER))["model"]
    )


def _check_digests(run: Run, what: str, own: list[dict[str, object]], wanted: str) -> None:
    others = sorted({str(each.get("model")) for each in own} - {wanted})
    if others:
        raise BoxError(
            f"evaluation {run.name}: its {what} are of a model with the digest {others[0][:12]}, "
            f"this one has {wanted[:12]}"
        )


def check_sizes(folder: Path) -> int:
    """Bytes of the folder.

    Raises:
        BoxError: an adapter or the whole folder is too large.
    """
    files = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    for file, count in files.items():
        if file.name == WEIGHTS and count > LARGEST_ADAPTER:
            raise BoxError(
                f"{file.relative_to(folder)} has {size(count)}, at most {size(LARGEST_ADAPTER)} "
                "are accepted: train with a smaller lora_rank"
            )
    total = sum(files.values())
    if total > LARGEST_FOLDER:
        raise BoxError(f"the folder has {size(total)}, at most {size(LARGEST_FOLDER)} are accepted")
    return total
