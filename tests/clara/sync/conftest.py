"""Builds and migrations with a stub in the compressor's place."""

import pytest

from clara.corpus import Reading
from clara.index import MemoryIndex
from clara.sync import Build
from tests.clara.sync.books import GUIDE, jsonl
from tests.clara.sync.migrations import OTHER, arguments, filled
from tests.clara.sync.stubs import Stub, new_index

READING = ("names", "limits", "on_error", "on_duplicate", "on_failure")


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def build(tmp_path, stub):
    """Build `tmp_path / "index"` from sources with the stub; options of `Reading` and `Build`.

    `steps` gets how many documents progress is told of, and the total first.
    """

    def run(*sources, steps=None, **options):
        path = tmp_path / "index"
        index = MemoryIndex.open(path) if path.exists() else None
        chosen = {name: options.pop(name) for name in READING if name in options}
        reading = Reading([str(each) for each in sources], **chosen)
        made = Build(reading, index, lambda types: new_index(path, types), stub, **options)
        if steps is None:
            return made.run()
        steps.append(made.total)
        return made.run(lambda documents, detail=None: steps.append(documents))

    return run


@pytest.fixture
def index(stub, tmp_path):
    """An index to migrate."""
    return filled(tmp_path / "index", stub)


@pytest.fixture
def other():
    """Another model, and the arguments of an index for its memory."""
    return Stub(OTHER), arguments()


@pytest.fixture
def book(tmp_path):
    """A folder with four documents in three files."""
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "hours.txt").write_text("Open from April to October.")
    (folder / "staff.jsonl").write_text(
        jsonl(
            {"id": "s1", "contents": "Anna is the master.", "since": 2011, "title": "Anna"},
            {"id": "s2", "contents": "Ben repairs engines.", "since": None, "paid": True},
        )
    )
    return folder
