"""The training of one form of memory, at one rate and with one seed, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.watching import Watch
from clara import Clara
from clara.backbone.loading import load_backbone
from clara.memory.documents import CompressedDocuments
from clara.text.tokenizer import SafeTokenizer
from clara.training.folder import MODEL, describe
from clara.training.prompts import RECONSTRUCTION_TASK, TASK_PROMPT
from clara.training.run import run
from clara.training.settings import RunSettings

from .windows import passages, read_windows, write_windows

SEEDS = {2: 1, 4: 3, 8: 3, 16: 1}
"""Rates, and how many seeds each is trained with."""

_HELD_OUT_SEED = 12_345
_BATCH = 8  # of an evaluation


@dataclass(frozen=True)
class Size:
    """What all trainings have in common.

    Attributes:
        steps: of a training.
        batch: windows of a step.
        window: tokens of a text, which every rate divides.
        held_out: windows of countries that are never trained on, which the losses are means over.
        every: steps between two measurements.
    """

    steps: int = 200
    batch: int = 4
    window: int = 32
    held_out: int = 32
    every: int = 50


@dataclass(frozen=True)
class Place:
    """Where the trainings take from and write to.

    Attributes:
        backbone: folder or file of the backbone.
        data: folder that `clara data factbook` wrote.
        work: folder of windows and of the training that is under way.
    """

    backbone: Path
    data: Path
    work: Path

    def tokenizer(self) -> SafeTokenizer:
        """The tokenizer of the backbone."""
        device = torch.device("cpu")
        _, tokenizer = load_backbone(str(self.backbone), device=device, dtype=torch.bfloat16)
        return SafeTokenizer(tokenizer)


def settings_of(
    form: str, rate: int, seed: int, size: Size, place: Place, train_data: Path, output: Path
) -> RunSettings:
    """What a run of `clara train pretrain` is told; forms differ in what memory is and no more.

    All of them minimise the cross-entropy alone: the loss that aligns memory with the text belongs
    to the published form and has no meaning for averages.
    """
    spans = form != "learned"
    config: dict[str, Any] = {
        "memory_form": "spans" if spans else "learned",
        "compression_rate": rate,
        "document_length": size.window,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "prompt": TASK_PROMPT,
        "dtype": "bfloat16",
    }
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": size.steps,
        "per_device_train_batch_size": size.batch,
        # Windows are drawn with the seed: all forms read the same ones in the same order.
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(20, size.steps // 4),
        "max_grad_norm": 1.0,
        "alignment_weight": 0.0,
        "bf16": True,
        "use_cpu": True,
        "seed": seed,
        "logging_steps": size.every,
        "save_steps": size.every,
        "save_total_limit": 1,
        "report_to": "none",
    }
    if spans:
        config["rates"] = sorted({1, rate})
        arguments["curriculum"] = [{"rates": [rate], "averages_only": form == "averages"}]
        arguments["learning_rates"] = {"connector": 7e-4}
    return RunSettings(
        model=None,
        backbone=str(place.backbone),
        config=config,
        train_data=str(train_data),
        eval_data=None,
        train_split="train",
        eval_split="validation",
        arguments=arguments,
    )


def train(form: str, rate: int, seed: int, size: Size, place: Place) -> dict[str, Any]:
    """Train, going on where a killed call was; returns the losses and what they took."""
    train_data, held_out = prepare(seed, size, place)
    folder = folder_of(form, rate, seed, place)
    watch = Watch(folder / "losses.jsonl", size.every, lambda model: losses(model, held_out))
    if not (folder / MODEL).exists():
        settings = settings_of(form, rate, seed, size, place, train_data, folder)
        run("pretrain", settings, resume=True, callbacks=[watch])
    known = describe(folder)
    return {
        "losses": watch.records,
        "minutes": round(60 * (known["hours"] or 0.0), 1),
        "positions": known["positions"],
    }


def folder_of(form: str, rate: int, seed: int, place: Place) -> Path:
    """The folder of a training that is under way; of no use once its figures are kept."""
    return place.work / f"{form}-{rate}-{seed}"


def prepare(seed: int, size: Size, place: Place) -> tuple[Path, list[str]]:
    """The windows of a seed's trainings, and the held-out ones, which all seeds share."""
    train_data = place.work / f"{size.steps * size.batch}-of-{size.window}-{seed}.jsonl"
    held_out = place.work / f"held-out-{size.held_out}-of-{size.window}.jsonl"
    wanted = (
        (train_data, "train", size.steps * size.batch, seed),
        (held_out, "validation", size.held_out, _HELD_OUT_SEED),
    )
    missing = [each for each in wanted if not each[0].exists()]
    if missing:
        place.work.mkdir(parents=True, exist_ok=True)
        tokenizer = place.tokenizer()
        for file, split, count, drawn_with in missing:
            texts = passages(place.data / f"documents.{split}.jsonl")
            write_windows(file, tokenizer, texts, size.window, count, drawn_with)
    return train_data, read_windows(held_out)


@torch.no_grad()
def losses(model: Clara, texts: Sequence[str]) -> dict[str, float]:
    """Mean loss of a token when texts are repeated from memory.

    "right" is from a text's own memory, "other" from that of the next text, "none" from none.
    """
    with model.evaluating():
        memory = model.compress(texts)
        rows = range(len(texts))
        read = {
            "right": [memory[[row]] for row in rows],
            "other": [memory[[(row + 1) % len(texts)]] for row in rows],
            "none": [memory[[]] for _ in rows],
        }
        return {name: _mean_loss(model, texts, each) for name, each in read.items()}


def _mean_loss(model: Clara, texts: Sequence[str], memory: Sequence[CompressedDocuments]) -> float:
    total = 0.0
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        asked = [RECONSTRUCTION_TASK] * len(texts[part])
        # Texts are of equal length, so that the mean over tokens is one over texts too.
        total += float(model.answer_loss(asked, memory[part], texts[part])) * len(asked)
    return total / len(texts)
