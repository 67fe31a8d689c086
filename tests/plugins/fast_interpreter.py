"""A pytest plugin that makes Triton's interpreter faster, without a change to any result.

Most of the interpreter's time goes into four things that no kernel needs:

- Triton prepares `triton.language` in every launch and again in every call of one function by
  another: 1 ms of work, the same each time.
- It works out the shape and the number of elements of every block anew, though there are few kinds.
- It computes each sum, difference and product of integers once more in int64, compares that with
  the limits of the type, and hands the result to an assertion that the interpreter never makes.
- A tracer, such as that of coverage, sees each line of the interpreter. Kernels are left out of
  coverage (`@triton.jit` in pyproject.toml), so it records nothing.

The plugin replaces private functions of Triton and an option. It does so only while they are, to
the letter, those that it was written for; with another release of Triton the interpreter is slow
and right.
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
from dataclasses import replace
from typing import Any

# The release that the digests are of.
TRITON = "3.7.1"
# What is replaced or relied on, as triton.runtime.interpreter names it: parameters and source.
DIGESTS = {
    "_LangPatchScope": "502cf0d34ae9058b",
    "_get_np_dtype": "34a9c25e521ab0dc",
    "_patch_lang": "319ebf4ed47fb50f",
    "GridExecutor.__call__": "69ddd9f2d66590ad",
    "InterpretedFunction.__call__": "6bed08acdf1db1dc",
    "InterpreterOptions": "7b4cc2f93de25b78",
    "TritonSemantic.binary_op_sanitize_overflow_impl": "6b3c8aaed82ad9c8",
    "TritonSemantic.device_assert": "963e1175c04667ab",
    "tl.block_type.__init__": "7762e7cd4f30961f",
    "tl.tensor.__init__": "5808c9a6678d008b",
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


def remembered(np_dtype: Any) -> Any:
    """NumPy's dtype for one of Triton, by its name."""
    known: dict[str, Any] = {}

    def look_up(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = np_dtype(kind)
        return known[kind.name]

    return look_up


def blocks(make: Any) -> Any:
    """`block_type.__init__` that works out the shape, the size and the name of a kind once."""
    known: dict[tuple[Any, ...], tuple[Any, Any, str]] = {}

    def init(block: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape)
        if key in known:
            block.element_ty = element_ty
            block.shape, block.numel, block.name = known[key]
        else:
            make(block, element_ty, shape)
            known[key] = block.shape, block.numel, block.name

    return init


def tensors(make: Any) -> Any:
    """`tensor.__init__` that works out the shape and the number of elements of a kind once."""
    known: dict[str, tuple[Any, Any]] = {}

    def init(tensor: Any, handle: Any, type: Any) -> None:
        key = type.name if type.is_block() else ""
        if key in known:
            tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
            tensor.shape, tensor.numel = known[key]
        else:
            make(tensor, handle, type)
            known[key] = tensor.shape, tensor.numel

    return init


class FastInterpreter:
    """The replacements, from `install` until `restore`."""

    def __init__(self) -> None:
        self.module = interpreter()
        self.prepare = self.module._patch_lang
        self.execute = self.module.GridExecutor.__call__
        self.options = self.module.interpreter_builder.options
        self.np_dtype = self.module._get_np_dtype
        self.make_block = self.module.tl.block_type.__init__
        self.make_tensor = self.module.tl.tensor.__init__
        # Globals of functions that were prepared in this launch, in their order.
        self.prepared: list[int] = []
        # What was set in preparation, by the last of `prepared` and those before it.
        self.changes: dict[tuple[int, ...], list[tuple[Any, str, Any]]] = {}
        self.kept: list[Any] = []  # functions, so that their globals keep their identity

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
        self.module._get_np_dtype = remembered(self.np_dtype)
        self.module.tl.block_type.__init__ = blocks(self.make_block)
        self.module.tl.tensor.__init__ = tensors(self.make_tensor)
        self.module.GridExecutor.__call__ = execute_untraced
        # An assertion of an overflow is made only where `debug` is set, which it never is here.
        self.module.interpreter_builder.options = replace(self.options, sanitize_overflow=False)

    def restore(self) -> None:
        self.module._patch_lang = self.prepare
        self.module._get_np_dtype = self.np_dtype
        self.module.tl.block_type.__init__ = self.make_block
        self.module.tl.tensor.__init__ = self.make_tensor
        self.module.GridExecutor.__call__ = self.execute
        self.module.interpreter_builder.options = self.options

    def prepare_once(self, function: Any) -> Any:
        """Prepare `triton.language` as a function sees it, unless this launch has done that."""
        scope = self.module._LangPatchScope()
        key = id(function.__globals__)
        if key in self.prepared:
            return scope
        self.prepared.append(key)
        path = tuple(self.prepared)
        if path in self.changes:
            for change in self.changes[path]:
                scope.set_attr(*change)
            return scope
        scope = self.prepare(function)
        self.kept.append(function)
        names = dict.fromkeys((each, name) for each, name, _ in scope._changes)
        self.changes[path] = [(each, name, getattr(each, name)) for each, name in names]
        return scope


installed: list[FastInterpreter] = []  # for the session, by `pytest_configure`


def pytest_configure(config: Any) -> None:
    if os.environ.get("TRITON_INTERPRET") and not changed():
        installed.append(FastInterpreter())
        installed[-1].install()


def pytest_unconfigure(config: Any) -> None:
    while installed:
        installed.pop().restore()
