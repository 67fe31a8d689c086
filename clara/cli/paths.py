"""Check the paths and names of the command line, before imports that take seconds.

Loading a model or an index would find the same mistakes, but later.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.errors.checks import check_characters

_CONFIG = "config.json"


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of ~; a name that is no user's stays as it is."""
    return Path(os.path.expanduser(path))


def check_model(name: str, *, backbone: str | None = None) -> None:
    """Refuse a model that is no model folder, comes not with this project, and is no id of the hub.

    Args:
        backbone: given in place of the one that the model names.

    Raises:
        CommandError: no such folder, or no model in it, or its backbone is missing.
    """
    from clara.model import shipped

    folder = expanded(name)
    if not folder.is_dir():
        found = shipped.find(name)
        if found is None:
            if folder.exists() or (_is_path(name) and name not in shipped.NAMES):
                raise CommandError(shipped.missing(name))
            check_backbone(backbone)
            return
        folder = found
    if not (folder / _CONFIG).is_file():
        raise CommandError(f"{folder} is not a CLaRa model: it holds no {_CONFIG}")
    from clara.config import ClaraConfig

    with user_errors():
        config = ClaraConfig.load(folder / _CONFIG)
    try:
        check_backbone(backbone or config.backbone)
    except CommandError as error:
        if backbone:
            raise
        raise CommandError(
            f"{error}; the model names this backbone, --backbone can name another place"
        ) from error


def default_model() -> str:
    """The model of commands where none is named: the one that comes with this project.

    Raises:
        CommandError: its weights are not there.
    """
    from clara.model import shipped

    found = shipped.find(shipped.FACTBOOK)
    if found is not None:
        return str(found)  # not the name: a folder of the current directory may have it too
    places = " or ".join(str(folder) for folder in shipped.folders())
    raise CommandError(
        f"--model is missing, and the trained weights {shipped.FACTBOOK} are not in {places}: "
        "name a model folder or an id of the hub; clara init makes an untrained one",
        BAD_USAGE,
    )


def check_backbone(name: str | None) -> None:
    """Refuse a path at which there is no language model; ids of the hub pass.

    Raises:
        CommandError: no such folder or file, or no model in it.
    """
    if name is None:
        return
    path = expanded(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise CommandError(f"backbone file {name!r} does not exist")
    elif path.is_dir():
        if not (path / _CONFIG).is_file():
            raise CommandError(f"backbone folder {name!r} holds no {_CONFIG}")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CommandError(f"backbone folder {name!r} does not exist")


def check_reference(source: str) -> None:
    """Refuse a path at which there is no checkpoint of the reference implementation.

    Raises:
        CommandError: no such folder, or one without configuration.
    """
    folder = expanded(source)
    # On the hub a checkpoint may lie in a folder of a model: owner/name/folder.
    hub = source.count("/") >= 2 and not _is_path("/".join(source.split("/")[:2]))
    local = folder.exists() or (_is_path(source) and not hub)
    if local and not (folder / _CONFIG).is_file():
        raise CommandError(f"{source} is not a reference checkpoint: it holds no {_CONFIG}")


def check_index(path: str) -> None:
    """Refuse a path at which there is no index.

    Raises:
        CommandError: nothing there, or something else.
    """
    folder = expanded(path)
    shown = os.path.realpath(folder)
    if not folder.is_dir():
        what = "is a file, not the folder of an index" if folder.exists() else "not found"
        raise CommandError(f"{shown}: {what}")
    if not (folder / "_versions").is_dir():
        raise CommandError(f"{shown}: not an index: the folder holds no Lance dataset")


def check_parent(output: str | Path) -> None:
    """Refuse an output that cannot be made where it should be.

    Raises:
        CommandError: a folder above it is a file, or may not be written to.
    """
    parent = expanded(output).absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CommandError(f"{output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CommandError(f"{output}: cannot be written: no permission in {parent}")


def check_output(path: str, resume: bool) -> None:
    """Refuse a place for an index that is taken, or that holds no index to go on with.

    Raises:
        CommandError: something is there that is not resumed, or it cannot be written to.
    """
    with user_errors():
        check_characters(os.path.realpath(expanded(path)), path)
    folder = expanded(path)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        check_parent(folder)
    elif not resume:
        raise CommandError(f"{path}: exists already; add --resume to continue that index")
    else:
        check_index(path)


def check_device(device: str | None) -> None:
    """Refuse a CUDA device that is not there.

    A PyTorch without CUDA is recognised without importing it.

    Raises:
        CommandError: PyTorch is CPU-only, or there are fewer devices.
    """
    if device is None or device == "cpu":
        return
    version, cuda = _torch_build()
    if cuda is None:
        raise CommandError(f"device {device!r}: this PyTorch ({version}) is CPU-only")
    import torch

    count = torch.cuda.device_count()
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise CommandError(f"device {device!r} is not there: {count} CUDA devices are visible")


def _torch_build() -> tuple[str, str | None]:
    """Version of PyTorch, and of the CUDA that it was built with."""
    module = sys.modules.get("torch")
    if module is not None:
        return str(module.__version__), module.version.cuda
    found = importlib.util.find_spec("torch")
    if found is not None and found.origin is not None:
        file = Path(found.origin).with_name("version.py")
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        version = re.search(r"^__version__ = ['\"](.*)['\"]$", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b[^=\n]*= (None|['\"].*['\"])$", text, re.MULTILINE)
        if version and cuda:
            return version[1], None if cuda[1] == "None" else cuda[1].strip("'\"")
    import torch

    return torch.__version__, torch.version.cuda


def _is_path(name: str) -> bool:
    """Whether a name of a model can be no id of the hub."""
    return expanded(name).is_absolute() or name.startswith(".") or name.count("/") != 1
