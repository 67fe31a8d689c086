import hashlib
import json
import signal
import subprocess
import time

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
def test_a_killed_writer_leaves_the_last_commit(make_index, warm):
    batch = 300  # 1.2 MB, most of the writer's time is spent inside `add`
    path = make_index((4, 256)).path
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
        assert torch.equal(everything.memory, expected)
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
