"""Keeps the tracer of coverage out of the long work of other packages.

Until Python 3.14 coverage traces, and a tracer makes all Python code slower, whoever wrote it. What
it sees of other packages is thrown away. To import them, to load a tiny model and to add LoRA to it
are many short steps in Python, a third slower with a tracer. Here they run without it, and tracing
goes on when they return. Without coverage nothing is changed.

A function belongs in `UNTRACED` only if nothing that it calls has to be measured.

Whole tests run without the tracer too: those of what is not measured (`UNMEASURED`), and most of
the many cases of one test, which take the same lines with other values. So coverage reports no line
that did not run, and at worst misses one that only such a test runs.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

# What most tests import.
IMPORTED = ("transformers", "peft", "hypothesis", "torch._dynamo")
# Functions and methods by their module.
UNTRACED = {
    "_pytest.logging": ("catching_logs.__enter__",),  # of hundreds of loggers, for each test
    "matplotlib.figure": ("Figure.savefig",),
    "peft.tuners.tuners_utils": ("BaseTuner.inject_adapter",),
    "torch.library": ("opcheck",),
    "torch.testing": ("assert_close",),
    "transformers.modeling_utils": (
        "PreTrainedModel.from_pretrained",
        "PreTrainedModel.save_pretrained",
    ),
    "transformers.models.auto.auto_factory": ("_BaseAutoModelClass.from_config",),
    "transformers.models.auto.configuration_auto": ("AutoConfig.from_pretrained",),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer.from_pretrained",),
    "transformers.tokenization_utils_base": (
        "PreTrainedTokenizerBase.apply_chat_template",
        "PreTrainedTokenizerBase.decode",
    ),
}
# Folders of tests whose subject is neither `clara` nor `clara_kernels`.
UNMEASURED = ("bench", "csrc", "plugins", "recipes", "sanitize")
# Cases of one test that are traced: the first, the last and some at equal distances between them.
CASES = 8
TESTS = Path(__file__).resolve().parents[1]


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


def measured(tests: Iterable[tuple[Path, str]]) -> set[int]:
    """Which of the tests, each a file and a name, the tracer sees; by their places in the order."""
    cases: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for place_of_test, (file, name) in enumerate(tests):
        folder = file.relative_to(TESTS).parts[0] if file.is_relative_to(TESTS) else ""
        if folder not in UNMEASURED:
            cases[file, name.partition("[")[0]].append(place_of_test)
    chosen = set()
    for places in cases.values():
        count = min(CASES, len(places))
        chosen |= {places[i * (len(places) - 1) // max(count - 1, 1)] for i in range(count)}
    return chosen


class WholeTests:
    """A plugin that keeps the tracer out of the tests that are not `measured`."""

    def __init__(self) -> None:
        self.traced: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        names = [(item.path, item.nodeid.partition("::")[2]) for item in session.items]
        self.traced = {session.items[place].nodeid for place in measured(names)}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        if item.nodeid in self.traced:
            return (yield)
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return (yield)
        finally:
            sys.settrace(tracer)
