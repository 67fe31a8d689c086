"""Find the files of a backbone: in folders, in the hub's cache, or converted from GGUF."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from clara.backbone import digest_cache, hub
from clara.backbone.digest_cache import cache_folder
from clara.errors import ClaraError, reason
from clara.files.digest import sha256_of
from clara.files.writing import new_folder
from clara.terminal.loading_bars import bars_on_a_terminal_only

_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class BackboneError(ClaraError, ValueError):
    """A backbone that cannot be found, read, or used."""


def resolve_backbone(name_or_path: str) -> str:
    """Return a folder that transformers can load; converts GGUF files and downloads hub models.

    Raises:
        BackboneError: the path does not exist, the folder holds no model, or the model cannot be
            downloaded from the hub.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BackboneError(f"backbone file {name_or_path!r} does not exist")
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone folder {name_or_path!r} holds no config.json")
        return str(path)
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise BackboneError(f"backbone folder {name_or_path!r} does not exist")
    try:
        return str(hub.snapshot(name_or_path, choose=_needed_files, complete=_is_complete))
    except hub.HubError as error:
        raise BackboneError(f"backbone {error}") from error


def _needed_files(files: Sequence[str], download: Callable[[str], Path]) -> list[str]:
    """The files on the hub that transformers reads: no pickles and no other formats."""
    here = [file for file in files if "/" not in file]
    if "config.json" not in here:
        raise hub.HubError("on the hub holds no config.json")
    if SAFE_WEIGHTS_NAME in here:
        weights = [SAFE_WEIGHTS_NAME]
    elif SAFE_WEIGHTS_INDEX_NAME in here:
        weights = [file.name for file in weight_files(download(SAFE_WEIGHTS_INDEX_NAME).parent)]
    else:
        raise hub.HubError("on the hub holds no weights as safetensors")
    texts = [file for file in here if Path(file).suffix in _TEXTS]
    templates = [file for file in files if file.startswith("additional_chat_templates/")]
    return [*texts, *templates, *weights]


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the hub's cache holds configuration, weights and a tokenizer."""
    try:
        weights = weight_files(folder)
    except (OSError, ValueError):
        return False
    present = {file.name for file in folder.iterdir()}
    return all(file.is_file() for file in weights) and not present.isdisjoint(_TOKENIZERS)


def weight_files(folder: Path, *, shards_first: bool = False) -> list[Path]:
    """The safetensors files that transformers reads from a model's folder.

    Args:
        shards_first: prefer shards to a single file where there are both; transformers does not.

    Raises:
        OSError: there are none.
        ValueError: the list of shards is damaged.
    """
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if single.is_file() and not (shards_first and index.is_file()):
        return [single]
    if not index.is_file():
        raise FileNotFoundError(f"{folder} holds no {SAFE_WEIGHTS_NAME}")
    listed = json.loads(index.read_text(encoding="utf-8"))
    if not isinstance(listed, dict) or not isinstance(listed.get("weight_map"), dict):
        raise ValueError(f"{index.name} has no 'weight_map'")
    return [folder / name for name in sorted(set(listed["weight_map"].values()))]


@bars_on_a_terminal_only()
def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a folder that transformers loads quickly; done once per content.

    `save_pretrained` refuses a model loaded from GGUF, so its weights are put into a model made
    from the plain configuration. The folder appears under its final name only when complete.

    Raises:
        BackboneError: the package `gguf` is missing, or the file cannot be read.
    """
    digest = digest_cache.cached(file, [file], lambda: sha256_of(file))
    target = cache_folder() / "gguf" / f"{file.stem}-{digest[:16]}"
    if target.is_dir():
        return target
    if find_spec("gguf") is None:
        raise BackboneError("reading a GGUF file needs the package gguf: pip install gguf")
    folder, name = str(file.parent), file.name
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except Exception as error:
        raise BackboneError(f"cannot read GGUF file {str(file)!r}: {reason(error, 300)}") from error
    config = transformers.AutoConfig.for_model(**loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = transformers.GenerationConfig.from_model_config(config)
    target.parent.mkdir(parents=True, exist_ok=True)  # stays, whatever becomes of the folder
    try:
        with new_folder(target, private=True) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except OSError:
        if not target.is_dir():  # another process may have finished first
            raise
    return target
