"""Keeps the tracer of coverage out of the long work of other packages.

Until Python 3.14 coverage traces, and a tracer makes all Python code slower, whoever wrote it. What
it sees of other packages is thrown away. To import them, to load a tiny model and to add LoRA to it
are many short steps in Python, a third slower with a tracer. Here they run without it, and tracing
goes on when they return. Without coverage nothing is changed.

A function belongs in `UNTRACED` only if nothing that it calls has to be measured.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

# What most tests import.
IMPORTED = ("transformers", "peft", "hypothesis", "torch._dynamo")
# Functions and methods by their module.
UNTRACED = {
    "matplotlib.figure": ("Figure.savefig",),
    "peft.tuners.tuners_utils": ("BaseTuner.inject_adapter",),
    "torch.library": ("opcheck",),
    "transformers.modeling_utils": (
        "PreTrainedModel.from_pretrained",
        "PreTrainedModel.save_pretrained",
    ),
    "transformers.models.auto.auto_factory": ("_BaseAutoModelClass.from_config",),
    "transformers.models.auto.configuration_auto": ("AutoConfig.from_pretrained",),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer.from_pretrained",),
}


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does what `function` does, without the tracer."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        # Off and on in one frame: coverage pairs calls with returns, and has to see both or none.
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)

    return run


import_module = untraced(importlib.import_module)


def place(module: str, path: str) -> tuple[Any, str]:
    """The module or class that holds what `path` names, and its name there."""
    owner = import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def install() -> None:
    """Import packages and replace functions for the rest of this process."""
    if sys.gettrace() is None:
        return
    for name in IMPORTED:
        import_module(name)
    for module, paths in UNTRACED.items():
        for path in paths:
            owner, name = place(module, path)
            found = vars(owner)[name]
            bound = isinstance(found, classmethod)
            setattr(
                owner, name, classmethod(untraced(found.__func__)) if bound else untraced(found)
            )
