"""Find out what a folder holds: a model, an index, a training run, an exported model or a reference
checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clara.cli.aborts import explain_aborts
from clara.cli.errors import CommandError, user_errors
from clara.model.shipped import find
from clara.terminal.printing import one_line, size
from clara.training.folder import describe, is_run

_REFERENCE_SETTINGS = (
    "decoder_model_name",
    "compr_rate",
    "doc_max_length",
    "lora_r",
    "generation_top_k",
)
_EXPORTED = (
    "backbone",
    "trained",
    "dtype",
    "quantization",
    "memory_form",
    "compression_rate",
    "rates",
    "document_length",
    "memory_tokens",
    "hidden_size",
    "fingerprint",
)


def inspect(folder: Path) -> dict[str, Any]:
    """What `clara info --json` prints.

    "kind" is model, index, training run, exported model or reference checkpoint.

    Raises:
        CommandError, MemoryIndexError: there is nothing, something else, or it is damaged.
    """
    if not folder.is_dir():
        found = find(str(folder))
        if found is not None:
            return _model(found)
        raise CommandError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}")
    if (folder / "_versions").is_dir():
        from clara.index import MemoryIndex

        explain_aborts(folder)
        return {"kind": "index", **MemoryIndex.open(folder).info()}
    settings = _settings(folder / "config.json")
    if "clara_format" in settings:
        return _model(folder)
    if (folder / "clara.json").is_file():
        return _exported(folder)
    if "decoder_model_name" in settings:
        return _reference(folder, settings)
    if is_run(folder):
        return _run(folder)
    hint = "; it may be a backbone: see 'clara init'" if "model_type" in settings else ""
    raise CommandError(
        f"{folder}: neither a model, an index, a training run, an exported model, nor a reference "
        f"checkpoint{hint}"
    )


def print_described(found: dict[str, Any]) -> None:
    """Print what `inspect` found, a line for each thing that the files tell."""
    for name, value in found.items():
        if value is None or value == {}:
            continue
        if name == "scores":
            print(f"{name.replace('_', ' ')}:")
            for each, figure in value.items():
                print(f"  {one_line(each)}: {one_line(_shown(each, figure))}")
            continue
        print(f"{name.replace('_', ' ')}: {one_line(_shown(name, value))}")


def is_trained(folder: Path) -> bool:
    """Whether any adapter of a model folder changes what the backbone computes.

    Raises:
        CommandError: an adapter is missing or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from clara.backbone.adapters import ADAPTERS

    for name in ADAPTERS:
        file = folder / name / "adapter_model.safetensors"
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CommandError(f"{file}: cannot read the adapter: {error}") from error
        # An untrained adapter adds B·A with B = 0.
        if any(bool(value.any()) for key, value in weights.items() if "lora_B" in key):
            return True
    return False


def _model(folder: Path) -> dict[str, Any]:
    from clara.config import ClaraConfig

    with user_errors():
        config = ClaraConfig.load(folder / "config.json")
    return {
        "kind": "model",
        "path": str(folder.resolve()),
        "backbone": config.backbone,
        "trained": is_trained(folder),
        "memory_form": config.memory_form,
        "compression_rate": config.compression_rate,
        "rates": list(config.rates) if config.memory_form == "spans" else None,
        "document_length": config.document_length,
        "memory_tokens": config.memory_tokens,
        "ranking": config.ranking_rule,
        "top_k": config.top_k,
        "lora_rank": config.lora_rank,
        "quantization": config.quantization,
        "bytes": _bytes(folder),
    }


def _run(folder: Path) -> dict[str, Any]:
    """A run, and the model in it, which is what other commands take."""
    with user_errors():
        found = describe(folder)
    return {
        "kind": "training run",
        "path": str(folder.resolve()),
        **found,
        "bytes": _bytes(folder),
    }


def _reference(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "reference checkpoint",
        "path": str(folder.resolve()),
        **{name: settings.get(name) for name in _REFERENCE_SETTINGS},
        "bytes": _bytes(folder),
        "convert_with": "clara convert",
    }


def _exported(folder: Path) -> dict[str, Any]:
    from clara.integrations.description import read

    found = read(folder)
    return {
        "kind": "exported model",
        "path": str(folder.resolve()),
        **{name: found.get(name) for name in _EXPORTED},
        "bytes": _bytes(folder),
    }


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file}: not JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _shown(name: str, value: Any) -> str:
    if name == "bytes":
        return size(value)
    if name.endswith("bytes_per_document"):
        return f"{value:,.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(key, each)}" for key, each in value.items())
    return str(value)
