"""Models and indexes named on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clara.cli.aborts import explain_aborts
from clara.cli.errors import user_errors
from clara.cli.options import Quantization
from clara.cli.paths import check_device, check_index, check_model, expanded
from clara.terminal.printing import quiet_libraries, say

if TYPE_CHECKING:
    from clara.index import MemoryIndex
    from clara.model.clara import Clara


def load_model(
    name: str,
    *,
    backbone: str | None = None,
    device: str | None = None,
    quantization: Quantization | None = None,
    dtype: str | None = None,
) -> Clara:
    """A saved model.

    Args:
        dtype: to load it in instead of the one that its settings name.

    Raises:
        CommandError: it cannot be loaded, or the device is not there.
    """
    check_model(name, backbone=backbone)
    check_device(device)
    quiet_libraries()
    from clara.model.clara import Clara

    settings: dict[str, Any] = {}
    if quantization is not None:
        settings["quantization"] = quantization.value
    if dtype is not None:
        settings["dtype"] = dtype
    with user_errors(), other_backbone_told():
        return Clara.from_pretrained(name, backbone=backbone, device=device, **settings)


@contextmanager
def other_backbone_told() -> Iterator[None]:
    """Say on standard error if a model is loaded on another backbone than its own."""
    from clara.model.checkpoint import OTHER_BACKBONE

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the command hides those of libraries
        yield
    for warning in caught:
        if OTHER_BACKBONE in str(warning.message):
            say(str(warning.message))


def load_both(
    index: str,
    model: str,
    backbone: str | None,
    device: str | None,
    quantization: Quantization | None,
    views: bool | str = True,
) -> tuple[MemoryIndex, Clara]:
    """An index and a saved model, after both were looked for.

    Args:
        views: see `MemoryIndex.open`.

    Raises:
        CommandError, MemoryIndexError: one of them cannot be loaded, or the device is not there.
    """
    check_index(index)
    check_model(model, backbone=backbone)
    check_device(device)
    opened = open_index(index, views)
    return opened, load_model(model, backbone=backbone, device=device, quantization=quantization)


def open_index(path: str, views: bool | str = True) -> MemoryIndex:
    """An index on disk.

    Args:
        views: see `MemoryIndex.open`.

    Raises:
        CommandError, MemoryIndexError: there is none, or it cannot be read.
    """
    check_index(path)
    from clara.index import MemoryIndex

    explain_aborts(expanded(path))
    return MemoryIndex.open(path, views=views)
