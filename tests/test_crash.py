"""What an index survives, for as long as a test may take; `make crash-test` has the rest."""

import os
import random
import time

import pytest

from clara.index import MemoryIndex
from tests.crash import crowd, full
from tests.crash.children import Child, Died
from tests.crash.contents import (
    MODELS,
    State,
    Wrong,
    check_searches,
    compressed,
    details,
    document,
    first_of,
    new_index,
    state_of,
    text_of,
)
from tests.crash.flips import KINDS, Flips
from tests.crash.kills import Kills
from tests.crash.operations import OPERATIONS, World, do_add, plan_build

SECONDS = 60  # of kills of one operation or of flips, however slow the machine is
SEED = 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_that_are_killed_lose_nothing(tmp_path, kind):
    kills = Kills(tmp_path, ["upsert", *({kind} - {"upsert"})], SEED)
    kills.measure()
    end = time.monotonic() + SECONDS
    kills.run({kind: 20}, SECONDS)
    kills.close()
    assert kills.killed[kind] == 20 or time.monotonic() > end
    assert kills.killed[kind]


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "ranking"), KINDS)
def test_flipped_bytes_are_named(tmp_path, storage, ranking):
    flips = Flips(tmp_path, storage, ranking, SEED)
    assert flips.run(100, SECONDS) > 10
    assert flips.detected["data"] > 1
    flips.close()


@pytest.mark.slow
def test_processes_that_add_while_others_read(tmp_path):
    counted = crowd.run(tmp_path, seconds=6, appenders=2, readers=2)
    assert counted["commits"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("limited", [False, True])
def test_a_full_disk(tmp_path, limited):
    def fill(folder):
        disk = full.Full(folder, SEED, limited=limited)
        disk.run(2)
        disk.close()
        assert min(disk.failed.values()) >= 2

    if limited:
        fill(tmp_path)
        return
    try:
        with full.small_disk(tmp_path) as folder:
            fill(folder)
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.fixture
def index(tmp_path):
    return new_index(tmp_path / "index")


def test_contents_tell_generations_apart(index):
    do_add(index, {"d1": 1, "d2": 2})
    assert state_of(index) == {"d1": 1, "d2": 2}
    check_searches(index, State({"d1": 1, "d2": 2}), seed=0)
    with pytest.raises(Wrong, match=r"hits of|is not of the index"):
        check_searches(index, State({"d1": 1, "d2": 3}), seed=0)
    assert text_of("d1", 1) != text_of("d1", 2)
    counts = {len(document("d1", generation)) for generation in range(20)}
    assert counts == {1, 2, 3}


def test_a_torn_document_is_noticed(index):
    """Rows of one generation under the metadata of another."""
    index.add(compressed({"d1": 1}), details({"d1": 4}))
    with pytest.raises(Wrong, match=r"d1 has the metadata|of generation 4|row d1"):
        state_of(index)


def test_lost_and_stale_documents_are_told():
    before, after = State({"d1": 1, "d2": 1}), State({"d1": 1, "d2": 2})
    assert first_of([before, after], State({"d1": 1, "d2": 2})) == 1
    with pytest.raises(Wrong, match=r"\['d1'\] fewer, \[\] more, \[\] of another gen"):
        first_of([before, after], State({"d2": 1}))
    with pytest.raises(Wrong, match=r"\['d2'\] of another generation than after"):
        first_of([before, after], State({"d1": 1, "d2": 3}))
    with pytest.raises(Wrong, match="in another order"):
        first_of([before, after], State({"d2": 2, "d1": 1}))
    with pytest.raises(Wrong, match="of another model than after"):
        first_of([before, after], State(after, model=1))


def test_models_share_texts_and_nothing_else():
    assert MODELS[0].hidden != MODELS[1].hidden
    for generation in range(10):
        one, other = (document("d1", generation, model) for model in (0, 1))
        assert "".join(row.text for row in one) == "".join(row.text for row in other)
        assert len(one) != len(other) or one[0].memory.shape != other[0].memory.shape
    assert [len(document("d1", g, 0)) for g in range(9)] != [
        len(document("d1", g, 1)) for g in range(9)
    ]


def test_a_build_has_a_state_for_each_commit(tmp_path):
    world = World(tmp_path, random.Random(SEED), state=State({"d1": 1, "s01": 1, "s02": 1}))
    world.generation = 1
    order = plan_build(world)
    assert order.states[0] == world.state
    assert all(state["d1"] == 1 for state in order.states)
    new = [len(set(b.items()) - set(a.items())) for a, b in zip(order.states, order.states[1:])]
    assert all(count <= 4 for count in new)


def echo(connection):
    connection.send(connection.recv())
    if connection.recv() == "end":
        os._exit(3)
    time.sleep(60)


@pytest.mark.slow
def test_children_say_how_they_end():
    with Child(echo) as child:
        child.send("one")
        assert child.receive() == "one"
        child.send("end")
        with pytest.raises(Died, match="status 3"):
            child.receive()
    with Child(echo) as child:
        child.send("two")
        assert child._connection.poll(60)
        assert child.kill() == ["two"]


@pytest.mark.slow
def test_a_flip_that_goes_unnoticed_fails(tmp_path, monkeypatch):
    """The check itself: another index is read than the one whose byte is flipped."""
    flips = Flips(tmp_path, "float32", "flattened", SEED)
    owned = next((file, place) for file, places in flips._owners.items() for place in places)
    intact = flips._ask("read")
    with pytest.raises(Wrong, match="no error, though it is of d"):
        flips._check("data", *owned, intact, "a flip")
    with pytest.raises(Wrong, match="something else was read"):
        flips._check("data", *owned, intact._replace(contents="0"), "a flip")
    with pytest.raises(Wrong, match="it is of d"):
        flips._check("data", *owned, intact._replace(contents=None, message="failed"), "a flip")
    with pytest.raises(Wrong, match="something else was found"):
        flips._check_view(flips._found._replace(contents="0"), "a flip")
    with pytest.raises(Wrong, match="its check does not name it"):
        flips._check_view(flips._found, "a flip")
    flips.close()
    assert MemoryIndex.open(flips.path).ids()
