"""Flip single bytes in the files of an index, and read all of it each time.

A reader opens the index anew and reads everything that it gives. That is an error which names the
document or the file, or exactly what it was before. Where a file ends the process that reads it,
`verify` has to survive, and to name that file.

A view is another matter: searches have to find what they found without one, and its check has to
name it, whichever byte it is.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clara.index import MemoryIndex, MemoryIndexError
from clara.index.views.layout import ViewError
from tests.crash.children import Child, Died
from tests.crash.contents import (
    MODELS,
    TOKENS,
    Wrong,
    compressed,
    details,
    document,
    new_index,
    state_of,
)

# Of the flips, by folder; the rest go to any other file.
SHARES = {"data": 50, "_versions": 18, "_deletions": 10, "_checksums": 4, "_views": 14, "": 4}
KINDS = (("float32", "flattened"), ("int8", "mean"), ("int4", "flattened"))
"""Storage and ranking of the indexes."""


class Found(NamedTuple):
    """What a reader says.

    Attributes:
        contents: a digest of all that was read; None after an error.
        message: of that error.
        damaged: what `verify` names then, one after the other; None if it cannot open the index.
    """

    contents: str | None = None
    message: str = ""
    damaged: str | None = None


def serve(connection: Any, path: str) -> None:
    """What the reader does: reads all that there is, or searches, whenever it is asked to."""
    while True:
        task = connection.recv()
        if task == "search":
            connection.send(by_view(path))
            continue
        apart = task == "verify"
        try:
            index = MemoryIndex.open(path)
            found = Found("" if apart else everything(index) + earlier(index))
        except MemoryIndexError as error:
            found = Found(None, str(error))
        if apart or found.contents is None:
            try:
                index = MemoryIndex.open(path)
                listed = list(index.verify(apart=apart))
                if not listed:  # what was damaged is in the version before
                    before = MemoryIndex.open(path, version=index.versions()[0].number)
                    listed = list(before.verify(apart=apart))
                found = found._replace(damaged="\n".join(f"{each}" for each in listed))
            except MemoryIndexError as error:
                found = found._replace(message=found.message or str(error))
        connection.send(found)


def everything(index: MemoryIndex) -> str:
    """A digest of all that an index gives: documents, order, texts, memory, searches."""
    made = hashlib.blake2b()
    for entry in index.documents():
        made.update(repr(entry).encode())
    for batch in index:
        rows = batch.ids, batch.document_ids, batch.titles, batch.token_counts, batch.texts
        made.update(repr(rows).encode() + batch.memory.numpy().tobytes())
    made.update(repr(list(index.text_digests().items())).encode() + searches(index).encode())
    return made.hexdigest()


def searches(index: MemoryIndex) -> str:
    """A digest of what is found, also with a filter."""
    made = hashlib.blake2b()
    one = index.info()["settings"]["ranking"] == "mean"
    queries = torch.randn(
        2, 1 if one else TOKENS, MODELS[0].hidden, generator=torch.Generator().manual_seed(1)
    )
    for filter in (None, "generation > 5 AND label IS NOT NULL"):
        for hits in index.search(queries, 4, filter):
            for hit in hits:
                rest = hit.id, hit.score, hit.row, hit.text, hit.title, hit.metadata, hit.offset
                made.update(repr(rest).encode() + hit.memory.numpy().tobytes())
    return made.hexdigest()


def by_view(path: str) -> Found:
    """What is found before ids are read and after, what the view's check says, and warnings."""
    index = MemoryIndex.open(path)
    try:
        message = "" if index.check_view() else "no view"
    except ViewError as error:
        message = str(error)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        found = searches(index)
        found += "" if searches(index) == found else " or else"
    return Found(found, message, "".join(f"{remark.message}" for remark in remarks))


def earlier(index: MemoryIndex) -> str:
    """A digest of what the index was before."""
    before, last = index.versions()
    made = hashlib.blake2b(repr((before.documents, last.documents)).encode())
    with_texts = MemoryIndex.open(index.path, version=before.number)
    made.update(repr(list(with_texts.documents())).encode())
    made.update(repr(with_texts.texts(with_texts.ids())).encode())
    return made.hexdigest()


class Flips:
    """Bytes of one index, changed one after the other and put back.

    Attributes:
        detected, without_effect: how many, by folder.
        died: how often the reader was ended, by folder.
        by_verify: messages of those detected that were named by `verify` only.
    """

    def __init__(self, folder: Path, storage: str, ranking: str, seed: int) -> None:
        self._chance = random.Random(f"{storage} {seed}")
        self.path = make(folder / storage, storage, ranking)
        self._view = Path(MemoryIndex.open(self.path).build_view().path)
        self._view_bytes = self._view.read_bytes()
        self._files = {name: sorted(files(self.path, name)) for name in SHARES}
        self._owners = {file: owners(file) for file in self._files["data"]}
        self._time = count(time.time_ns(), 1_000_000)
        self._reader = Child(serve, self.path, quiet=True)
        self._found = self._ask("search")
        assert (self._found.message, self._found.damaged) == ("", ""), self._found
        self._view.unlink()  # or searches would read no vectors of the data files
        self._intact = self._ask("read")
        assert self._intact.contents
        assert self._ask("search") == (self._found.contents, "no view", "")
        self.detected: Counter[str] = Counter()
        self.without_effect: Counter[str] = Counter()
        self.died: Counter[str] = Counter()
        self.by_verify: list[str] = []

    def run(self, flips: int, seconds: float) -> int:
        """Flip so many bytes, as far as the time lasts; how many.

        Raises:
            Wrong: damage was not detected or not named, or is still there once it is put right.
        """
        end = time.monotonic() + seconds
        folders = [name for name in SHARES if self._files[name]]
        shares = [SHARES[name] for name in folders]
        for done in range(flips):
            if time.monotonic() > end:
                return done
            (folder,) = self._chance.choices(folders, shares)
            file = self._chance.choice(self._files[folder])
            if folder == "_views":
                self._flip_view()
            else:
                self._flip(folder, file)
        if self._ask("read") != self._intact:
            raise Wrong(f"{self.path} is not what it was, though every byte is")
        return flips

    def close(self) -> None:
        self._reader.kill()

    def _flip(self, folder: str, file: Path) -> None:
        position = self._chance.randrange(file.stat().st_size)
        mask = self._chance.randrange(1, 256)
        what = f"{file}, byte {position}, xor {mask}"
        self._change(file, position, mask)
        try:
            found = self._ask("read")
        except Died as error:
            self.died[folder] += 1
            self._reader = Child(serve, self.path, quiet=True)
            self._check_apart(file, f"{what}: the reader ended with {error.how}")
        else:
            self._check(folder, file, position, found, what)
        finally:
            self._change(file, position, mask)

    def _flip_view(self) -> None:
        """A view of which a byte is another one: nothing else is found, and it is named."""
        position = self._chance.randrange(len(self._view_bytes))
        mask = self._chance.randrange(1, 256)
        what = f"{self._view}, byte {position}, xor {mask}"
        changed = bytearray(self._view_bytes)
        changed[position] ^= mask
        self._view.write_bytes(changed)
        try:
            found = self._ask("search")
        except Died as error:
            raise Wrong(f"{what}: {error}") from error
        finally:
            self._view.unlink(missing_ok=True)
        self._check_view(found, what)

    def _check_view(self, found: Found, what: str) -> None:
        if found.contents != self._found.contents:
            raise Wrong(f"{what}: something else was found: {found}")
        if self._view.name not in found.message:
            raise Wrong(f"{what}: its check does not name it: {found}")
        if self._view.name in (found.damaged or ""):
            self.detected["_views"] += 1
        else:  # the search did not read the byte
            self.without_effect["_views"] += 1

    def _ask(self, task: str) -> Found:
        self._reader.send(task)
        found: Found = self._reader.receive()
        return found

    def _change(self, file: Path, position: int, mask: int) -> None:
        """Flip bits; files that change in one tick of the clock would look the same."""
        with open(file, "r+b", buffering=0) as opened:
            byte = os.pread(opened.fileno(), 1, position)[0]
            os.pwrite(opened.fileno(), bytes([byte ^ mask]), position)
        os.utime(file, ns=(moment := next(self._time), moment))

    def _check(self, folder: str, file: Path, position: int, found: Found, what: str) -> None:
        if found.contents is not None:
            if found.contents != self._intact.contents:
                raise Wrong(f"{what}: something else was read, without an error")
            owner = self._owners.get(file, {}).get(position)
            if owner is not None:
                raise Wrong(f"{what}: no error, though it is of {owner}")
            self.without_effect[folder] += 1
            return
        self.detected[folder] += 1
        owner = self._owners.get(file, {}).get(position)
        if owner is not None and repr(owner) not in (found.damaged or ""):
            raise Wrong(f"{what}: it is of {owner}, {found.message!r}, verify: {found.damaged!r}")
        if not self._names_it(file, found.message):
            self.by_verify.append(found.message)
            if not self._names_it(file, found.damaged or ""):
                raise Wrong(f"{what}: not named: {found.message!r}, verify: {found.damaged!r}")

    def _names_it(self, file: Path, text: str) -> bool:
        """Whether a message names the file, or in a file of rows a document."""
        if file.parent.name != "data":
            return file.name in text
        return file.name in text or re.search(r"'d\d+(#\d)?'", text) is not None

    def _check_apart(self, file: Path, what: str) -> None:
        """`verify` reads in a process of its own, survives, and names the file or documents."""
        with Child(serve, self.path, quiet=True) as checker:
            checker.send("verify")
            try:
                found = checker.receive()
            except Died as error:
                raise Wrong(f"{what}, verify with {error.how}") from error
        if not self._names_it(file, f"{found.message} {found.damaged}"):
            raise Wrong(f"{what}, verify does not name it: {found}")


def make(path: Path, storage: str, ranking: str) -> str:
    """An index of some files, of which some rows are deleted."""
    index = new_index(path, storage, ranking)
    for begin in (0, 10):
        new = {f"d{number}": begin + number for number in range(begin, begin + 10)}
        index.add(compressed(new), details(new))
    changed = {f"d{number}": 40 + number for number in (3, 8, 14)}
    index.upsert(compressed(changed), details(changed))
    index.delete(["d1", "d5", "d12"])
    index.clean_up(keep_versions=2, unfinished=True)
    if storage == "float32":
        assert len(state_of(index)) == 17
    return index.path


def files(path: str, folder: str) -> Iterator[Path]:
    """The files of a folder; those of all folders that have no name of their own for ""."""
    for file in Path(path).rglob("*"):
        place = file.relative_to(path).parts[0]
        if file.is_file() and file.stat().st_size and folder == (place if place in SHARES else ""):
            yield file


def owners(file: Path) -> dict[int, str]:
    """Of which document a byte is, as far as its memory and texts lie in the file as they are."""
    data = file.read_bytes()
    index = MemoryIndex.open(file.parents[1])
    found = {}
    for name, generation in ((e.document_id, e.metadata["generation"]) for e in index.documents()):
        for row in document(name, int(generation or 0)):
            for piece in (row.memory.tobytes(), row.text.encode()):
                begin = data.find(piece)
                if begin >= 0:
                    found.update(dict.fromkeys(range(begin, begin + len(piece)), name))
    return found
