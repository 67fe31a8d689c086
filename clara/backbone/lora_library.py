"""The names of peft that are used here, imported without bitsandbytes.

Importing peft imports bitsandbytes where that is installed: seconds, and messages about kernels it
cannot find, in programs that quantize nothing. Here bitsandbytes waits for its first use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

_BITSANDBYTES = "bitsandbytes"


class _Awaited(ModuleType):
    """A stand-in for a module, which is imported when an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _awaiting(name: str) -> Iterator[None]:
    """Within the block, `import name` is put off to the first use of what it gives."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:  # not installed, or imported already
        yield
        return
    stand_in = _Awaited(name)
    stand_in.__spec__ = spec  # by which libraries find out whether it is installed
    # `inspect` asks every module for its file, and torch asks `inspect`: that is no use of it.
    stand_in.__file__ = spec.origin
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


with _awaiting(_BITSANDBYTES):
    import peft.tuners.lora.model
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = [
    "BaseTunerLayer",
    "Linear",
    "LoraConfig",
    "LoraLayer",
    "inject_adapter_in_model",
    "layers_are_plain",
]

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def layers_are_plain() -> Iterator[None]:
    """Within the block, in this thread, peft looks for no layers that bitsandbytes quantized.

    It imports bitsandbytes before it looks at a layer, even where none is quantized.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _unless_plain(available: Callable[[], bool]) -> Callable[[], bool]:
    def unless_plain() -> bool:
        return not _plain.get() and available()

    return unless_plain


# The questions that peft asks before it imports them; a release that asks others loses nothing.
for _name in ("is_bnb_available", "is_bnb_4bit_available"):
    if hasattr(peft.tuners.lora.model, _name):
        _asked = getattr(peft.tuners.lora.model, _name)
        setattr(peft.tuners.lora.model, _name, _unless_plain(_asked))
