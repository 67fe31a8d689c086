"""Models and indexes named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clara.cli.errors import CommandError, user_errors
from clara.cli.options import Quantization
from clara.cli.output import quiet_libraries

if TYPE_CHECKING:
    from clara.index import MemoryIndex
    from clara.model import Clara


def load_model(
    name: str,
    *,
    backbone: str | None = None,
    device: str | None = None,
    quantization: Quantization | None = None,
) -> Clara:
    """A saved model.

    Raises:
        CommandError: it cannot be loaded, or the device is not there.
    """
    quiet_libraries()
    from clara.model import Clara

    check_device(device)
    settings: dict[str, Any] = {}
    if quantization is not None:
        settings["quantization"] = quantization.value
    with user_errors():
        return Clara.from_pretrained(name, backbone=backbone, device=device, **settings)


def open_index(path: str) -> MemoryIndex:
    from clara.index import MemoryIndex

    return MemoryIndex.open(path)


def check_device(device: str | None) -> None:
    """Refuse a CUDA device that is not there."""
    if device is None or device == "cpu":
        return
    import torch

    if torch.version.cuda is None:
        raise CommandError(f"device {device!r}: this PyTorch ({torch.__version__}) is CPU-only")
    count = torch.cuda.device_count()
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise CommandError(f"device {device!r} is not there: {count} CUDA devices are visible")
