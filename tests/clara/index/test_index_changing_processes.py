"""Processes that change one index at the same time, and processes that are killed meanwhile."""

import random
import signal
import subprocess
import time

import pytest
import torch

from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments

from ...plugins.warm import kill

# Stores documents of which every row says in which round of which process it was written.
DOCUMENTS = """
import sys
import torch
from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments

def documents(index, names, process, number):
    rows = [(name, part) for name in names for part in range(1 + (number + len(name)) % 3)]
    values = torch.tensor([[[float(1000 * process + number)]]]).expand(len(rows), 2, 8)
    return CompressedDocuments(
        memory=values + torch.arange(8),
        ids=[f"{name}#{part}" for name, part in rows],
        document_ids=[name for name, _ in rows],
        token_counts=[10] * len(rows),
        texts=[f"{process} {number} {part}" for _, part in rows],
        titles=[None] * len(rows),
        fingerprint=index.fingerprint,
    )
"""

CHANGER = (
    DOCUMENTS
    + """
index, process = MemoryIndex.open(sys.argv[1]), int(sys.argv[2])
shared = [f"shared{n}" for n in range(5)]
own = [f"own {process} {n}" for n in range(3)]
for number in range(int(sys.argv[3])):
    if number % 4 == 3:
        index.delete([*shared[:2], own[0]], missing_ok=True)
    else:
        index.upsert(documents(index, [*shared, *own], process, number))
    if number % 5 == 4:
        index.compact()
"""
)

# Changes all documents again and again until it is killed, and tells before and after.
VICTIM = (
    DOCUMENTS
    + """
index, change = MemoryIndex.open(sys.argv[1]), sys.argv[2]
names = [f"document {n}" for n in range(40)]
number = int(sys.argv[3])
while True:
    number += 1
    print("begin", number, flush=True)
    if change == "compact":
        index.add(documents(index, [f"more {number}"], 0, number))
        index.compact()
        index.clean_up(keep_versions=3)
    elif change == "delete" and number % 2:
        index.delete(names, missing_ok=True)
    else:
        index.upsert(documents(index, names, 0, number))
    print("end", number, flush=True)
"""
)


def by_document(index):
    """The texts of each document's rows, read with their memory."""
    found = {}
    for batch in index:
        rows = zip(batch.document_ids, batch.ids, batch.texts, batch.memory, strict=True)
        for document_id, name, text, memory in rows:
            process, number, part = map(int, text.split())
            assert name == f"{document_id}#{part}"
            assert torch.equal(
                memory[0] - torch.arange(8), torch.full((8,), 1000.0 * process + number)
            )
            found.setdefault(document_id, []).append((process, number, part))
    return found


def check_whole(index):
    """Every document has all rows of one round, once."""
    found = by_document(index)
    for name, rows in found.items():
        process, number, _ = rows[0]
        parts = 1 + (number + len(name)) % 3
        assert rows == [(process, number, part) for part in range(parts)], name
    return found


@pytest.mark.slow
def test_two_processes_change_what_a_third_reads(make_index, warm):
    path = make_index(columns={}).path
    rounds = 8
    changers = [
        subprocess.Popen([warm().python, "-c", CHANGER, path, str(process), str(rounds)])
        for process in (1, 2)
    ]
    reader = MemoryIndex.open(path)
    reads = 0
    while any(changer.poll() is None for changer in changers):
        check_whole(reader)
        hits = reader.search(torch.ones(2, 8), 50)[0]
        assert len({hit.id for hit in hits}) == len(hits)
        reads += 1
    assert [changer.wait() for changer in changers] == [0, 0]
    assert reads > 1
    for index in (reader, MemoryIndex.open(path)):
        found = check_whole(index)
        for process in (1, 2):
            last = {name: rows[0][1] for name, rows in found.items() if rows[0][0] == process}
            own = {name: number for name, number in last.items() if name.startswith("own")}
            assert own == {f"own {process} {n}": rounds - 2 for n in (1, 2)}
        assert {f"shared{n}" for n in (2, 3, 4)} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["upsert", "delete", "compact"])
def test_a_killed_change_leaves_before_or_after(make_index, warm, change):
    chance = random.Random(change)
    path = make_index().path
    start = 0
    kept = set()
    for _ in range(3):
        with subprocess.Popen(
            [warm().python, "-c", VICTIM, path, change, str(start)],
            stdout=subprocess.PIPE,
            text=True,
        ) as victim:
            started = [victim.stdout.readline() for _ in range(5)]
            assert started[-1].split() == ["begin", str(start + 3)]
            time.sleep(chance.uniform(0, 0.3))
            kill(victim)
            what, last = (started + victim.stdout.readlines())[-1].split()
        assert victim.returncode == -signal.SIGKILL
        number = int(last)
        index = MemoryIndex.open(path)
        found = check_whole(index)
        if change == "compact":
            stored = {int(name.split()[1]) for name in found}
            kept |= set(range(start + 1, number))
            assert kept <= stored <= kept | {number}
            assert what == "begin" or number in stored
            kept = stored
        else:
            states = [
                None if change == "delete" and each % 2 else each for each in (number - 1, number)
            ]
            rounds = {rows[0][1] for rows in found.values()}
            assert len(found) in (0, 40)
            assert rounds in [{state} - {None} for state in states[what == "end" :]]
        start = number + number % 2  # odd numbers delete
        if found:
            index.upsert(CompressedDocuments.concatenate(index))
        assert by_document(MemoryIndex.open(path)) == found
