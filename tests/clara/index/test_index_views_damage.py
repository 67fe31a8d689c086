"""Whatever is wrong with a view, a search finds what is in the index, and keeps what is whole."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, ranking
from clara.index.catalog import Catalog
from clara.index.views import layout, mapped
from clara.index.views.choice import source_of

SHAPE = (2, 8)


def queries(count=3, seed=9):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def found(index):
    return [[(hit.id, hit.score) for hit in hits] for hits in index.search(queries(), 4)]


@pytest.fixture
def index(make_index, make_documents):
    made = make_index()
    made.add(make_documents([f"d{number}" for number in range(60)]))
    return made


@pytest.fixture
def expected(index):
    return found(MemoryIndex.open(index.path, views=False))


def put(file, content):
    """What is mapped must not change: another file takes its place."""
    Path(file).unlink()
    Path(file).write_bytes(content)


def flipped(file, place):
    content = bytearray(Path(file).read_bytes())
    content[place] ^= 1
    put(file, content)


def test_a_version_is_named_by_what_is_open_not_by_what_lies_there_now(index):
    """A copy was changed apart, and takes the place of the index that somebody has open."""
    apart = Path(index.path).with_name("apart")
    shutil.copytree(index.path, apart)
    index.delete(["d1"])
    MemoryIndex.open(apart).delete(["d2"])
    assert "d1" not in index.ids()
    old = MemoryIndex.open(index.path, version=index._snapshot.version)
    contents = old._current()
    source = source_of(contents.snapshot, contents)
    shutil.move(index.path, apart.with_name("before"))
    shutil.move(apart, index.path)
    now = MemoryIndex.open(index.path)
    assert now._snapshot.version == old._snapshot.version
    after = source_of(contents.snapshot, contents)
    assert after == source
    assert after.manifest != source_of(now._snapshot, now._current()).manifest
    with suppress(MemoryIndexError):  # its files are gone
        old.build_view()
    assert now.check_view() is None
    assert "d1" in now.ids()
    assert found(MemoryIndex.open(now.path)) == found(MemoryIndex.open(now.path, views=False))


def test_a_damaged_view_that_cannot_be_removed(index, expected, monkeypatch):
    made = index.build_view()
    flipped(made.path, made.size // 2)
    opened = MemoryIndex.open(index.path)

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patched.setattr(ranking.os, "remove", refused)
        assert found(opened) == expected
        assert found(opened) == expected
    assert [str(each.message).endswith("it is not used") for each in said] == [True, True]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_failure_that_passes_leaves_a_view_where_it_is(index, expected, monkeypatch, number):
    made = index.build_view()
    inode = os.stat(made.path).st_ino
    opened, real = MemoryIndex.open(index.path), os.open

    def fails(path, *given, **more):
        if str(path) == made.path:
            raise OSError(number, os.strerror(number), path)
        return real(path, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(mapped.os, "open", fails)
        with pytest.warns(UserWarning, match=f"read into RAM: {os.strerror(number)}"):
            assert found(opened) == expected
        with pytest.raises(MemoryIndexError, match=f"cannot be opened: {os.strerror(number)}"):
            opened.check_view()
    assert os.stat(made.path).st_ino == inode
    assert index.check_view() == made


def test_memory_that_is_short_leaves_a_view_where_it_is(index, expected, monkeypatch):
    made = index.build_view()
    inode = os.stat(made.path).st_ino

    def fails(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patched:
        patched.setattr(mapped.mmap, "mmap", fails)
        with pytest.warns(UserWarning, match="Cannot allocate memory"):
            assert found(MemoryIndex.open(index.path)) == expected
    assert os.stat(made.path).st_ino == inode


def test_a_view_that_is_cut_off_while_it_is_opened(index, expected, monkeypatch):
    made = index.build_view()
    whole = Path(made.path).read_bytes()
    put(made.path, whole)
    real = mapped.decode_head

    def cut(*given):
        head = real(*given)
        os.truncate(made.path, 0)
        return head

    with monkeypatch.context() as patched:
        patched.setattr(mapped, "decode_head", cut)
        with pytest.raises(MemoryIndexError, match="was cut off while it was opened"):
            MemoryIndex.open(index.path).check_view()
    with pytest.warns(UserWarning, match="not a view of an index, or truncated"):
        assert found(MemoryIndex.open(index.path)) == expected
    assert Path(made.path).read_bytes() == whole


def test_damaged_positions_are_noticed_and_written_anew(make_older, make_documents, store_again):
    index = make_older()
    index.add(make_documents([f"d{number}" for number in range(60)]))
    store_again(index, make_documents(["d3"]))
    index.add(make_documents(["new"]))
    expected = found(MemoryIndex.open(index.path, views=False))
    made = MemoryIndex.open(index.path).build_view()
    whole = Path(made.path).read_bytes()
    head = layout.decode_head(whole[: layout.HEAD_BYTES], len(whole), made.path)
    assert head.source.moved
    flipped(made.path, head.sections["positions"].offset + 8)
    with pytest.warns(UserWarning, match=r"damaged, positions from byte .* it is not used"):
        assert found(MemoryIndex.open(index.path)) == expected
    assert Path(made.path).read_bytes() == whole
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Catalog, "extend", None)
        assert found(MemoryIndex.open(index.path)) == expected


def headed(content, text):
    """A view whose head says something else, and is whole by its checksum."""
    begin = layout._PREFIX.pack(layout.MAGIC, layout.FORMAT, len(text)) + text
    begin = begin.ljust(layout.HEAD_BYTES - 16, b"\0")
    digest = hashlib.blake2b(begin, digest_size=16).digest()
    return begin + digest + content[layout.HEAD_BYTES :]


def fields_with(change):
    def text(fields):
        change(fields)
        return json.dumps(fields).encode()

    return text


@pytest.mark.parametrize(
    "text",
    [
        fields_with(lambda fields: fields["source"].update(width=0)),
        fields_with(lambda fields: fields["source"].update(rows=-1)),
        fields_with(lambda fields: fields["source"].update(rows=10**4299)),
        fields_with(lambda fields: fields["source"].update(rows=True)),
        fields_with(lambda fields: fields["source"].update(dtype=["int8"])),
        fields_with(lambda fields: fields.update(along="x")),
        fields_with(lambda fields: fields.update(along=-5.0)),
        fields_with(lambda fields: fields.update(reach=-99)),
        fields_with(lambda fields: fields.update(reach=float("nan"))),
        fields_with(lambda fields: fields.update(reach=1e30)),
        fields_with(lambda fields: fields.update(checksums=5)),
        fields_with(lambda fields: fields.update(more=1)),
        fields_with(lambda fields: fields.pop("source")),
        lambda _: b"5",
        lambda _: b"[]",
        lambda _: b"[" * 16_000,
        lambda _: b"\xff\xfe",
    ],
)
def test_a_strange_head_is_that_of_no_view(index, expected, text):
    made = index.build_view()
    whole = Path(made.path).read_bytes()
    _, _, length = layout._PREFIX.unpack_from(whole)
    fields = json.loads(whole[layout._PREFIX.size :][:length])
    put(made.path, headed(whole, text(fields)))
    with pytest.warns(UserWarning, match="the head cannot be read; it is not used"):
        assert found(MemoryIndex.open(index.path)) == expected
    assert Path(made.path).read_bytes() == whole
