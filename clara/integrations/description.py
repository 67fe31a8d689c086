"""`clara.json`: how other programs build prompts for an exported model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import clara_kernels
from clara.backbone.generation_settings import generation_settings
from clara.backbone.packed_forward import positions_of
from clara.errors import ClaraError
from clara.text.prompt_parts import prompt_parts

if TYPE_CHECKING:
    from clara.model.clara import Clara

FILE = "clara.json"
FORMAT = 1


class ExportError(ClaraError, ValueError):
    """A model cannot be exported, or an exported one cannot be read."""


def describe(model: Clara, dtype: torch.dtype) -> dict[str, Any]:
    """What a program has to know of a model, besides weights and tokenizer; plain JSON.

    `docs/export.md` says what each field means. What is known of the written weights is missing.

    Args:
        dtype: of the weights that are written.

    Raises:
        ValueError: the prompts cannot be described, or no token ends an answer.
    """
    config, tokenizer = model.config, model.tokenizer
    parts = prompt_parts(tokenizer, config.prompt)
    settings = generation_settings(model.backbone, tokenizer, None, None)
    spans = config.memory_form == "spans"
    rows = model.memory_tokens.separator.detach().float().cpu()
    return {
        "clara_export": FORMAT,
        "written_by": f"clara-rag {clara_kernels.__version__}",
        "backbone": _public_name(str(config.backbone)),
        "backbone_digest": model.backbone_digest,
        "quantization": config.quantization,
        "fingerprint": model.fingerprint,
        "memory_form": config.memory_form,
        "memory_tokens": config.memory_tokens,
        "hidden_size": model.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "compression_rate": config.compression_rate,
        "rates": list(config.rates) if spans else None,
        "question_rate": config.question_rate if spans else None,
        "span_slope": config.span_slope if spans else None,
        "document_length": config.document_length,
        "ranking": config.ranking_rule,
        "top_k": config.top_k,
        "prompt": {"system": config.prompt.system, "user": config.prompt.user},
        "pieces": [
            {"kind": "ids", "ids": parts.before},
            {"kind": "memory"},
            {"kind": "question", "before": parts.opening, "after": parts.closing},
            {"kind": "ids", "ids": parts.after},
        ],
        "separator": rows[0].tolist() if config.separator else None,
        "control_ids": tokenizer.control_ids,
        "bos_id": tokenizer.bos_id,
        "end_ids": list(settings.eos_token_id or ()),
        "pad_id": settings.pad_token_id,
        "stop_texts": list(settings.stop_strings or ()),
        "max_new_tokens": settings.max_new_tokens,
        "positions": positions_of(model.backbone),
        "embedding_scale": _embedding_scale(model),
    }


def write(folder: Path, described: Mapping[str, Any]) -> None:
    """Write `clara.json`: a line for each field."""
    lines = [f"  {json.dumps(name)}: {_compact(value)}" for name, value in described.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """`clara.json` of an exported model.

    Raises:
        ExportError: it is missing, damaged, or of a newer format.
    """
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{file}: not JSON: {error}") from error
    version = found.get("clara_export") if isinstance(found, dict) else None
    if version is None:
        raise ExportError(f"{file}: is not of an exported model: it has no 'clara_export'")
    if version != FORMAT:
        raise ExportError(
            f"{file}: clara_export {version!r} is not supported; this version reads 1"
        )
    files: Any = found.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ExportError(f"{file}: 'files' must be a list of names, got {files!r}")
    return dict(found)


def unknown_file(folder: Path, files: Collection[str]) -> str | None:
    """The name of a file in an exported model's folder that the export did not write."""
    there = (f for f in sorted(folder.rglob("*")) if f.is_symlink() or not f.is_dir())
    return next((n for f in there if (n := f.relative_to(folder).as_posix()) not in files), None)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _public_name(backbone: str) -> str:
    """A hub id as it is; of a path on this machine the last part."""
    return Path(backbone).name if Path(backbone).is_absolute() else backbone


@torch.no_grad()
def _embedding_scale(model: Clara) -> float | None:
    """What the backbone multiplies rows of its embedding matrix by, as Gemma 3 does; None if it
    does something else to them."""
    module = model.backbone.get_input_embeddings()
    ids = torch.arange(min(8, len(module.weight)), device=model.device)
    rows, made = module.weight[ids].double(), module(ids).double()
    if torch.equal(rows, made):
        return 1.0
    scale = float((rows * made).sum() / rows.square().sum())
    return scale if torch.allclose(rows * scale, made, rtol=1e-2, atol=1e-6) else None
