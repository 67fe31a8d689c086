"""What each document holds, as a function of its name and generation, and how an index is compared.

A row's memory, texts and metadata are drawn from a hash of name, generation, part and model. So
whatever is read of a document is exactly one of its generations by the model of the index, or it is
wrong: mixed, torn, stale or lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from clara.index import Details, MemoryIndex, MemoryIndexError
from clara.memory.documents import CompressedDocuments

TOKENS = 2
COLUMNS = {"generation": int, "label": str}
SOURCE = "pieces"
_QUERIES, _HITS = 2, 5


class Model(NamedTuple):
    """What compresses the documents of an index; another one has another width and other chunks."""

    fingerprint: str
    hidden: int


MODELS = (Model("f" * 64, 16), Model("e" * 64, 24))


class State(dict[str, int]):
    """The documents of an index in their order, and the generation of each.

    Attributes:
        model: which of `MODELS` they are compressed by.
    """

    def __init__(
        self, documents: Mapping[str, int] | Iterable[tuple[str, int]] = (), model: int = 0
    ) -> None:
        super().__init__(documents)
        self.model = model

    def replaced(self, new: Mapping[str, int]) -> State:
        """What is replaced comes last."""
        return State({**self.without(new), **new}, self.model)

    def without(self, gone: Iterable[str]) -> State:
        gone = set(gone)
        return State({name: self[name] for name in self if name not in gone}, self.model)


class Wrong(Exception):
    """An index does not hold what was committed, or a read or a search of it is not right."""


class Row(NamedTuple):
    """A row as it has to be."""

    id: str
    document_id: str
    title: str | None
    tokens: int
    text: str
    memory: npt.NDArray[np.float32]


def document(name: str, generation: int, model: int = 0) -> list[Row]:
    """The rows of a document: one to three, which share its text in other ways by other models."""
    texts = _texts(name, generation)
    if model:
        whole = "".join(texts)
        count = 1 + (_number(name, generation) + 1) % 3
        cuts = [len(whole) * part // count for part in range(count + 1)]
        texts = [whole[begin:end] for begin, end in zip(cuts, cuts[1:])]
    found = []
    for part, text in enumerate(texts):
        drawn = _drawn(name, generation, part, model)
        memory = np.frombuffer(drawn, dtype=np.uint8).astype(np.float32) - 127.5
        found.append(
            Row(
                name if len(texts) == 1 else f"{name}#{part}",
                name,
                [None, "", f"title {generation}"][generation % 3],
                1 + drawn[0],
                text,
                memory.reshape(TOKENS, MODELS[model].hidden),
            )
        )
    return found


def text_of(name: str, generation: int) -> str:
    """The whole text of a document, which `compress` takes apart again."""
    return "".join(row.text for row in document(name, generation))


def compressed(documents: Mapping[str, int], model: int = 0) -> CompressedDocuments:
    """The documents as a model would give them."""
    rows = [row for each in documents.items() for row in document(*each, model)]
    memory = torch.empty(len(rows), TOKENS, MODELS[model].hidden)
    for place, row in enumerate(rows):
        memory[place] = torch.from_numpy(row.memory)
    return CompressedDocuments(
        memory=memory,
        ids=[row.id for row in rows],
        document_ids=[row.document_id for row in rows],
        token_counts=[row.tokens for row in rows],
        texts=[row.text for row in rows],
        titles=[row.title for row in rows],
        fingerprint=MODELS[model].fingerprint,
    )


def details(documents: Mapping[str, int], source: str = SOURCE) -> dict[str, Details]:
    return {
        name: Details(metadata(name, generation), source, f"{name} {generation}")
        for name, generation in documents.items()
    }


def metadata(name: str, generation: int) -> dict[str, int | str | None]:
    return {"generation": generation, "label": f"{name}'s" if generation % 4 else None}


def arguments(
    model: int = 0, storage: str = "float32", ranking: str = "flattened"
) -> dict[str, Any]:
    """What an index of a model's memory is created with."""
    return {
        "fingerprint": MODELS[model].fingerprint,
        "memory_tokens": TOKENS,
        "hidden_size": MODELS[model].hidden,
        "storage": storage,
        "settings": {"ranking": ranking},
    }


def new_index(
    path: str | os.PathLike[str], storage: str = "float32", ranking: str = "flattened"
) -> MemoryIndex:
    """An empty index that takes the documents."""
    return MemoryIndex.create(path, **arguments(0, storage, ranking), columns=COLUMNS)


def model_of(index: MemoryIndex) -> int:
    """Which of `MODELS` an index is of."""
    return [model.fingerprint for model in MODELS].index(index.fingerprint)


def state_of(index: MemoryIndex) -> State:
    """Read everything that an index holds, and compare it with what it has to be.

    Raises:
        Wrong: a document is not exactly one of its generations, or one read contradicts another.
    """
    try:
        entries = list(index.documents())
        read = [row for batch in index for row in _rows(batch)]
        count, ids = len(index), index.ids()
    except MemoryIndexError as error:
        raise Wrong(f"reading failed: {error}") from error
    model = model_of(index)
    state = State(model=model)
    expected = []
    for entry in entries:
        name, generation = entry.document_id, entry.metadata["generation"]
        if name in state:
            raise Wrong(f"{name} is there twice")
        if not isinstance(generation, int) or entry.metadata != metadata(name, generation):
            raise Wrong(f"{name} has the metadata {dict(entry.metadata)}")
        state[name] = generation
        rows = document(name, generation, model)
        if entry.rows != [row.id for row in rows] or entry.tokens != sum(r.tokens for r in rows):
            raise Wrong(f"{name} of generation {generation} has the rows {entry.rows}")
        expected += rows
    if count != len(expected) or ids != [row.id for row in expected]:
        raise Wrong(f"{count} rows with the ids {ids}, of documents {state}")
    if len(read) != len(expected):
        raise Wrong(f"{len(read)} rows were read, {len(expected)} listed")
    for one, other in zip(read, expected):
        if one[:5] != other[:5] or not np.array_equal(one.memory, other.memory):
            raise Wrong(f"row {other.id} of generation {state[other.document_id]} is {one}")
    return state


def check_searches(index: MemoryIndex, state: State, seed: int) -> None:
    """Compare searches, also with a filter, with a computation of their own in float64.

    Raises:
        Wrong: a hit is not right, or the best were not found.
    """
    rows = [row for each in state.items() for row in document(*each, state.model)]
    chance = np.random.default_rng(seed)
    queries = chance.standard_normal((_QUERIES, TOKENS, MODELS[state.model].hidden)).astype(
        np.float32
    )
    filters: list[str | None] = [None]
    if state:
        filters.append(f"generation = {list(state.values())[chance.integers(len(state))]}")
    for filter in filters:
        kept = [row for row in rows if filter is None or filter.endswith(f" {state[row[1]]}")]
        try:
            found = index.search(torch.from_numpy(queries), _HITS, filter)
        except MemoryIndexError as error:
            raise Wrong(f"a search failed: {error}") from error
        for query, hits in zip(queries, found, strict=True):
            best = sorted((_cosine(query, row) for row in kept), reverse=True)[:_HITS]
            by_id = {row.id: row for row in kept}
            if len({hit.id for hit in hits}) != len(best) or len(hits) != len(best):
                raise Wrong(f"{len(hits)} hits of {len(kept)} rows, filter {filter}")
            for hit, score in zip(hits, best):
                row = by_id.get(hit.id)
                if row is None or (hit.text, hit.title) != (row.text, row.title):
                    raise Wrong(f"the hit {hit} is not of the index, filter {filter}")
                if max(abs(hit.score - score), abs(hit.score - _cosine(query, row))) > 1e-4:
                    raise Wrong(f"the hit {hit} scores {_cosine(query, row)}, the best {score}")


def first_of(candidates: Iterable[State], state: State) -> int:
    """Which of the states that may be is there, order included.

    Raises:
        Wrong: none of them.
    """
    candidates = list(candidates)
    for place, candidate in enumerate(candidates):
        same_model = candidate.model == state.model
        if same_model and list(candidate.items()) == list(state.items()):
            return place
    before, after = candidates[0], candidates[-1]
    raise Wrong(
        "the documents are of no state that was committed: "
        f"{_difference(before, state)} than before, {_difference(after, state)} than after"
    )


def _difference(one: State, other: State) -> str:
    lost = sorted(set(one) - set(other))
    more = sorted(set(other) - set(one))
    stale = [name for name in one if name in other and one[name] != other[name]]
    order = "" if lost or more or stale else ", in another order"
    order = order if one.model == other.model else ", of another model"
    return f"{lost} fewer, {more} more, {stale} of another generation{order}"


def _rows(batch: CompressedDocuments) -> Iterator[Row]:
    memory = batch.memory.float().numpy()
    for place, name in enumerate(batch.ids):
        yield Row(
            name,
            batch.document_ids[place],
            batch.titles[place],
            batch.token_counts[place],
            batch.texts[place],
            memory[place],
        )


def _cosine(query: npt.NDArray[np.float32], row: Row) -> float:
    one, other = query.astype(np.float64).ravel(), row.memory.astype(np.float64).ravel()
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _texts(name: str, generation: int) -> list[str]:
    """The text of each row by the first model."""
    count = 1 + _number(name, generation) % 3
    words = [_drawn(name, generation, part)[1] % 40 for part in range(count)]
    return [f"{name} {generation} {part} {'ü word ' * of}\n" for part, of in enumerate(words)]


def _drawn(name: str, generation: int, part: int, model: int = 0) -> bytes:
    seed = f"{name} {generation} {part}{' other' * model}".encode()
    return hashlib.blake2b(seed, digest_size=TOKENS * MODELS[model].hidden).digest()


def _number(name: str, generation: int) -> int:
    return int.from_bytes(_drawn(name, generation, -1)[:4], "little")
