"""How tests run: threads, order, garbage, and Triton's interpreter where there is no GPU.

The latter has to be said before Triton is imported.
"""

import gc
import importlib
import os

import pytest

from tests.plugins import probes

# Before anything imports what is measured.
MEASURING = probes.Measuring() if os.environ.get(probes.SWITCH) else None

# Until tests have been collected: what is imported stays, and looking through it for garbage again
# and again took half of that time.
gc.disable()

torch = importlib.import_module("torch")

# Much work in few slow tests: processes, compilers. Two workers that begin with them end together.
LONG = (
    "test_readme.py",
    "test_cuda_compiles.py",
    "test_inspect.py",
    "test_packaging.py",
    "test_resuming.py",
    "test_two_processes.py",
    "test_sanitize.py",
    "test_crash.py",
    "test_examples_factbook.py",
    "test_cli_compress.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_configure(config):
    if MEASURING is not None:
        config.pluginmanager.register(MEASURING)


def pytest_collection_finish():
    """Leave what has been imported out of every later search for garbage.

    That is a million objects, which take most of a second each time, and every run of a trainer
    searches for garbage when it ends.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.enable()


# Also for the processes that tests start: with the cores taken, a second thread of OpenMP spins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Tests compare with float32, whatever this processor has; those about bfloat16 ask for it.
os.environ.setdefault("CLARA_CPU_DTYPE", "float32")

pytest_plugins = ["tests.plugins.warm", "tests.plugins.slow_files"]
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    pytest_plugins += ["tests.plugins.fast_interpreter"]
