"""What the tests of the benchmarks share."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

BASE = Path(__file__).parents[1] / "data" / "reference" / "base"


class BenchmarkStandIn:
    """Calls what the fixture of pytest-benchmark would."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, function, setup, rounds):
        for _ in range(rounds):
            setup()
            function()


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch computes on one thread: what is small is faster so, whatever runs beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stand_in():
    return BenchmarkStandIn()


class Clock:
    """Time that passes only where a test says so: the machine's load changes nothing."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock of `bench.turns`, set forward by its `sleep`."""
    clock = Clock()
    monkeypatch.setattr("bench.turns.time", clock)
    return clock


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The reference's tiny backbone in float32, with its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    for file in BASE.iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).save_pretrained(folder)
    return folder
