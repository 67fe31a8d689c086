"""Kill -9 at random moments of operations, and compare the index with the parent's own journal.

The moment is drawn from the whole duration of the operation, which is measured all the while.
After each kill, what was reported as committed has to be there, exactly and in its order, and the
operation that was killed has happened or has not. The same is read through a handle that has been
open from the beginning. The next child goes on with that index.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clara.index import MemoryIndex, MemoryIndexError
from tests.crash.children import Child, Died, sleep_until
from tests.crash.contents import (
    State,
    Wrong,
    check_searches,
    first_of,
    model_of,
    new_index,
    state_of,
)
from tests.crash.operations import OPERATIONS, Order, World

_LATE = 1.1  # the last moment, in durations of the operation: they vary
_MEASURED = 5  # of each operation before the first kill
_TENTHS = 10
_VIEWED = 0.5  # of the kills, after which a view is made anew


def serve(connection: Any, path: str) -> None:
    """What a child does: operations, each announced and then reported as done."""
    index = MemoryIndex.open(path)
    while True:
        kind, arguments = connection.recv()
        if (now := MemoryIndex.open(path)).fingerprint != index.fingerprint:
            index = now  # the other handle refuses the memory of another model
        connection.send("begin")
        begin = time.perf_counter()
        try:
            OPERATIONS[kind].do(index, arguments)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
        else:
            connection.send(time.perf_counter() - begin)


class Kills:
    """One index, changed by children that are killed.

    Attributes:
        killed: how many operations of each kind were killed within.
        late: how many were done before the kill came.
        happened: how many of those killed had made a change, by kind.
        moments: when operations were killed, in tenths of their duration.
    """

    def __init__(self, folder: Path, kinds: Iterable[str], seed: int) -> None:
        self._chance = random.Random(seed)
        self._world = World(folder, self._chance)
        self._kinds = list(kinds)
        new_index(self._world.path)
        self._reader = MemoryIndex.open(self._world.path)
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=9))
        self._spare: Child | None = None
        self.killed: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.moments: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def measure(self) -> None:
        """Carry out every operation some times."""
        with self._child() as child:
            for _ in range(_MEASURED):
                for kind in self._kinds:
                    self._carry_out(child, kind)
        self._verify()

    def run(self, kills: Mapping[str, int], seconds: float) -> None:
        """Kill so many operations of each kind, as far as the time lasts.

        Raises:
            Wrong: what was found after a kill is not what has to be there.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            left = [kind for kind in self._kinds if self.killed[kind] < kills.get(kind, 0)]
            if not left:
                return
            kind = min(left, key=lambda each: (self.killed[each], self.late[each]))
            self._kill_one(kind)

    def close(self) -> None:
        """Carry out every operation once more, on an index that was killed so often."""
        with self._child() as child:
            for kind in self._kinds:
                self._carry_out(child, kind)
        self._verify()
        self._check_versions()
        if self._spare is not None:
            self._spare.kill()

    def durations(self, kind: str) -> float:
        return statistics.median(self._durations[kind])

    def _child(self) -> Child:
        """The one that was started meanwhile; starts the next."""
        chosen = self._spare or Child(serve, self._world.path)
        self._spare = Child(serve, self._world.path)
        return chosen

    def _kill_one(self, kind: str) -> None:
        with self._child() as child:
            for _ in range(self._chance.randint(1, 2)):
                self._carry_out(child, self._chance.choice(self._kinds))
            order = self._planned(child, kind)
            share = self._chance.uniform(0, _LATE)
            child.send((order.kind, order.arguments))
            begin = child.receive()
            moment = time.perf_counter()
            assert begin == "begin"
            sleep_until(moment + share * self.durations(kind))
            said = child.kill()
        if said:
            self._done(order, said[0])
            self.late[kind] += 1
        else:
            self.killed[kind] += 1
            self.moments[kind][min(_TENTHS - 1, int(share * _TENTHS))] += 1
        self._settle(order, done=bool(said))
        if order.kind == "create":
            self._check_created(order.arguments, done=bool(said))

    def _planned(self, child: Child, kind: str) -> Order:
        while (order := OPERATIONS[kind].plan(self._world)) is None:
            # There is nothing to add, to delete or to go back to.
            self._carry_out(child, "delete" if kind == "add" else "upsert")
        return order

    def _carry_out(self, child: Child, kind: str) -> None:
        """An operation that is not killed."""
        order = self._planned(child, kind)
        child.send((order.kind, order.arguments))
        if child.receive() != "begin":
            raise Wrong(f"{kind} was not begun")
        try:
            said = child.receive()
        except Died as error:
            raise Wrong(f"{kind}: {error}") from error
        self._done(order, said)
        self._committed(order, order.states[-1])
        if order.kind == "create":
            self._check_created(order.arguments, done=True)

    def _done(self, order: Order, said: Any) -> None:
        if isinstance(said, str):
            raise Wrong(f"{order.kind} failed: {said}")
        self._durations[order.kind].append(said)

    def _committed(self, order: Order, state: State) -> None:
        """Enter a state in the journal."""
        world = self._world
        world.state = state
        if order.kind == "compact":
            there = {each.number for each in MemoryIndex.open(world.path).versions()}
            world.versions = {n: each for n, each in world.versions.items() if n in there}
        world.versions[last_version(world.path)] = state

    def _settle(self, order: Order, *, done: bool) -> None:
        """Find out what a kill has left, and check that it is right."""
        index = MemoryIndex.open(self._world.path)
        state = state_of(index)
        place = first_of(order.states[-1:] if done else order.states, state)
        if place and not done:
            self.happened[order.kind] += 1
        try:
            self._committed(order, state)
        except MemoryIndexError as error:
            raise Wrong(f"versions cannot be listed after {order.kind}: {error}") from error
        self._verify(index)
        if self._chance.random() < 0.1:
            self._check_versions()

    def _verify(self, index: MemoryIndex | None = None) -> None:
        """Reads and searches of a new handle and of the one that has been open all the time.

        By a view that was left, and by one that is made anew, all the same is found.
        """
        state, seed = self._world.state, self._chance.getrandbits(32)
        for each in (index or MemoryIndex.open(self._world.path), self._same_model()):
            if each is not index:
                first_of([state], state_of(each))
            check_searches(each, state, seed)
        if index is not None and self._chance.random() < _VIEWED:
            _check_view(self._world.path, state, seed)

    def _same_model(self) -> MemoryIndex:
        """The handle that is open all the time, which has to refuse an index of another model."""
        state = self._world.state
        if model_of(self._reader) != state.model:
            try:
                found = self._reader.ids()
            except MemoryIndexError as error:
                if "open it again" not in str(error):
                    raise Wrong(f"of another model now, but: {error}") from error
            else:
                raise Wrong(f"of another model now, but {found} were read")
            self._reader = MemoryIndex.open(self._world.path)
        return self._reader

    def _check_versions(self) -> None:
        """All versions of the journal, read as they were."""
        for number, state in self._world.versions.items():
            try:
                earlier = MemoryIndex.open(self._world.path, version=number)
            except MemoryIndexError as error:
                raise Wrong(f"version {number} is lost: {error}") from error
            first_of([state], state_of(earlier))

    def _check_created(self, path: str, *, done: bool) -> None:
        if Path(path).exists() or done:
            first_of([State()], state_of(MemoryIndex.open(path)))
            shutil.rmtree(path)


def _check_view(path: str, state: State, seed: int) -> None:
    """Search by the view that is there, if any, and by one that is made anew.

    Raises:
        Wrong: a view is damaged or cannot be made, or something else is found by it.
    """
    try:
        MemoryIndex.open(path).check_view()
        check_searches(MemoryIndex.open(path), state, seed)
        made = MemoryIndex.open(path).build_view()
        if MemoryIndex.open(path).check_view() != made:
            raise Wrong(f"{made.path} was made and is not there")
    except MemoryIndexError as error:
        raise Wrong(f"a view: {error}") from error
    check_searches(MemoryIndex.open(path), state, seed)
    unknown = [each.name for each in Path(made.path).parent.iterdir() if each != Path(made.path)]
    if left := [name for name in unknown if not name.endswith(".tmp")]:
        raise Wrong(f"views of earlier versions were left: {left}")


def last_version(path: str) -> int:
    """The number of the last version, by Lance itself."""
    import lance

    return int(lance.dataset(path).latest_version)
