"""Small models for tests that change them."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

from clara import Clara, ClaraConfig


def new_model(folder: Path, config: ClaraConfig, device: str | None = None) -> Clara:
    """What `Clara.from_backbone` makes of a folder that nobody changes.

    It is a copy, which takes a third of the time. `test_copying.py` shows that a copy shares no
    weights and computes the same.
    """
    return copy.deepcopy(_first(folder, config, device))


@lru_cache(maxsize=4)  # more would lengthen every search for garbage
def _first(folder: Path, config: ClaraConfig, device: str | None) -> Clara:
    return Clara.from_backbone(folder, config, device=device)
