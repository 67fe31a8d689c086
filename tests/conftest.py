"""How tests run side by side: threads, order, and Triton's interpreter where there is no GPU.

The latter has to be said before Triton is imported.
"""

import importlib
import os
import sys

import torch


def interpret_faster():
    """Triton's interpreter without the work that changes no result: most of its time.

    It prepares triton.language again, 1 ms of work, in every call of one function by another, and
    a tracer that sees each of its lines halves its speed for kernels that coverage leaves out.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):  # another release: slow, and right
        return
    prepare, execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared = set()  # in this launch, by the module of the function

    def prepare_once(function):
        module = id(function.__globals__)
        if module in prepared:
            return interpreter._LangPatchScope()
        prepared.add(module)
        return prepare(function)

    def execute_untraced(self, *arguments, **options):
        tracer = sys.gettrace()
        prepared.clear()
        sys.settrace(None)
        try:
            return execute(self, *arguments, **options)
        finally:
            sys.settrace(tracer)

    interpreter._patch_lang = prepare_once
    interpreter.GridExecutor.__call__ = execute_untraced


# Much work in few slow tests: processes, compilers. Two workers that begin with them end together.
LONG = (
    "test_readme.py",
    "test_cuda_compiles.py",
    "test_inspect.py",
    "test_packaging.py",
    "test_resuming.py",
    "test_sanitize.py",
    "test_examples_factbook.py",
    "test_cli_compress.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


# Also for the processes that tests start: with the cores taken, a second thread of OpenMP spins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    interpret_faster()
