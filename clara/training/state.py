"""Optimizer, schedule and random state of a run in safetensors and JSON: nothing is unpickled."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clara.errors import ClaraError

_OPTIMIZER = "optimizer.safetensors"
_SCHEDULE = "schedule.json"


class CheckpointError(ClaraError, ValueError):
    """A checkpoint of a run cannot be resumed from; the message names the file."""


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any, scaler: Any = None) -> None:
    """Write the state of the optimizer, the schedule and the scaler.

    Raises:
        CheckpointError: the optimizer keeps something that is neither a tensor nor a plain value.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            key = f"{parameter}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                plain[key] = value
    save_file(tensors, folder / _OPTIMIZER)
    written = {
        "optimizer": plain,
        "groups": state["param_groups"],
        "scheduler": scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    try:
        text = json.dumps(written)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of {type(optimizer).__name__} has {error}") from error
    (folder / _SCHEDULE).write_text(text, encoding="utf-8")


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any, scaler: Any = None) -> None:
    """Read what `save_optimizer` wrote.

    Raises:
        CheckpointError: a file is missing or unreadable, or of another optimizer or other
            parameters.
    """
    try:
        tensors = load_file(folder / _OPTIMIZER)
        written = _read(folder / _SCHEDULE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot read the optimizer: {error}") from error
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *written["optimizer"].items()]:
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    _check_kind(folder, written["groups"], optimizer)
    try:
        optimizer.load_state_dict({"state": state, "param_groups": written["groups"]})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: the optimizer does not fit the model: {error}") from error
    scheduler.load_state_dict(written["scheduler"])
    if scaler is not None and written["scaler"] is not None:
        scaler.load_state_dict(written["scaler"])


def _check_kind(folder: Path, groups: Sequence[Mapping[str, Any]], optimizer: Any) -> None:
    """Refuse the state of another kind of optimizer, which would fail in the first step.

    A kind has settings that the other has not. A later torch may add one to a kind.
    """
    saved, given = (set().union(*each) for each in (groups, optimizer.param_groups))
    saved.discard("initial_lr")  # of the schedule
    if saved - given and given - saved:
        kind = type(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
        raise CheckpointError(
            f"{folder}: holds the state of another optimizer than {kind.__name__}: "
            f"one with {', '.join(sorted(saved - given))}"
        )


def save_random_state(folder: Path, process: int) -> None:
    """Write the state of Python's, NumPy's and torch's generators of this process."""
    version, internal, gauss = random.getstate()
    # The global generator, which libraries draw from.
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    plain = {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
    }
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / f"random_{process}.safetensors")
    (folder / f"random_{process}.json").write_text(json.dumps(plain), encoding="utf-8")


def load_random_state(folder: Path, process: int) -> None:
    """Read what `save_random_state` wrote.

    Raises:
        CheckpointError: there is none for this process: another number of them was saved.
    """
    try:
        plain = _read(folder / f"random_{process}.json")
        tensors = load_file(folder / f"random_{process}.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: no random state of process {process}: the run had other processes"
        ) from error
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(plain["numpy"])  # noqa: NPY002
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: is not a JSON object")
    return values
