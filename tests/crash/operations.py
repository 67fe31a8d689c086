"""The operations that are killed: how the parent plans each, and how the child carries it out.

A plan tells beforehand which states of the index may be there after a kill: the first is the state
before the operation, the last the one after it. A new operation is a pair of functions in
`OPERATIONS`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clara.corpus import Reading
from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments
from clara.sync import Build, migrating
from clara.sync import build as building
from tests.crash.contents import (
    State,
    arguments,
    compressed,
    details,
    document,
    metadata,
    model_of,
    new_index,
    text_of,
)

NAMES = [f"d{number:02}" for number in range(30)]  # what add, upsert and delete change
BUILT = [f"s{number:02}" for number in range(20)]  # what builds bring
BATCH = 4  # documents of a commit of a build
KEPT = 6  # versions that stay


class Order(NamedTuple):
    """An operation to carry out.

    Attributes:
        arguments: for the function that does it; they go to another process.
        states: those that a kill may leave, in the order they come about.
    """

    kind: str
    arguments: Any
    states: list[State]


@dataclass
class World:
    """What the parent knows of the index.

    Attributes:
        state: the last that was committed.
        versions: states of versions that can be restored, by number.
        generation: the last that was given to any document.
    """

    folder: Path
    chance: random.Random
    state: State = field(default_factory=State)
    versions: dict[int, State] = field(default_factory=dict)
    generation: int = 0

    @property
    def path(self) -> str:
        return str(self.folder / "index")

    def some(self, names: Sequence[str], most: int) -> list[str]:
        return self.chance.sample(names, min(len(names), self.chance.randint(1, most)))

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation


def plan_add(world: World) -> Order | None:
    absent = [name for name in NAMES if name not in world.state]
    if not absent:
        return None
    new = {name: world.next_generation() for name in world.some(absent, 8)}
    return Order("add", new, [world.state, world.state.replaced(new)])


def do_add(index: MemoryIndex, new: Mapping[str, int]) -> None:
    index.add(compressed(new, model_of(index)), details(new))


def plan_upsert(world: World) -> Order:
    new = {name: world.next_generation() for name in world.some(NAMES, 12)}
    return Order("upsert", new, [world.state, world.state.replaced(new)])


def do_upsert(index: MemoryIndex, new: Mapping[str, int]) -> None:
    index.upsert(compressed(new, model_of(index)), details(new))


def plan_delete(world: World) -> Order | None:
    there = [name for name in NAMES if name in world.state]
    if len(there) < 5:
        return None
    gone = world.some(there, 10)
    return Order("delete", gone, [world.state, world.state.without(gone)])


def do_delete(index: MemoryIndex, gone: list[str]) -> None:
    index.delete(gone)


def plan_compact(world: World) -> Order:
    """Compaction and cleanup, every second time also of files that killed processes have left."""
    return Order("compact", world.chance.random() < 0.5, [world.state])


def do_compact(index: MemoryIndex, unfinished: bool) -> None:
    index.compact()
    index.clean_up(keep_versions=KEPT, unfinished=unfinished)


def plan_restore(world: World) -> Order | None:
    """Restoring the last version would do nothing."""
    earlier = sorted(world.versions)[:-1]
    if not earlier:
        return None
    number = world.chance.choice(earlier)
    return Order("restore", number, [world.state, world.versions[number]])


def do_restore(index: MemoryIndex, number: int) -> None:
    index.restore(number)


def plan_build(world: World) -> Order:
    """Sources in which some documents are new, changed or gone; several commits and a deletion."""
    there = {name: world.state[name] for name in BUILT if name in world.state}
    chosen = world.some(BUILT, len(BUILT))
    changed = [name for name in chosen if world.chance.random() < 0.7]
    new = {
        name: world.next_generation() if name in changed or name not in there else there[name]
        for name in chosen
    }
    file = world.folder / "sources" / "all.jsonl"
    file.parent.mkdir(exist_ok=True)
    records = (
        {
            "id": name,
            "contents": text_of(name, generation),
            "title": document(name, generation)[0].title,
            **metadata(name, generation),
        }
        for name, generation in new.items()
    )
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    states = [world.state]
    todo = [name for name in new if there.get(name) != new[name]]
    for begin in range(0, len(todo), BATCH):
        group = todo[begin : begin + BATCH]
        states.append(states[-1].replaced({name: new[name] for name in group}))
    if gone := [name for name in there if name not in new]:
        states.append(states[-1].without(gone))
    return Order("build", str(file.parent), states)


def do_build(index: MemoryIndex, folder: str) -> None:
    building.BATCH, building.PERIOD = BATCH, 0.0

    def create(types: object) -> MemoryIndex:
        raise RuntimeError("the index is there")

    reading = Reading([folder])
    stub = partial(compress, model_of(index))
    Build(reading, index, create, stub, prune=True, confirm=lambda gone, of: True).run()


def plan_migrate(world: World) -> Order:
    """To the model that the index is not of: the same documents in their order."""
    model = 1 - world.state.model
    return Order("migrate", model, [world.state, State(world.state, model)])


def do_migrate(index: MemoryIndex, model: int) -> None:
    migrating.BATCH = BATCH
    migrating.Migration(index.path, arguments(model), partial(compress, model)).run()


def compress(
    model: int, documents: Sequence[Any], *, on_progress: Callable[[int], None]
) -> CompressedDocuments:
    """Stands in for a model: the text says of which generation a document is."""
    new = {each.id: int(each.text.split()[1]) for each in documents}
    made = compressed(new, model)
    for each in documents:
        if each.text != text_of(each.id, new[each.id]):
            raise RuntimeError(f"{each.id} was read as {each.text!r}")
    on_progress(len(made))
    return made


def plan_view(world: World) -> Order:
    return Order("view", None, [world.state])


def do_view(index: MemoryIndex, nothing: None) -> None:
    index.build_view()


def plan_create(world: World) -> Order:
    """A new index beside the other; nothing is there then, or an empty index."""
    return Order("create", str(world.folder / "new"), [world.state])


def do_create(index: MemoryIndex, path: str) -> None:
    new_index(path)


class Operation(NamedTuple):
    """What the parent plans, None if there is nothing to do, and what the child does."""

    plan: Callable[[World], Order | None]
    do: Callable[[MemoryIndex, Any], None]


OPERATIONS = {
    "add": Operation(plan_add, do_add),
    "upsert": Operation(plan_upsert, do_upsert),
    "delete": Operation(plan_delete, do_delete),
    "compact": Operation(plan_compact, do_compact),
    "restore": Operation(plan_restore, do_restore),
    "build": Operation(plan_build, do_build),
    "migrate": Operation(plan_migrate, do_migrate),
    "view": Operation(plan_view, do_view),
    "create": Operation(plan_create, do_create),
}
