"""Write and read model folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clara.backbone import hub, trained
from clara.backbone.adapters import ADAPTERS, adapter_files
from clara.backbone.files import weight_files
from clara.backbone.loading import backbone_digest, sampled_backbone_digest
from clara.backbone.packaged import copy_hint, exact_copy
from clara.backbone.sharding import fill, whole
from clara.config import ClaraConfig
from clara.errors import SavedModelError
from clara.model import shipped
from clara.model.shipped import CONFIG

if TYPE_CHECKING:
    from clara.model.forward import ClaraCore

MEMORY_TOKENS = "memory_tokens.safetensors"
CONNECTORS = "connectors.safetensors"
"""Of a model in memory form "spans"."""
OTHER_BACKBONE = "made with another backbone than"
"""In the warning of `warn_of_other_backbone`."""
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model", ".md")

_CARD = """---
library_name: clara-rag
{base_model}tags:
- clara
- retrieval-augmented-generation
---

# CLaRa model

Adapters on {name} that compress documents of up to {length} tokens into
{memory}, encode questions into the same space, and answer from the
memory of the documents ranked highest.

```python
from clara import Clara

model = Clara.from_pretrained("path/or/name/of/this/folder")
print(model.answer(["a question"], ["a document", "another document"])[0].text)
```
"""


def save(model: ClaraCore, folder: str | Path) -> None:
    """Write configuration, adapters, our embedding rows, tokenizer and model card.

    The backbone's own weights are written only if they were trained. Everything is safetensors
    or text.
    """
    folder = Path(folder)
    config = model.config
    if model.owns_backbone:
        trained.save(model.backbone, model.tokenizer.tokenizer, folder / trained.FOLDER)
        own = str(folder / trained.FOLDER)
        model.backbone_digest = backbone_digest(own)
        model.sampled_backbone_digest = sampled_backbone_digest(own)
        config = config.replace(backbone=trained.FOLDER)
    config = config.replace(backbone_digest=model.backbone_digest)
    folder.mkdir(parents=True, exist_ok=True)
    model.adapters.save(folder)
    for file, module in _own_weights(model).items():
        rows = {
            name: whole(value.detach()).cpu().contiguous()
            for name, value in module.state_dict().items()
        }
        save_file(rows, folder / file, metadata={"format": "pt"})
    model.tokenizer.tokenizer.save_pretrained(folder)
    local = model.owns_backbone or Path(str(config.backbone)).is_absolute()
    card = _CARD.format(
        base_model="" if local else f"base_model: {config.backbone}\n",
        name=Path(str(config.backbone)).name if local else config.backbone,
        length=config.document_length,
        memory=described_memory(config),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    config.save(folder / CONFIG)


def take_part(model: ClaraCore) -> None:
    """What the other processes do while one saves a model that is spread over all of them."""
    if model.owns_backbone:
        for value in trained.plain_state(model.backbone).values():
            whole(value)
    for name in ADAPTERS:
        for value in model.adapters.state(name).values():
            whole(value)
    for module in _own_weights(model).values():
        for value in module.state_dict().values():
            whole(value)


def _own_weights(model: ClaraCore) -> dict[str, nn.Module]:
    """Our own modules by the file that holds their weights."""
    modules: dict[str, nn.Module] = {MEMORY_TOKENS: model.memory_tokens}
    if model.connectors:
        modules[CONNECTORS] = model.connectors
    return modules


def described_memory(config: ClaraConfig) -> str:
    """What documents become, in words."""
    if config.memory_tokens is not None:
        return f"{config.memory_tokens} memory tokens (nominal {config.compression_rate}x)"
    return f"one memory token for every {config.compression_rate} tokens"


def locate(name_or_path: str | Path) -> Path:
    """Folder of a saved model: a local one, one that comes with this project, or the hub's.

    Raises:
        SavedModelError: no such folder, or one that is not a CLaRa model.
        HubError: it cannot be got from the hub, or is no CLaRa model there.
    """
    folder = Path(os.path.expanduser(name_or_path))
    if not folder.is_dir():
        name = str(name_or_path)
        found = shipped.find(name)
        if found is not None:
            return found
        path = folder.is_absolute() or name.startswith(".") or name.count("/") != 1
        if folder.exists() or (path and name not in shipped.NAMES):
            raise SavedModelError(shipped.missing(name))
        try:
            folder = hub.snapshot(name, choose=_needed_files, complete=_is_complete)
        except hub.HubError as error:
            looked = f"; {shipped.missing(name)}" if name in shipped.NAMES else ""
            raise hub.HubError(f"model {error}{looked}") from error
    if not (folder / CONFIG).is_file():
        raise SavedModelError(f"{folder} is not a CLaRa model: it holds no {CONFIG}")
    return folder


def _needed_files(files: Sequence[str], download: Callable[[str], Path]) -> list[str]:
    """The files on the hub that a model folder has; nothing that could be a pickle."""
    if CONFIG not in files or MEMORY_TOKENS not in files:
        remedy = ""
        if any(Path(file).name == "adapters.pth" for file in files):
            remedy = ": it holds a checkpoint of the reference implementation; see 'clara convert'"
        raise hub.HubError(f"on the hub is not a CLaRa model{remedy}")
    return [file for file in files if Path(file).suffix in _SUFFIXES]


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the hub's cache holds a whole model."""
    files = [folder / MEMORY_TOKENS, *adapter_files(folder)]
    try:
        config = ClaraConfig.load(folder / CONFIG)
        if config.memory_form == "spans":
            files.append(folder / CONNECTORS)
        if config.backbone == trained.FOLDER:
            files += weight_files(folder / trained.FOLDER)
    except (OSError, ValueError):
        return False
    return all(file.is_file() for file in files)


def read_config(folder: Path, expected: Mapping[str, Any]) -> ClaraConfig:
    """The saved settings, with those that only say how to run the model replaced by `expected`.

    Raises:
        SavedModelError: `expected` contradicts a setting that the checkpoint was made with.
    """
    config = ClaraConfig.load(folder / CONFIG)
    wanted = config.replace(**expected)
    for name in config.model_fields:
        if getattr(wanted, name) != getattr(config, name):
            raise SavedModelError(
                f"{name}={getattr(wanted, name)!r} contradicts the checkpoint {folder}, which has "
                f"{name}={getattr(config, name)!r}"
            )
    return wanted


def backbone_of(config: ClaraConfig, folder: Path) -> str:
    """Where the backbone lies that a saved model was made with.

    Args:
        config: the model's settings.
        folder: of the model.

    Raises:
        SavedModelError: the settings name no backbone.
    """
    if config.backbone is None:
        raise SavedModelError(f"{folder}: the configuration names no backbone; pass backbone=")
    if config.backbone == trained.FOLDER:
        return str((folder / trained.FOLDER).resolve())
    return exact_copy(config.backbone, config.backbone_digest)


def warn_of_other_backbone(folder: Path, saved: ClaraConfig, loaded: ClaraConfig) -> None:
    """Warn where a model was made with a backbone of other weights than it is loaded on."""
    made, found = saved.backbone_digest, loaded.backbone_digest
    if made is None or found is None or made == found:
        return
    warnings.warn(
        f"{folder}: {OTHER_BACKBONE} {loaded.backbone!r}, whose weights have the "
        f"digest {found[:12]}, not {made[:12]}: answers may be worse than measured, and an index "
        f"made on one of both cannot be read on the other{copy_hint(str(loaded.backbone))}",
        stacklevel=3,
    )


def load_weights(model: ClaraCore, folder: Path) -> None:
    """Fill a model from a folder, with its backbone where that belongs to it.

    Raises:
        SavedModelError: an adapter or a row is missing or does not fit; names it.
    """
    model.adapters.load(folder)
    for file, module in _own_weights(model).items():
        _load_own(module, folder / file)
    if model.owns_backbone:
        trained.load(model.backbone, folder / trained.FOLDER)


def _load_own(module: nn.Module, file: Path) -> None:
    """Fill one of our own modules.

    Raises:
        SavedModelError: the file cannot be read, or holds something else.
    """
    try:
        rows = load_file(file)
    except (OSError, SafetensorError) as error:
        what = file.stem.replace("_", " ")
        raise SavedModelError(f"{file}: cannot read the {what}: {error}") from error
    own = module.state_dict()
    if own.keys() != rows.keys():
        raise SavedModelError(f"{file}: holds {sorted(rows)}, expected {sorted(own)}")
    for name, value in own.items():
        if value.shape != rows[name].shape:
            raise SavedModelError(
                f"{file}: {name} is {list(rows[name].shape)}, expected {list(value.shape)}"
            )
    for name, value in own.items():
        fill(value, rows[name])


def push(model: ClaraCore, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a saved model to the hub; returns the address of the commit."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        save(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
