"""Documents that an index holds only the beginnings of are compressed again by another model."""

import json

import pytest

from clara.corpus import Reading
from clara.data import Document
from clara.index import MemoryIndex
from clara.sync import Build
from clara.sync.migrating import Migration
from tests.clara.sync.migrations import OTHER, arguments, texts
from tests.clara.sync.stubs import FINGERPRINT, Stub, new_index

LONG = "A long text that goes on and on to THE END"


class Cutting(Stub):
    """A model that reads so many characters."""

    def __init__(self, fingerprint, limit):
        super().__init__(fingerprint, chunk=1000)
        self.limit = limit

    def __call__(self, documents, *, on_progress):
        cut = [Document(each.id, each.text[: self.limit], each.title) for each in documents]
        return super().__call__(cut, on_progress=on_progress)


@pytest.fixture
def built(tmp_path):
    file = tmp_path / "docs.jsonl"
    records = [{"id": "long", "contents": LONG, "n": 3}, {"id": "short", "contents": "Short."}]
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    path = tmp_path / "index"

    def run(model):
        index = MemoryIndex.open(path) if path.exists() else None
        settings = {"settings": {"overflow": "truncate"}}
        build = Build(
            Reading([str(file)]), index, lambda types: new_index(path, types, **settings), model
        )
        return build.run()

    assert run(Cutting(FINGERPRINT, 20)).added == 2
    return run


@pytest.mark.parametrize("overflow", ["truncate", "chunk"])
def test_a_build_from_the_sources_completes_what_was_cut(built, tmp_path, overflow):
    index = MemoryIndex.open(tmp_path / "index")
    before = texts(index)
    model = Cutting(OTHER, 1000)
    Migration(index.path, arguments(settings={"overflow": overflow}), model).run()
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == [("long", LONG[:20], None), before[1]]
    again = built(model)
    assert (again.replaced, again.unchanged) == (1, 1)
    assert dict(each[:2] for each in texts(migrated)) == {"long": LONG, "short": "Short."}
