import hashlib
import json
import signal
import subprocess
import time

import lance
import pytest
import torch

from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments

from ...plugins.warm import kill

READER = """
import hashlib, json, sys
import pytest
import torch
from clara.index import MemoryIndex

index = MemoryIndex.open(sys.argv[1])
stored = [
    [d.ids, d.document_ids, d.texts, d.titles, d.token_counts, d.fingerprint,
     hashlib.sha256(d.memory.view(torch.uint8).numpy().tobytes()).hexdigest()]
    for d in index
]
hits = index.search(index.get(json.loads(sys.argv[2])).memory, 4)
found = [[[h.id, h.row, h.score, h.text, h.title] for h in each] for each in hits]
print(json.dumps([stored, found, index.info()]))
"""

# Adds batches from where the index ends until it is killed; tells each that is committed.
WRITER = """
import sys
import pytest
import torch
from clara.memory.documents import CompressedDocuments
from clara.index import MemoryIndex

index, batch = MemoryIndex.open(sys.argv[1]), int(sys.argv[2])
while True:
    start = len(index)
    ids = [str(n) for n in range(start, start + batch)]
    values = torch.arange(start, start + batch, dtype=torch.float32)
    memory = values[:, None, None].expand(-1, 4, 256) + 1
    print("adding", start, flush=True)
    index.add(
        CompressedDocuments(memory, ids, ids, [7] * batch, [f"text {i}" for i in ids],
                            [None] * batch, index.fingerprint)
    )
"""


# Upgrades and tells how many rows are written; waits before the commit for a line of input.
UPGRADER = """
import sys
from clara.index import maintenance

commit = maintenance._committed

def waiting(*arguments):
    print("commit", flush=True)
    sys.stdin.readline()
    return commit(*arguments)

maintenance._committed = waiting
written = 0

def told(rows):
    global written
    written += rows
    print(written, flush=True)

maintenance.upgrade(sys.argv[1], on_progress=told)
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_new_process_reads_the_same_bytes_and_finds_the_same(make_index, make_documents, warm):
    index = make_index(dtype=torch.bfloat16, rate=4)
    documents = make_documents([f"d{n}#0" for n in range(30)], dtype=torch.bfloat16)
    index.add(documents[:20])
    index.add(documents[20:])
    asked = ["d3#0", "d25#0"]
    output = subprocess.run(
        [warm().python, "-c", READER, index.path, json.dumps(asked)],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    stored, found, info = json.loads(output)
    assert stored == [
        [
            d.ids,
            d.document_ids,
            d.texts,
            d.titles,
            d.token_counts,
            d.fingerprint,
            hashlib.sha256(d.memory.view(torch.uint8).numpy().tobytes()).hexdigest(),
        ]
        for d in (documents[:20], documents[20:])
    ]
    assert found == [
        [[h.id, h.row, h.score, h.text, h.title] for h in each]
        for each in index.search(index.get(asked).memory, 4)
    ]
    assert [each[0][0] for each in found] == asked
    assert info == index.info()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_killed_writer_leaves_the_last_commit(make_index, warm, storage):
    batch = 300  # 1.2 MB in float32, most of the writer's time is spent inside `add`
    path = make_index((4, 256), storage=storage).path
    before = 0
    for wait in (0.31, 0.12):
        writer = subprocess.Popen(
            [warm().python, "-c", WRITER, path, str(batch)], stdout=subprocess.PIPE, text=True
        )
        started = [writer.stdout.readline(), writer.stdout.readline()]
        assert started == [f"adding {before}\n", f"adding {before + batch}\n"]
        time.sleep(wait)
        kill(writer)
        announced = int((started + writer.stdout.readlines())[-1].split()[1])
        assert writer.wait() == -signal.SIGKILL

        index = MemoryIndex.open(path)
        count = len(index)
        assert count in (announced, announced + batch)  # killed before or after the commit
        everything = CompressedDocuments.concatenate(index)
        assert everything.ids == index.ids() == [str(n) for n in range(count)]
        assert everything.texts == [f"text {n}" for n in range(count)]
        expected = torch.arange(count, dtype=torch.float32)[:, None, None].expand(-1, 4, 256) + 1
        torch.testing.assert_close(
            everything.memory, expected, rtol=0 if storage == "float32" else 1e-6, atol=0
        )
        assert index.contains(["0", str(count - 1), str(count)]) == [True, True, False]

        more = [str(n) for n in range(count, count + batch)]
        index.add(
            CompressedDocuments(
                memory=torch.arange(count, count + batch)[:, None, None].expand(-1, 4, 256) + 1.0,
                ids=more,
                document_ids=more,
                token_counts=[7] * batch,
                texts=[f"text {n}" for n in more],
                titles=[None] * batch,
                fingerprint=index.fingerprint,
            )
        )
        before = count + batch
        assert len(MemoryIndex.open(path)) == before


@pytest.mark.slow
@pytest.mark.parametrize("when", ["2048", "commit"])
def test_a_killed_upgrade_leaves_the_index_as_it_was(make_second, warm, when):
    index = make_second(shape=(4, 256))
    names = [str(n) for n in range(3000)]
    documents = CompressedDocuments(
        memory=torch.randn(3000, 4, 256),
        ids=names,
        document_ids=names,
        token_counts=[7] * 3000,
        texts=[f"text {name}" for name in names],
        titles=[None] * 3000,
        fingerprint=index.fingerprint,
    )
    index.add(documents)
    version = lance.dataset(index.path).version
    command = [warm().python, "-c", UPGRADER, index.path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as upgrader:
        for line in upgrader.stdout:
            if line == f"{when}\n":
                kill(upgrader)
                break
    assert upgrader.returncode == -signal.SIGKILL
    reader = MemoryIndex.open(index.path)
    assert lance.dataset(index.path).version == version
    assert reader.info()["format_version"] == 2
    assert torch.equal(CompressedDocuments.concatenate(reader).memory, documents.memory)
    with subprocess.Popen(command, **pipes) as upgrader:
        output, _ = upgrader.communicate("go on\n")
    assert output.splitlines() == ["1024", "2048", "3000", "commit", "done"]
    for each in (index, MemoryIndex.open(index.path)):
        assert each.info()["format_version"] == 3
        everything = CompressedDocuments.concatenate(each)
        assert (everything.ids, everything.texts) == (names, documents.texts)
        assert torch.equal(everything.memory, documents.memory)
