"""Write a model for other engines: a plain language model that answers from memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from clara.backbone.adapters import GENERATOR
from clara.backbone.files import weight_files
from clara.backbone.generation_settings import HONOURED, SAMPLING, generation_settings
from clara.backbone.plain import empty_plain_model, plain_model, stored_bytes, stored_dtype
from clara.config import DtypeName
from clara.errors import reason
from clara.files.writing import aside_of, replacing_folder
from clara.integrations import description
from clara.integrations.description import ExportError
from clara.model.decoding import merged_settings
from clara.terminal.loading_bars import bars_on_a_terminal_only

if TYPE_CHECKING:
    from clara.model.clara import Clara

_SPARE_BYTES = 64 << 20  # tokenizer, and what a file system takes for itself

_SAID_ELSEWHERE = {"max_length", "max_new_tokens", "min_length", "stop_strings"}
_SAID_ELSEWHERE |= {"cache_implementation", "max_time"}  # of the machine, not of the answer

_CARD = """---
library_name: transformers
{base_model}tags:
- clara
- retrieval-augmented-generation
---

# Generator of a CLaRa model

{name} with CLaRa's generator merged into its weights: a plain causal language model. It answers
questions from memory tokens, which stand in its prompt as embeddings. `clara.json` says how to
build the prompt. Memory comes from the CLaRa model with this fingerprint, from no other:
`{fingerprint}`.
"""


def export_merged(
    model: Clara,
    target: str | os.PathLike[str],
    *,
    dtype: DtypeName = "auto",
    max_shard_size: str = "5GB",
    apart_from: Iterable[str | os.PathLike[str]] = (),
    release: bool = False,
) -> dict[str, Any]:
    """Write the backbone with the generator merged, its tokenizer, and `clara.json`.

    transformers and engines that read its folders load the result without this package. The folder
    appears at `target` when it is complete, in the place of an earlier export if there is one.

    Weights are merged in float32 and rounded once. So load the model in float32 for this:
    `Clara.from_pretrained(folder, dtype="float32", device="cpu")`. Of a quantized model, the
    weights that it computes with are merged into, not those that were quantized.

    Args:
        target: a folder that is new, empty, or an earlier export.
        dtype: of the weights; "auto" is what the backbone is stored in.
        max_shard_size: of a file with weights, as transformers takes it.
        apart_from: folders that the target must not lie in, nor contain, such as the model's.
        release: save memory by giving up the model, which cannot be used afterwards.

    Returns:
        What `clara.json` holds.

    Raises:
        ExportError: the target is taken or cannot be written, or a weight cannot be merged.
        ValueError: an argument is none of its values, or no token ends an answer.
    """
    folder = Path(os.path.expanduser(target)).absolute()
    backbone = str(model.config.backbone)
    check_target(folder, [*apart_from, *([backbone] if os.path.isdir(backbone) else [])])
    chosen = _chosen_dtype(model, dtype)
    described = description.describe(model, chosen)
    empty = empty_plain_model(model.backbone)
    _check_room(folder, stored_bytes(empty, chosen))
    with model.adapters.lock:
        try:
            plain = plain_model(model.backbone, GENERATOR, chosen, release=release)
        except ValueError as error:
            raise ExportError(f"the generator cannot be merged: {error}") from error
    described |= {"trained": plain.rounding is not None, "rounding": plain.rounding}
    try:
        with replacing_folder(folder) as unfinished:
            _write(model, plain.model, described, unfinished, max_shard_size)
            check_target(folder, ())  # what came there meanwhile stays
    except (OSError, SafetensorError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise ExportError(f"{folder}: writing failed: {what}") from error
    return described


def _write(
    model: Clara, plain: Any, described: dict[str, Any], folder: Path, max_shard_size: str
) -> None:
    """Write all files; `described` gets the fields about them."""
    plain.generation_config = _greedy_settings(model)
    with bars_on_a_terminal_only():
        plain.save_pretrained(folder, max_shard_size=max_shard_size)
    model.tokenizer.tokenizer.save_pretrained(folder)
    _write_card(folder, described)
    for file in weight_files(folder):  # which safetensors lets only their owner read
        shutil.copymode(folder / "README.md", file)
    described["embedding_tensor"] = _embedding_tensor(plain, folder)
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    described["files"] = [*sorted(file.as_posix() for file in files), description.FILE]
    description.write(folder, described)


def _greedy_settings(model: Clara) -> GenerationConfig:
    """What the model itself answers with, where that is said nowhere else: lengths and texts that
    end an answer are in `clara.json`."""
    own = generation_settings(model.backbone, model.tokenizer, None, None)
    used = merged_settings(model.backbone, own)
    kept = {name: getattr(used, name, None) for name in HONOURED - SAMPLING - _SAID_ELSEWHERE}
    return GenerationConfig(bos_token_id=model.tokenizer.bos_id, **kept)


def check_target(target: Path, apart_from: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse a place for an export that is taken, or where nothing can be written.

    Args:
        target: absolute.
        apart_from: see `export_merged`.

    Raises:
        ExportError: says what is there.
    """
    real = target.resolve()
    if real.is_dir() and real.samefile("."):
        raise ExportError(f"{target}: is the current folder; name another one")
    for other in map(os.path.realpath, apart_from):
        if real == Path(other) or Path(other) in real.parents or real in Path(other).parents:
            raise ExportError(
                f"{target}: must lie outside {other}, which is read; choose another folder"
            )
    for place in (target, aside_of(target)):  # see `replacing_folder`
        if place.is_symlink():
            raise ExportError(f"{place}: is a link; name the folder itself")
        if place.exists():
            _check_replaceable(place)
    parent = _existing_parent(target)
    if not parent.is_dir():
        raise ExportError(f"{target}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"{target}: cannot be written: no permission in {parent}")


def _existing_parent(target: Path) -> Path:
    return next(parent for parent in target.parents if parent.exists())


def _check_replaceable(target: Path) -> None:
    if not target.is_dir():
        raise ExportError(f"{target}: is a file; choose a new folder")
    if not any(target.iterdir()):
        return
    try:
        written = description.read(target)["files"]
    except ExportError as error:
        raise ExportError(
            f"{target}: exists already and is no earlier export; choose a new or an empty folder"
        ) from error
    other = description.unknown_file(target, written)
    if other is not None:
        raise ExportError(
            f"{target}: holds {other}, which no export has written and which would be lost; move "
            "it or choose another folder"
        )


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(_existing_parent(target)).free
    if free < needed + _SPARE_BYTES:
        raise ExportError(
            f"{target}: no space left on the device: {needed + _SPARE_BYTES:,} bytes are needed, "
            f"{free:,} are free"
        )


def _chosen_dtype(model: Clara, dtype: str) -> torch.dtype:
    names = get_args(DtypeName)
    if dtype not in names:
        raise ValueError(f"dtype must be one of {', '.join(names)}; got {dtype!r}")
    if dtype == "auto":
        return stored_dtype(str(model.config.backbone)) or model.dtype
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def _embedding_tensor(model: Any, folder: Path) -> str | None:
    """The name of the embedding matrix in the written files."""
    embeddings = model.get_input_embeddings()
    module = next(name for name, each in model.named_modules() if each is embeddings)
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            if f"{module}.weight" in weights.keys():  # noqa: SIM118 - it is no mapping
                return f"{module}.weight"
    return None


def _write_card(folder: Path, described: dict[str, Any]) -> None:
    name = described["backbone"]
    text = _CARD.format(
        base_model=f"base_model: {name}\n" if "/" in name else "",
        name=name,
        fingerprint=described["fingerprint"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
