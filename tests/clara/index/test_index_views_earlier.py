"""A view takes over from that of an earlier version, behind which documents were added."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex
from clara.index.contents import Contents
from clara.index.origins import record_origins
from clara.index.views import mapped
from clara.index.views.choice import source_of
from clara.index.views.layout import HEAD_BYTES, sections_of
from clara.index.views.mapped import View
from tests.clara.index.made_views import COUNT, FEW, SHAPE, found, in_ram, memory, queries

ADDED = 200


@pytest.fixture
def read(monkeypatch):
    """How many rows were read of an index whenever its view was written."""
    seen = []
    real = Contents.ranked

    def counted(self, start=0):
        seen.append(0)
        for rows, values, scales in real(self, start):
            seen[-1] += len(rows)
            yield rows, values, scales

    monkeypatch.setattr(Contents, "ranked", counted)
    return seen


@pytest.fixture
def add(make_documents):
    """Add documents to an index."""

    def more(index, count=ADDED, first="e", shape=SHAPE, values=None):
        names = [f"{first}{number}" for number in range(count)]
        values = memory(count, shape, seed=ord(first)) if values is None else values
        index.add(make_documents(names, shape, memory=values))

    return more


def assert_answers(index, wanted):
    """The view is whole, and answers are those of RAM."""
    assert index.check_view().rows == len(index)
    opened = MemoryIndex.open(index.path)
    for k in (1, 10, 700):
        assert found(opened, wanted, k) == found(in_ram(index), wanted, k)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dtype": torch.bfloat16},
        {"storage": "int4", "dtype": torch.bfloat16},
        {"storage": "int8", "shape": (1, 16)},
        {"ranking": "mean", "storage": "int8"},
    ],
    ids=str,
)
def test_only_what_was_added_is_read(filled, add, read, given):
    index = filled(COUNT, **given)
    shape = given.get("shape", SHAPE)
    index.build_view()
    add(index, shape=shape)
    add(index, 1, "f", shape)
    told = []
    made = index.build_view(told.append)
    assert read == [COUNT, ADDED + 1]
    assert sum(told) == made.rows == COUNT + ADDED + 1
    wanted = queries(shape=(1, 8) if given.get("ranking") == "mean" else shape)
    assert_answers(index, wanted)
    assert [each.name for each in Path(made.path).parent.iterdir()] == [Path(made.path).name]


def test_many_additions_one_after_the_other(filled, add, read):
    index = filled(COUNT, dtype=torch.bfloat16)
    index.build_view()
    for first in "efgh":
        add(index, 50, first)
        index.build_view()
    assert read == [COUNT, 50, 50, 50, 50]
    assert_answers(index, queries())


def test_a_search_writes_it_so_too(filled, add, read, monkeypatch):
    monkeypatch.setattr("clara.index.ranking.VIEWS_FROM_BYTES", 1)
    index = filled(COUNT)
    found(index, queries(), 5)
    add(index)
    answers = found(index, queries(), 5)
    assert read == [COUNT, ADDED]
    assert answers == found(in_ram(index), queries(), 5)


@pytest.mark.parametrize("change", ["delete", "replace", "compact"])
def test_other_changes_read_all(filled, add, make_documents, read, change):
    index = filled(FEW)
    index.build_view()
    if change == "delete":
        index.delete(["d7"])
    elif change == "replace":
        index.upsert(make_documents(["d7"], memory=memory(1, seed=5)))
    else:
        index.compact()
    add(index)
    index.build_view()
    assert read == [FEW, len(index)]
    assert_answers(index, queries())


def test_rows_behind_a_deletion_are_taken_over(filled, add, read):
    """They lie elsewhere than in the order of the documents, which the earlier view knows."""
    index = filled(FEW)
    index.delete(["d3", "d260"])
    index.build_view()
    add(index)
    index.build_view()
    assert read == [FEW - 2, ADDED]
    assert_answers(index, queries())


def test_a_version_that_was_restored(filled, add, read):
    """What was added before is gone: no view of it is taken over."""
    index = filled(FEW)
    version = index.versions()[-1].number
    add(index, first="x")
    index.build_view()
    index.restore(version)
    add(index, first="y")
    index.build_view()
    assert read == [FEW + ADDED, FEW + ADDED]
    assert_answers(index, queries())


def test_a_copy_that_was_changed_apart(filled, add, read, tmp_path):
    index = filled(FEW)
    index.build_view()
    shutil.copytree(index.path, tmp_path / "copy")
    copied = MemoryIndex.open(tmp_path / "copy")
    add(index, first="x")
    add(copied, first="y")
    for each in (index, copied):
        each.build_view()
        assert_answers(each, queries())
    assert [rows for rows in read if rows != FEW + ADDED] == [FEW, ADDED, ADDED]


def damage(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.unlink()
    file.write_bytes(data)


@pytest.mark.parametrize("place", [10, HEAD_BYTES + 5, -1])
def test_a_damaged_view_is_passed_over(filled, add, read, place):
    """Its head, its first row, and its last byte."""
    index = filled(FEW)
    damage(Path(index.build_view().path), place)
    add(index)
    index.build_view()
    assert read == [FEW, FEW + ADDED]
    assert_answers(index, queries())


@pytest.mark.parametrize("section", ["exact", "norms", "codes", "factors", "errors", "center"])
def test_nothing_of_a_damaged_view_is_taken_over(filled, add, read, section):
    """What was told of its rows is not told again."""
    index = filled(FEW)
    file = Path(index.build_view().path)
    contents = index._current()
    place = sections_of(source_of(contents.snapshot, contents))[section]
    damage(file, place.offset + place.size - 3)
    add(index)
    told = []
    index.build_view(told.append)
    assert read == [FEW, *([] if section == "exact" else [ADDED]), FEW + ADDED]
    assert sum(told) == FEW + ADDED
    assert min(told) > 0
    assert_answers(index, queries())


@pytest.mark.parametrize("damaged", [False, True])
def test_rows_behind_one_that_is_there_twice_are_taken_over(
    filled, add, read, store_again, damaged
):
    """The earlier view says where all lie, if that is not damaged."""
    index = filled(FEW)
    store_again(index, index.get(["d3"]))
    add(index, 1, "f")
    file = Path(index.build_view().path)
    if damaged:
        contents = index._current()
        damage(file, sections_of(source_of(contents.snapshot, contents))["positions"].offset)
    add(index)
    index.build_view()
    assert read == [FEW + 1, FEW + 1 + ADDED if damaged else ADDED]
    assert_answers(index, queries())


def test_each_block_that_is_taken_over_is_compared_once(filled, add, store_again, monkeypatch):
    index = filled(FEW)
    store_again(index, index.get(["d3"]))
    index.build_view()
    contents = index._current()
    sections = sections_of(source_of(contents.snapshot, contents))
    del sections["checksums"]
    compared, plain = [], mapped.block_checksum
    monkeypatch.setattr(
        mapped, "block_checksum", lambda data: compared.append(len(data)) or plain(data)
    )
    add(index)
    index.build_view()
    # Of the center, which is one block, the first use is to see how far it has moved.
    assert sections["center"].block_count == 1
    assert len(compared) == 1 + sum(section.block_count for section in sections.values())


def test_codes_are_made_anew_where_the_center_has_moved(filled, add, read):
    index = filled(COUNT)
    center = centers_of(index)
    add(index)
    assert torch.equal(centers_of(index), center)
    add(index, COUNT, "x", values=memory(COUNT, seed=3) * -1 - 3)
    moved = centers_of(index)
    assert (moved - center).norm() > 0.3
    assert read == [COUNT, ADDED, COUNT]
    assert_answers(index, queries())


def centers_of(index):
    """The center of the codes of a new view."""
    path = index.build_view().path
    contents = index._current()
    view = View.open(path, source_of(contents.snapshot, contents))
    return view.center()


def test_a_commit_without_rows(filled, read):
    """As when a build records where its sources lie."""
    index = filled(FEW)
    index.build_view()
    record_origins(index.path, {"news": "here"})
    index = MemoryIndex.open(index.path)
    index.build_view()
    assert read == [FEW, 0]
    assert_answers(index, queries())


def test_who_asks_for_a_view_again_has_the_rows_read_again(filled, add, read):
    """Else a view that is wrong, though its checksums are right, would never go."""
    index = filled(FEW)
    index.build_view()
    index.build_view()
    add(index)
    index.build_view()
    index.build_view()
    assert read == [FEW, FEW, ADDED, FEW + ADDED]


def test_large_sections_are_taken_over_in_pieces(filled, add, read, monkeypatch):
    monkeypatch.setattr(mapped, "_COPIED_BYTES", 1)
    index = filled(COUNT, shape=(3, 7))  # rows and blocks that fill no page
    index.build_view()
    add(index, shape=(3, 7))
    index.build_view()
    assert read == [COUNT, ADDED]
    assert_answers(index, queries(shape=(3, 7)))


KILLED = """
import os, sys
from clara.index import MemoryIndex
from clara.index.views import building
def die(*given):
    take_over(*given)
    os.kill(os.getpid(), 9)
take_over, building._Writer._take_over = building._Writer._take_over, die
MemoryIndex.open(sys.argv[1]).build_view()
"""


@pytest.mark.slow
def test_a_killed_builder_leaves_the_earlier_view(filled, add, read):
    index = filled(FEW)
    index.build_view()
    add(index)
    done = subprocess.run([sys.executable, "-c", KILLED, index.path], check=False)
    assert done.returncode == -9
    assert index.check_view() is None
    index.build_view()
    assert read == [FEW, ADDED]
    assert_answers(index, queries())


def test_a_view_that_cannot_be_read_is_passed_over(filled, add, read):
    index = filled(FEW)
    file = index.build_view().path
    os.unlink(file)
    os.mkdir(file)
    add(index)
    index.build_view()
    assert read == [FEW, FEW + ADDED]
