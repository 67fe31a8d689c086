"""Reading checkpoints of the public reference implementation (apple/ml-clara) into our format."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara.backbone import hub
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config import ClaraConfig, PromptTemplate
from clara.errors import ClaraError, reason
from clara.model.clara import Clara

ADAPTER_NAMES = {
    "encoder_adapter": COMPRESSOR,
    "query_reasoner_adapter": QUERY_REASONER,
    "decoder_adapter": GENERATOR,
}

# The released weights were trained with this wording; other words change their answers.
REFERENCE_PROMPT = PromptTemplate(
    system=(
        "You are a helpful assistant. Your task is to extract relevant information from provided "
        "documents and to answer to questions as briefly as possible."
    ),
    user="Background:\n{memory}\n\nQuestion:{question}",
)

_FILES = ("config.json", "adapters.pth", "decoder_first_last_layers.pth")
_EMBEDDINGS = "model.embed_tokens.weight"
_MARKERS = 3  # <AE>, <ENC>, <SEP>, after the memory tokens


class ConversionError(ClaraError, ValueError):
    """A checkpoint that cannot be converted."""


def convert_reference(
    source: str | Path, target: str | Path, *, backbone: str | Path | None = None
) -> ClaraConfig:
    """Convert a reference checkpoint to a model folder.

    A checkpoint without a query reasoner (of an earlier stage) gets its compressor's weights
    there, as training would start it. Files are read with `weights_only`, nothing is unpickled.

    Args:
        source: folder with `config.json`, `adapters.pth`, `decoder_first_last_layers.pth`, or such
            a folder on the hub: "owner/name/folder", or "owner/name" if they are not in a folder.
        target: folder to write: new or empty.
        backbone: backbone to use instead of the one the checkpoint names.

    Raises:
        ConversionError: a file is missing or unreadable, the target is not empty, the checkpoint
            cannot be got from the hub, or it does not belong to the backbone.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"target {target} exists and is not empty")
    source = _located(source)
    settings = _read_settings(source)
    adapters = _read_tensors(source / "adapters.pth")
    table = _read_tensors(source / "decoder_first_last_layers.pth").get(_EMBEDDINGS)
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise ConversionError(f"{source}: decoder_first_last_layers.pth holds no {_EMBEDDINGS}")
    unknown = sorted(set(adapters) - set(ADAPTER_NAMES))
    if unknown:
        raise ConversionError(f"{source}: adapters.pth holds the unknown adapter {unknown[0]!r}")
    states = {ADAPTER_NAMES[name]: state for name, state in adapters.items()}
    states.setdefault(QUERY_REASONER, states.get(COMPRESSOR))
    missing = [name for name in ADAPTERS if states.get(name) is None]
    if missing:
        raise ConversionError(f"{source}: adapters.pth holds no {missing[0]}")

    location = str(backbone or settings["decoder_model_name"])
    dtype = str(next(iter(states[COMPRESSOR].values())).dtype).removeprefix("torch.")
    try:
        config = ClaraConfig(
            compression_rate=settings["compr_rate"],
            document_length=settings["doc_max_length"],
            distinct_memory_tokens=settings["different_mem_tokens"],
            separator=settings["sep"],
            lora_rank=settings["lora_r"],
            lora_alpha=2 * settings["lora_r"],
            top_k=settings["generation_top_k"],
            prompt=REFERENCE_PROMPT,
            overflow="truncate",
        )
        model = Clara.from_backbone(location, config.replace(dtype=dtype), device="cpu")
        for name, state in states.items():
            model.adapters.load_state(name, state)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{source}: {error}") from error
    _take_rows(model, table, source)
    model.config = config.replace(
        backbone=model.config.backbone, backbone_digest=model.backbone_digest
    )
    model.save_pretrained(target)
    return model.config


def _located(source: str | Path) -> Path:
    """The checkpoint's folder, downloaded if it is on the hub."""
    folder, name = Path(source).expanduser(), str(source)
    parts = name.rstrip("/").split("/")
    if folder.exists() or folder.is_absolute() or name.startswith(".") or len(parts) < 2:
        return folder
    within = "/".join(parts[2:])

    def choose(files: Sequence[str], download: Callable[[str], Path]) -> list[str]:
        needed = [f"{within}/{file}" if within else file for file in _FILES]
        if set(needed) <= set(files):
            return needed
        folders = sorted({file.rpartition("/")[0] for file in files if file.endswith(_FILES[1])})
        there = [f"'{'/'.join(parts[:2])}/{each}'" for each in folders if each != within]
        what = f"has such checkpoints in {', '.join(there)}" if there else "has none"
        raise hub.HubError(
            f"on the hub is not a reference checkpoint: it holds no {', '.join(needed)}; it {what}"
        )

    def complete(folder: Path) -> bool:
        return all((folder / file).is_file() for file in _FILES)

    try:
        return hub.snapshot("/".join(parts[:2]), within=within, choose=choose, complete=complete)
    except hub.HubError as error:
        raise ConversionError(f"checkpoint {error}") from error


def _read_settings(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    if not file.is_file():
        raise ConversionError(f"{source} is not a reference checkpoint: it holds no config.json")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{file}: not JSON: {error}") from error
    needed = (
        "decoder_model_name",
        "compr_rate",
        "doc_max_length",
        "different_mem_tokens",
        "sep",
        "lora_r",
        "generation_top_k",
    )
    for name in needed:
        if not isinstance(settings, dict) or name not in settings:
            raise ConversionError(f"{file} is not a reference configuration: it has no {name!r}")
    return settings


def _read_tensors(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConversionError(f"{file.parent} is not a reference checkpoint: no {file.name}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{file}: cannot read it as tensors: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file}: holds {type(content).__name__}, expected a dictionary")
    return content


@torch.no_grad()
def _take_rows(model: Clara, table: Tensor, source: Path) -> None:
    """Take our rows from the end of a grown embedding table, after checking the rest of it."""
    own = model.memory_tokens
    slots = len(own.memory)
    vocabulary = len(table) - slots - _MARKERS
    backbone = model.backbone.get_input_embeddings().weight
    # A backbone may have more rows than its tokenizer has tokens; the reference cuts them off.
    known = vocabulary in (len(model.tokenizer.tokenizer), len(backbone))
    fits = known and vocabulary <= len(backbone) and table.shape[1] == backbone.shape[1]
    if not fits or not torch.allclose(
        table[:vocabulary].float(), backbone[:vocabulary].float(), atol=1e-3, rtol=1e-2
    ):
        raise ConversionError(
            f"{source}: its embedding table {list(table.shape)} is not that of the backbone "
            f"{list(backbone.shape)} with {slots} memory tokens and {_MARKERS} markers added"
        )
    rows = table[vocabulary:].float()
    own.memory.copy_(rows[:slots])
    own.encode.copy_(rows[slots + 1 : slots + 2])
    own.separator.copy_(rows[slots + 2 : slots + 3])
