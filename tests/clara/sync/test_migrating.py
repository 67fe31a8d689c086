"""An index is compressed again by another model, while others read and change it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from clara.corpus import Mark
from clara.data import DataError, Document
from clara.index import Details, MemoryIndex, MemoryIndexError, gate
from clara.index import migration as folders
from clara.index.build import write_empty
from clara.index.header import Header
from clara.index.origins import read_origins, record_origins
from clara.sync import migrating
from clara.sync.migrating import Migration
from tests.clara.sync.conftest import FINGERPRINT, Stub, new_index

OTHER = "e" * 64

# Other models, each with the arguments of an index for its memory.
MODELS = {
    "one of another width": (
        {"shape": (3, 6)},
        {"memory_tokens": 3, "hidden_size": 6, "dtype": "bfloat16"},
    ),
    "one with longer chunks, quantized": (
        {"chunk": 70, "shape": (1, 64)},
        {"memory_tokens": 1, "hidden_size": 64, "storage": "int4"},
    ),
    "one of spans, ranked by means": (
        {"chunk": 24, "shape": (6, 16), "rate": 4},
        {
            "memory_tokens": 6,
            "hidden_size": 16,
            "storage": "int8",
            "settings": {"memory_form": "spans", "compression_rate": 4, "ranking": "mean"},
        },
    ),
}


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


@pytest.fixture
def index(stub, tmp_path):
    """An index of twenty documents in three commits, of which three were replaced and deleted."""
    made = new_index(tmp_path / "index", {"n": int, "w": float})
    put(made, stub, range(12))
    put(made, stub, [3, *range(12, 20)], 1)
    made.delete(["d5", "d6"])
    return made


@pytest.fixture
def other():
    """Another model, and the arguments of an index for its memory."""
    return Stub(OTHER), arguments()


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


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_index_that_a_build_would_make(index, tmp_path, kind):
    of_stub, of_index = MODELS[kind]
    stub, wanted = Stub(OTHER, **of_stub), arguments(**of_index)
    record_origins(index.path, {"s0": "where"})
    steps = []
    before = texts(index)
    last = index.versions()[-1]
    done = Migration(index.path, wanted, stub).run(
        lambda documents, detail=None: steps.append(documents)
    )
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    same(migrated, built_of(migrated, tmp_path / "built", Stub(OTHER, **of_stub), wanted))
    assert list(migrated.verify(apart=False)) == []
    assert (done.changed, done.version, done.resumed) == (True, last.number, 0)
    assert (done.built.added, sum(steps)) == (18, 18)
    assert (done.before, done.after) == (FINGERPRINT, OTHER)
    assert migrated.versions()[-1].number == last.number + 1
    assert read_origins(index.path) == {"s0": "where"}
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))


def test_earlier_versions_until_they_are_cleaned_up(index, other, tmp_path):
    stub, wanted = other
    before = index.ids()
    old = index.at_this_version()
    done = Migration(index.path, wanted, stub).run()
    with pytest.raises(MemoryIndexError, match=r"index of another model \(eeeeeeeeeeee, not ff"):
        index.search(torch.ones(2, 8), 1)
    with pytest.raises(MemoryIndexError, match=r"open it again"):
        index.delete(["d1"])
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert (earlier.ids(), earlier.fingerprint) == (before, FINGERPRINT)
    assert earlier.search(torch.ones(2, 8), 3) == old.search(torch.ones(2, 8), 3)
    migrated = MemoryIndex.open(index.path)
    migrated.restore(done.version)
    assert (migrated.ids(), migrated.fingerprint) == (before, FINGERPRINT)
    migrated.restore(done.version + 1)
    assert migrated.fingerprint == OTHER
    assert migrated.clean_up(keep_versions=1) > 0
    with pytest.raises(MemoryIndexError, match=rf"version {done.version} is not there"):
        MemoryIndex.open(index.path, version=done.version)
    assert list(migrated.verify(apart=False)) == []


def test_nothing_to_do(index, stub, other):
    present = arguments(fingerprint=FINGERPRINT, settings=index.settings)
    version = index.versions()[-1]
    migration = Migration(index.path, present, stub)
    assert migration.total == 0
    done = migration.run()
    assert (done.changed, done.version, done.built.added) == (False, None, 0)
    assert index.versions()[-1] == version
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))
    changed = Migration(index.path, {**present, "storage": "int8"}, stub).run()
    assert (changed.changed, MemoryIndex.open(index.path).storage) == (True, "int8")


def test_an_empty_index(other, tmp_path):
    stub, wanted = other
    new_index(tmp_path / "index", {})
    assert Migration(tmp_path / "index", wanted, stub).run().changed
    assert MemoryIndex.open(tmp_path / "index").fingerprint == OTHER
    assert MemoryIndex.open(tmp_path / "index").ids() == []


class Interfering(Stub):
    """A compressor before whose calls something happens."""

    def __init__(self, *happening):
        super().__init__(OTHER)
        self.happening = list(happening)

    def __call__(self, documents, *, on_progress):
        if self.happening:
            self.happening.pop(0)()
        return super().__call__(documents, on_progress=on_progress)


def test_what_others_change_meanwhile_is_taken_up(index, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    writer = MemoryIndex.open(index.path)

    def change():
        put(writer, stub, [1, 14], 7)  # one that is compressed already, and one that is not
        writer.delete(["d2", "d15"])
        put(writer, stub, [30])

    def change_again():
        put(writer, stub, [1, 30], 8)
        writer.compact()
        record_origins(index.path, {"new": "origin"})

    model = Interfering(lambda: None, change, change_again)
    done = Migration(index.path, arguments(), model).run()
    migrated = MemoryIndex.open(index.path)
    found = {name: text for name, text, _ in texts(migrated)}
    assert found["d1"] == text_of(1, 8)
    assert found["d14"] == text_of(14, 7)
    assert "d30" in found
    assert not {"d2", "d15"} & set(found)
    assert read_origins(index.path) == {"new": "origin"}
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))


@pytest.mark.parametrize(
    "change",
    [
        lambda writer, stub: put(writer, stub, [2], 9),
        lambda writer, stub: put(writer, stub, [40]),
        lambda writer, stub: writer.delete(["d1"]),
        lambda writer, stub: writer.restore(2),
    ],
    ids=["replace", "add", "delete", "restore"],
)
def test_a_change_between_the_last_look_and_the_commit(index, stub, tmp_path, monkeypatch, change):
    monkeypatch.setattr(gate, "_PATIENCE", 0.0)  # of who does not know that there is a migration
    real, calls = migrating.switch, []

    def late(old, new):
        calls.append(old.version)
        if len(calls) == 1:
            change(MemoryIndex.open(index.path), stub)
            assert not real(old, new)
            return False
        return real(old, new)

    monkeypatch.setattr(migrating, "switch", late)
    done = Migration(index.path, arguments(), Stub(OTHER)).run()
    assert len(calls) == 2
    assert done.version == calls[1] > calls[0]
    migrated = MemoryIndex.open(index.path)
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))
    files = {each.name for each in Path(index.path, "data").iterdir()}
    migrated.clean_up(keep_versions=1, unfinished=True)
    left = {each.name for each in Path(index.path, "data").iterdir()}
    assert len(left) < len(files)
    assert list(migrated.verify(apart=False)) == []


def test_writers_and_readers_go_on_until_the_switch(index, stub, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 3)
    acknowledged = {name: text for name, text, _ in texts(index)}
    failures, reads = [], []
    done = threading.Event()

    def write():
        writer = MemoryIndex.open(index.path)
        number = 100
        while not done.is_set():
            number += 1
            name, version = 100 + number % 7, number
            try:
                if number % 5 == 0:
                    writer.delete([f"d{name}"], missing_ok=True)
                    acknowledged.pop(f"d{name}", None)
                else:
                    put(writer, Stub(), [name], version)
                    acknowledged[f"d{name}"] = text_of(name, version)
            except MemoryIndexError as error:
                failures.append(str(error))
                return
            done.wait(0.2)

    def read():
        reader = MemoryIndex.open(index.path)
        while not done.is_set():
            try:
                reads.append(reader.search(torch.ones(2, 8), 1, ids=["d1"])[0][0].text)
            except MemoryIndexError as error:
                failures.append(str(error))
                return

    threads = [threading.Thread(target=each) for each in (write, read)]
    for thread in threads:
        thread.start()
    try:
        Migration(index.path, arguments(), Stub(OTHER)).run()
    finally:
        done.wait(0.3)  # the writer finds the other index
        done.set()
        for thread in threads:
            thread.join()
    assert {name: text for name, text, _ in texts(MemoryIndex.open(index.path))} == acknowledged
    assert all("index of another model" in each for each in failures)
    assert set(reads) <= {text_of(1)[:40], text_of(1)[40:]}
    assert reads


MIGRATOR = """
import os, signal, sys
from clara.sync import migrating
from tests.clara.sync.conftest import Stub
from tests.clara.sync.test_migrating import OTHER, arguments

class Dying(Stub):
    def __call__(self, documents, *, on_progress):
        if self.calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(documents, on_progress=on_progress)

migrating.BATCH = 4
migrating.Migration(sys.argv[1], arguments(), Dying(OTHER)).run()
"""


@pytest.fixture
def killed(warm, index):
    """Migrate in a process that kills itself with -9 before a call of its compressor."""

    def run(calls):
        command = [warm().python, "-c", MIGRATOR, index.path, str(calls)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run


def test_killed_twice_and_gone_on_with(index, killed, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    before = texts(index)
    killed(2)
    assert texts(index) == before
    put(index, stub, [0], 3)
    killed(1)
    writer = MemoryIndex.open(index.path)
    assert writer.fingerprint == FINGERPRINT
    put(writer, stub, [4], 4)
    model = Stub(OTHER)
    done = Migration(index.path, arguments(), model).run()
    # Eight documents by the first and four by the second, and one of each was replaced.
    assert (done.resumed, done.built.added, len(model.seen)) == (10, 8, 8)
    migrated = MemoryIndex.open(index.path)
    earlier = MemoryIndex.open(index.path, version=done.version)
    assert texts(migrated) == texts(earlier)
    same(migrated, built_of(earlier, tmp_path / "built", Stub(OTHER), arguments()))


@pytest.mark.parametrize(
    ("function", "compressed"),
    [("MemoryIndex.upsert", 18), ("Journal.end", 18), ("switch", 0), ("shutil.rmtree", 0)],
)
def test_ended_at_a_step_and_gone_on_with(index, monkeypatch, function, compressed):
    before = texts(index)

    def ended(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"clara.sync.migrating.{function}", ended)
        with pytest.raises(KeyboardInterrupt):
            Migration(index.path, arguments(), Stub(OTHER)).run()
        assert texts(MemoryIndex.open(index.path)) == before
    done = Migration(index.path, arguments(), Stub(OTHER)).run()
    assert done.built.added == compressed
    assert done.changed == (function != "shutil.rmtree")  # that came after the commit
    assert texts(MemoryIndex.open(index.path)) == before
    assert not os.path.exists(os.path.join(index.path, gate.FOLDER))


def test_a_damaged_text_is_named_and_nothing_lost(index, other, tmp_path):
    stub, wanted = other
    text = text_of(8).encode()[:40]
    (file,) = [each for each in Path(index.path, "data").iterdir() if text in each.read_bytes()]
    content = file.read_bytes()
    file.write_bytes(content.replace(text, b"d" + text[1:]))
    with pytest.raises(MemoryIndexError, match=r"document 'd8#0' \(row \d+\) is damaged"):
        Migration(index.path, wanted, stub).run()
    assert MemoryIndex.open(index.path).fingerprint == FINGERPRINT
    put(MemoryIndex.open(index.path), Stub(), [8], 2)
    assert Migration(index.path, wanted, stub).run().changed
    assert dict(each[:2] for each in texts(MemoryIndex.open(index.path)))["d8"] == text_of(8, 2)


def test_a_document_that_the_model_refuses(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    index.upsert(stub([Document("x", "unreada")], on_progress=print))
    model, wanted = other
    monkeypatch.setattr(
        Stub,
        "__call__",
        lambda self, documents, *, on_progress, real=Stub.__call__: real(
            self,
            [Document(d.id, d.text.replace("unreada", "unreadable"), d.title) for d in documents],
            on_progress=on_progress,
        ),
    )
    line = r"index: document 'x' is unreadable; the index stays as it is"
    with pytest.raises(DataError, match=line):
        Migration(index.path, wanted, model).run()
    assert index.fingerprint == FINGERPRINT
    index.delete(["x"])
    again = Stub(OTHER)
    assert Migration(index.path, wanted, again).run().resumed == 16
    assert len(again.seen) == 2


def test_a_chunk_with_the_id_of_another_document(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "BATCH", 4)
    index.upsert(stub([Document("d2#9", "abc")], on_progress=print))
    _, wanted = other
    with pytest.raises(MemoryIndexError, match=r"chunk of a document would have the id of docu"):
        Migration(index.path, wanted, Stub(OTHER, chunk=4)).run()
    assert index.fingerprint == FINGERPRINT
    index.delete(["d2#9"])
    assert Migration(index.path, wanted, Stub(OTHER, chunk=4)).run().changed


def test_two_at_once(index, other):
    stub, wanted = other
    with (
        folders.only_migration(index.path),
        pytest.raises(MemoryIndexError, match="another process is migrating it at this moment"),
    ):
        Migration(index.path, wanted, stub).run()
    assert Migration(index.path, wanted, stub).run().changed


def half_done(index, fingerprint=OTHER):
    """A migration to a model that fails at the end."""
    model = Stub(fingerprint)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrating, "switch", lambda old, new: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Migration(index.path, arguments(fingerprint=fingerprint), model).run()


def test_a_migration_to_another_model_begins_anew(index, other):
    stub, wanted = other
    half_done(index, "d" * 64)
    done = Migration(index.path, wanted, stub).run()
    assert (done.resumed, done.built.added) == (0, 18)
    assert MemoryIndex.open(index.path).fingerprint == OTHER


def test_a_half_done_migration_is_removed(index, stub, monkeypatch):
    folder = os.path.join(index.path, gate.FOLDER)
    half_done(index)
    index.clean_up(keep_versions=1)
    assert os.path.exists(folder)  # it may be gone on with
    with folders.only_migration(index.path):
        index.clean_up(keep_versions=1, unfinished=True)
        assert os.path.exists(folder)  # somebody does
    assert index.clean_up(keep_versions=1, unfinished=True) > 0
    assert not os.path.exists(folder)
    half_done(index)
    monkeypatch.setattr(folders, "_WEEK", -1.0)
    index.clean_up(keep_versions=1)
    assert not os.path.exists(folder)
    half_done(index)
    present = arguments(fingerprint=FINGERPRINT, settings=index.settings)
    assert not Migration(index.path, present, stub).run().changed
    assert not os.path.exists(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "journal.jsonl").write_text('{"begun": 3}\n'),
        lambda folder: (folder / "journal.jsonl").write_text("[" * 100_000 + "\n"),
        lambda folder: (folder / "journal.jsonl").unlink(),
        lambda folder: next((folder / "index" / "_versions").iterdir()).write_bytes(b"x"),
    ],
    ids=["another journal", "a deep one", "no journal", "no index"],
)
def test_a_half_done_migration_that_is_damaged_is_done_again(index, other, damage):
    stub, wanted = other
    half_done(index)
    damage(Path(index.path, gate.FOLDER))
    done = Migration(index.path, wanted, stub).run()
    assert done.built.added == 18
    assert list(MemoryIndex.open(index.path).verify(apart=False)) == []


def test_a_journal_that_was_cut_off(index, other):
    stub, wanted = other
    half_done(index)
    journal = Path(index.path, gate.FOLDER, "journal.jsonl")
    with open(journal, "a") as file:
        file.write('{"begun": ["d1')
    assert Migration(index.path, wanted, stub).run().built.added == 0


def test_a_folder_that_is_a_link_is_not_followed(index, other, tmp_path):
    stub, wanted = other
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "index").write_text("precious")
    os.symlink(tmp_path / "elsewhere", os.path.join(index.path, gate.FOLDER))
    with pytest.raises(MemoryIndexError, match="beginning the migration failed"):
        Migration(index.path, wanted, stub).run()
    index.clean_up(keep_versions=1, unfinished=True)
    assert (tmp_path / "elsewhere" / "index").read_text() == "precious"


def test_a_file_system_without_links(index, other, monkeypatch):
    stub, wanted = other
    before = texts(index)

    def no_links(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(folders.os, "link", no_links)
    Migration(index.path, wanted, stub).run()
    assert texts(MemoryIndex.open(index.path)) == before


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_formats(stub, other, tmp_path, version):
    model, wanted = other
    identity = None if version == 1 else "identity"
    header = Header(FINGERPRINT, 2, 8, torch.float32, {"overflow": "chunk"}, identity=identity)
    write_empty(header, str(tmp_path / "index"))
    index = MemoryIndex.open(tmp_path / "index")
    index.add(stub([document(n) for n in range(5)], on_progress=print))
    before = texts(index)
    Migration(index.path, wanted, model).run()
    migrated = MemoryIndex.open(index.path)
    assert texts(migrated) == before
    assert migrated.info()["format_version"] == 3
    assert migrated.columns is None


def test_others_change_it_all_the_time(index, stub, other, monkeypatch):
    monkeypatch.setattr(migrating, "_ROUNDS", 3)
    monkeypatch.setattr(migrating, "switch", lambda old, new: False)
    model, wanted = other
    with pytest.raises(MemoryIndexError, match="others change it all the time; migrate it later"):
        Migration(index.path, wanted, model).run()
    monkeypatch.undo()
    assert Migration(index.path, wanted, model).run().built.added == 0
