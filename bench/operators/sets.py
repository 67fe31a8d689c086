"""How many sets of inputs a case takes, so that none is found in a cache."""

from __future__ import annotations

import math
from pathlib import Path

from bench.environment import l2_bytes

from .case import Case, Setting

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CACHE_BYTES = 32 << 20  # where nothing says how large the last one is
_MOST_BYTES = 256 << 20  # of all sets of inputs on a CPU, of which there are two at least
_MOST_SETS = {"cpu": 64, "cuda": 256}


def set_count(case: Case, setting: Setting) -> int:
    """Sets of inputs that together exceed the last cache."""
    if setting.tiny:
        return 2
    device = setting.device
    if device.type == "cuda":
        fewest, together = 1, 4 * l2_bytes(device)
    else:
        fewest, together = 2, min(2 * last_cache_bytes(), _MOST_BYTES)
    return max(fewest, min(_MOST_SETS[device.type], math.ceil(together / case.bytes)))


def last_cache_bytes(caches: Path = _CACHES) -> int:
    """The largest of the CPU's caches; Linux says how large they are."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        texts = [path.read_text().strip() for path in caches.glob("index*/size")]
        return max(int(text[:-1]) * units[text[-1]] for text in texts)
    except (OSError, ValueError, KeyError, IndexError):
        return _CACHE_BYTES
