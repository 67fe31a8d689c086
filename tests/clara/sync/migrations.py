"""Indexes to migrate, half-done migrations, and what indexes are compared with."""

import pytest
import torch

from clara.corpus import Mark
from clara.data import Document
from clara.index import Details, MemoryIndex
from clara.sync import migrating
from clara.sync.migrating import Migration
from tests.clara.sync.stubs import Stub, new_index

OTHER = "e" * 64
"""Fingerprint of the other model."""


def text_of(number, version=0):
    return f"Document {number} as it is in version {version}. " * (1 + number % 3)


def document(number, version=0):
    return Document(f"d{number}", text_of(number, version), f"T{number}" if number % 2 else None)


def details(number, version=0):
    marks = (Mark(0, "# Top"), Mark(25, "## Middle")) if number % 3 == 2 else ()
    return Details({"n": number, "w": None}, f"s{number % 2}", f"{number} {version}", marks)


def put(index, stub, numbers, version=0):
    """Store documents of a version."""
    found = [document(n, version) for n in numbers]
    compressed = stub(found, on_progress=lambda rows: None)
    index.upsert(compressed, {f"d{n}": details(n, version) for n in numbers})


def filled(path, stub):
    """An index of twenty documents in three commits, of which three were replaced and deleted."""
    made = new_index(path, {"n": int, "w": float})
    put(made, stub, range(12))
    put(made, stub, [3, *range(12, 20)], 1)
    made.delete(["d5", "d6"])
    return made


def arguments(**others):
    return {
        "fingerprint": OTHER,
        "memory_tokens": 2,
        "hidden_size": 8,
        "dtype": "float32",
        "storage": None,
        "settings": {"overflow": "chunk"},
        **others,
    }


def texts(index):
    """Texts and digests of documents in their order."""
    return [
        (entry.document_id, "".join(each.text for each in index.texts(entry.rows)), entry.digest)
        for entry in index.documents()
    ]


def built_of(documents, path, stub, wanted):
    """An index of another model, built of the texts of an index, and not migrated."""
    index = MemoryIndex.create(path, **wanted, columns=documents.columns)
    for name, _, digest in texts(documents):
        number, version = int(name[1:]), int(digest.split()[1])
        put(index, stub, [number], version)
    return index


def same(one, two):
    """Two indexes hold the same rows with the same memory, and find the same."""
    left, right = (list(each) for each in (one, two))
    assert [name for part in left for name in part.ids] == [n for part in right for n in part.ids]
    left, right = (each.get(each.ids()) for each in (one, two))
    assert torch.equal(left.memory, right.memory)
    assert left.counts == right.counts
    assert (left.texts, left.titles) == (right.texts, right.titles)
    assert (left.document_ids, left.token_counts) == (right.document_ids, right.token_counts)
    assert list(one.documents()) == list(two.documents())
    for name in ("fingerprint", "memory_tokens", "hidden_size", "dtype", "storage", "settings"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.columns == two.columns
    width = 1 if one.settings.get("ranking") == "mean" else one.memory_tokens
    query = torch.randn(2, width, one.hidden_size, generator=torch.Generator().manual_seed(0))
    found = [each.search(query, 5) for each in (one, two)]
    assert found[0] == found[1]  # scores to the last bit


def small(path, stub):
    """An index of six documents in one commit."""
    made = new_index(path, {"n": int, "w": float})
    put(made, stub, range(6))
    return made


def half_done(index, fingerprint=OTHER):
    """A migration to a model that fails at the end."""
    model = Stub(fingerprint)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrating, "switch", lambda old, new: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Migration(index.path, arguments(fingerprint=fingerprint), model).run()
