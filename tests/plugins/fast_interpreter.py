"""A pytest plugin that makes Triton's interpreter faster, without a change to any result.

Most of the interpreter's time goes into two things that no kernel needs:

- Triton prepares `triton.language` again in every call of one function by another: 1 ms of work.
- A tracer, such as that of coverage, sees each line of the interpreter. Kernels are left out of
  coverage (`@triton.jit` in pyproject.toml), so it records nothing.

The plugin replaces two private functions of Triton. It does so only while they are, to the letter,
those that it was written for; with another release of Triton the interpreter is slow and right.
`test_fast_interpreter.py` fails then and says what to do.

To use it, name it in a conftest.py: `pytest_plugins = ["tests.plugins.fast_interpreter"]`.
`pytest -p no:tests.plugins.fast_interpreter` runs without it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from typing import Any

# The release that the digests are of.
TRITON = "3.7.1"
# What is replaced or relied on, in triton.runtime.interpreter: the parameters and the source.
DIGESTS = {
    "_LangPatchScope": "502cf0d34ae9058b",
    "_patch_lang": "319ebf4ed47fb50f",
    "GridExecutor.__call__": "69ddd9f2d66590ad",
    "InterpretedFunction.__call__": "6bed08acdf1db1dc",
}


def interpreter() -> Any:
    return importlib.import_module("triton.runtime.interpreter")


def digest(name: str) -> str:
    """Of a function's or a class's parameters and source; "missing" where there is no such name."""
    found = interpreter()
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        return "missing"
    text = f"{inspect.signature(found)}\n{inspect.getsource(found)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed() -> list[str]:
    """Names whose digest is another than that recorded."""
    return [name for name, expected in DIGESTS.items() if digest(name) != expected]


class FastInterpreter:
    """The replacements, from `install` until `restore`."""

    def __init__(self) -> None:
        self.module = interpreter()
        self.prepare = self.module._patch_lang
        self.execute = self.module.GridExecutor.__call__
        self.prepared: set[int] = set()  # in this launch, by the globals of the function

    def install(self) -> None:
        def execute_untraced(executor: Any, *arguments: Any, **options: Any) -> Any:
            tracer = sys.gettrace()
            self.prepared.clear()
            sys.settrace(None)
            try:
                return self.execute(executor, *arguments, **options)
            finally:
                sys.settrace(tracer)

        self.module._patch_lang = self.prepare_once
        self.module.GridExecutor.__call__ = execute_untraced

    def restore(self) -> None:
        self.module._patch_lang = self.prepare
        self.module.GridExecutor.__call__ = self.execute

    def prepare_once(self, function: Any) -> Any:
        """Prepare `triton.language` as a function sees it, unless this launch has done that."""
        key = id(function.__globals__)
        if key in self.prepared:
            return self.module._LangPatchScope()
        self.prepared.add(key)
        return self.prepare(function)


installed: list[FastInterpreter] = []  # for the session, by `pytest_configure`


def pytest_configure(config: Any) -> None:
    if os.environ.get("TRITON_INTERPRET") and not changed():
        installed.append(FastInterpreter())
        installed[-1].install()


def pytest_unconfigure(config: Any) -> None:
    while installed:
        installed.pop().restore()
