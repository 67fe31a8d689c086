"""The one timer: calls in turns, short ones repeated, on inputs in turns."""

import gc
import itertools

import pytest
import torch

from bench.turns import Turns, median_ratio


def test_everything_runs_once_a_round_and_every_other_round_backwards():
    seen = []
    turns = Turns({name: lambda name=name: seen.append(name) for name in "abc"}).run(3)
    assert "".join(seen) == "abccbaabc"
    assert all(len(seconds) == 3 for seconds in turns.seconds.values())


def test_ratios_are_of_rounds():
    turns = Turns({"slow": list, "fast": list})
    turns.seconds = {"slow": [4.0, 30.0, 9.0], "fast": [2.0, 10.0, 3.0]}
    assert turns.ratio("slow", "fast") == 3.0
    assert turns.ratio("slow", "fast") == median_ratio([4, 30, 9], [2, 10, 3])
    assert turns.fastest(["slow", "fast", "none"]) == "fast"
    assert turns.median("slow") == 9.0


def test_turns_by_the_fixture(stand_in):
    order = []
    turns = Turns({name: lambda name=name: order.append(name) for name in "abc"})
    turns.benchmark(stand_in, "b", rounds=2)
    assert "".join(order) == "abccba"
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == dict.fromkeys(
        "abc", 2
    )
    assert "a" in turns
    assert "d" not in turns
    assert turns.fastest(["d"]) is None


def test_rounds_follow_the_time(clock):
    calls = {"a": lambda: clock.sleep(1), "b": lambda: clock.sleep(2)}
    assert len(Turns(calls).run_for(0.0, 2, 9).seconds["a"]) == 2
    assert len(Turns(calls).run_for(15.5, 2, 9).seconds["b"]) == 5
    assert len(Turns(calls).run_for(60.0, 2, 4).seconds["b"]) == 4


def test_short_calls_are_repeated_and_long_ones_not(clock):
    calls = {"short": lambda: clock.sleep(1e-5), "long": lambda: clock.sleep(0.02)}
    turns = Turns(calls, shortest=1.995e-3).warm().run(2)
    assert turns.counts == {"short": 200, "long": 1}
    assert turns.seconds["short"] == pytest.approx([1e-5, 1e-5])
    assert turns.seconds["long"] == pytest.approx([0.02, 0.02])
    assert Turns(calls).warm().counts == {"short": 1, "long": 1}


def test_whoever_is_called_takes_the_next_inputs():
    taken = []
    calls = {name: [lambda i=i: taken.append(i) for i in range(3)] for name in ("ours", "theirs")}
    Turns(calls).warm().run(2)
    assert all(after == (before + 1) % 3 for before, after in itertools.pairwise(taken))


def test_garbage_is_collected_between_rounds_only():
    seen = []
    assert gc.isenabled()
    Turns({"a": lambda: seen.append(gc.isenabled())}).run(2)
    assert seen == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        Turns({"a": list}).run(1)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_others_froze_stays_so(frozen, monkeypatch):
    """The collector lists an object unless it is frozen. Counts of frozen objects fall whenever one
    of them dies, in whatever thread."""
    before = gc.get_freeze_count()
    ours: list[list] = [[]]
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        monkeypatch.setattr("bench.turns._FROZEN_AT_FIRST", 0 if frozen else count)
        monkeypatch.setattr("bench.turns._Freezing.theirs", False)
        Turns({"a": list}).run(1)
        listed = any(thing is ours for thing in gc.get_objects())
        assert listed != frozen
    finally:
        gc.freeze() if before else gc.unfreeze()


def test_a_gpu_that_is_not_there_is_not_asked():
    """The device of a clock by default."""
    assert Turns({"a": list}).device == torch.device("cpu")
