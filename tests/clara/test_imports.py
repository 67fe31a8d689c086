"""What an import and a first use cost, and what they print."""

import inspect
import json
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.utils import logging

import clara
from clara import Clara, ClaraConfig
from clara.backbone import lora_library
from clara.terminal.loading_bars import bars_on_a_terminal_only

from .random_adapters import draw_adapters

BASE = Path(__file__).parents[1] / "data" / "reference" / "base"
HEAVY = (
    "bitsandbytes",
    "peft",
    "transformers.modeling_utils",
    "torch._dynamo",
    "accelerate",
    "pyarrow",
    "lance",
    "pydantic",
    "datasets",
)
TELL = f"""
import json, sys
def tell():
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), flush=True)
tell()
"""
# Models of three kinds, one after another in one process: each start of one takes seconds. All that
# is printed before the quantized ones stands before the mark.
MARK = "quantized from here"
MODELS = f"""
from importlib.util import find_spec
from clara import Clara, ClaraConfig
config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, dtype="float32")
def answers(model, documents):
    return [each.text for each in model.answer(["Where?"], documents, max_new_tokens=8)]
def memory_of(model):
    return model.compress(["The river runs north."]).memory
memory = memory_of(Clara.from_backbone(sys.argv[1], config))
tell()
memory_of(Clara.from_backbone(sys.argv[2], config))
tell()
saved = Clara.from_pretrained(sys.argv[3], device="cpu")
documents = saved.compress(["The river runs north."])
print(json.dumps([documents.memory.tolist(), answers(saved, documents)]))
tell()
print({MARK!r}, file=sys.stderr, flush=True)
if find_spec("bitsandbytes") is None:
    sys.exit()
import peft.helpers
assert "bitsandbytes" not in sys.modules
for quantization in ("nf4", "int8"):
    quantized = Clara.from_backbone(sys.argv[1], config.replace(quantization=quantization))
    (layer,) = {{type(each).__name__ for each in quantized.adapters._layers}}
    print(layer, bool((memory_of(quantized) - memory).any()))
import bitsandbytes
assert peft.helpers.bnb.functional is bitsandbytes.functional
again = Clara.from_backbone(sys.argv[1], config)
print(*{{type(each).__name__ for each in again.adapters._layers}})
print(bool((memory_of(again) - memory).any()))
"""


def script(code, *arguments):
    """Run a user's script, which must succeed; what it printed on both streams."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def processor_seconds(code):
    """Processor time of a script, which other programs lengthen less than its duration, and output.

    What a process waits for is no part of it.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output, errors = script(code)
    assert errors == ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


def test_an_import_loads_nothing_heavy_and_takes_little_longer_than_that_of_torch():
    """Under 3 s where torch takes 2 s; a busy machine is slow with both, and tries once more."""
    code = "from clara import *" + TELL
    seconds, output = processor_seconds(code)
    assert json.loads(output) == []
    if seconds >= 3.0:
        torch = min(processor_seconds("import torch")[0] for _ in range(2))
        assert min(seconds, processor_seconds(code)[0]) < max(3.0, 2 * torch)


@pytest.fixture(scope="module")
def loaded(tiny_backbone, tmp_path_factory):
    """The lines that MODELS prints, what it prints as errors, and what the saved model computes."""
    other = tmp_path_factory.mktemp("conv1d")
    size = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 600}
    config = GPT2Config(**size, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(other)
    config = ClaraConfig(document_length=64, lora_rank=4, quantization="int8")
    model = draw_adapters(Clara.from_backbone(tiny_backbone("llama"), config, device="cpu"), seed=1)
    saved = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(saved)
    documents = model.compress(["The river runs north."])
    (answer,) = model.answer(["Where?"], documents, max_new_tokens=8)
    output, errors = script(TELL + MODELS, tiny_backbone("llama"), other, saved)
    return output.splitlines(), errors, [documents.memory.tolist(), [answer.text]]


def test_a_backbone_that_is_not_quantized_needs_no_bitsandbytes(loaded):
    """And nothing is printed: no loading bar, no message of a library."""
    (_, first, *_), errors, _ = loaded
    assert "bitsandbytes" not in json.loads(first)
    assert "peft" in json.loads(first)
    assert errors.startswith(f"{MARK}\n")


def test_layers_of_other_kinds_need_no_bitsandbytes(loaded):
    """GPT-2 has Conv1D layers, which go another way through peft."""
    (_, _, second, *_), *_ = loaded
    assert "bitsandbytes" not in json.loads(second)


def test_weights_in_8_bits_are_the_same_in_another_process(loaded):
    """And need no bitsandbytes on a CPU."""
    (_, _, _, computed, after, *_), _, expected = loaded
    assert json.loads(computed) == expected
    assert "bitsandbytes" not in json.loads(after)


def test_quantized_and_plain_models_in_one_process(loaded):
    pytest.importorskip("bitsandbytes")
    (_, _, _, _, _, *quantized), *_ = loaded
    assert quantized == [
        "Linear4bit True",
        "AdaptedInt8Linear True",
        "MergingLinear",
        "False",
    ]


def test_training_has_transformers_trainer_from_one_place():
    """Which imports peft first, so that bitsandbytes waits. Runs in processes see that it does."""
    folder = Path(clara.__file__).parent / "training"
    found = {
        file.name
        for file in folder.glob("*.py")
        if re.search(r"^(from|import) transformers", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == {"trainer_library.py"}


# The module that is awaited


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A package that notes its import."""
    folder = tmp_path / "awaited_module"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import builtins\nbuiltins.awaited_imports += 1\nvalue = 7\n"
    )
    (folder / "part.py").write_text("import awaited_module\nvalue = awaited_module.value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.awaited_imports", 0, raising=False)
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def imports():
    return sys.modules["builtins"].awaited_imports


def test_an_awaited_module_is_imported_at_its_first_use(module):
    with lora_library._awaiting(module):
        user = types.ModuleType("user")
        exec(f"import {module} as named", vars(user))
        assert lora_library.importlib.util.find_spec(module) is not None
    assert module not in sys.modules
    assert imports() == 0
    assert user.named.value == 7
    assert imports() == 1
    assert sys.modules[module].value == 7
    with pytest.raises(AttributeError, match="absent"):
        _ = user.named.absent
    assert imports() == 1


def test_who_looks_through_all_modules_imports_none_that_is_awaited(module):
    """As torch does through `inspect` when an operator is registered."""
    with lora_library._awaiting(module):
        stand_in = __import__(module)
        assert Path(inspect.getfile(stand_in)).parent.name == module
        assert inspect.getmodule(compile("", "of no module", "exec")) is None
        assert sys.modules[module] is stand_in
    assert imports() == 0


def test_a_part_of_an_awaited_module_imports_all_of_it(module):
    with lora_library._awaiting(module):
        part = __import__(f"{module}.part", fromlist=["value"])
        assert part.value == 8
    assert imports() == 1
    assert sys.modules[module].value == 7


def test_a_module_that_is_there_or_not_installed_is_left_alone(module):
    real = __import__(module)
    with lora_library._awaiting(module), lora_library._awaiting("not_installed_anywhere"):
        assert sys.modules[module] is real
        with pytest.raises(ModuleNotFoundError):
            __import__("not_installed_anywhere")
    assert sys.modules[module] is real


# Loading bars


@pytest.mark.parametrize("shown", [True, False])
def test_bars_come_back(shown):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        with bars_on_a_terminal_only():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_bars_stay_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    before = logging.is_progress_bar_enabled()
    with bars_on_a_terminal_only():
        assert logging.is_progress_bar_enabled() is before


def test_a_closed_standard_error_shows_no_bars(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with bars_on_a_terminal_only():
        assert not logging.is_progress_bar_enabled()
