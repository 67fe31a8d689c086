"""Where views lie: who may read them, who writes them when, and what is left of them."""

import errno
import gc
import os
import shutil
import stat
import threading
import weakref
from pathlib import Path

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError, ranking
from clara.index.views import building, choice
from clara.index.views.choice import make_view
from clara.index.views.rule import USUAL


def queries(count=3):
    return torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def index(make_index, make_documents):
    made = make_index()
    made.add(make_documents([f"d{number}" for number in range(40)]))
    return made


@pytest.fixture
def elsewhere(index, tmp_path):
    """The index, with another folder for views."""
    return MemoryIndex.open(index.path, views=tmp_path / "cache")


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_who_waits_takes_the_view_of_the_one_who_was_first(index, monkeypatch):
    built, begun, go_on = [], threading.Event(), threading.Event()
    real = choice.build_view

    def slow(*given, **more):
        built.append(1)
        begun.set()
        assert go_on.wait(60)
        real(*given, **more)

    def paused(_):
        go_on.set()  # the second one does wait
        threading.Event().wait(0.01)

    monkeypatch.setattr(choice, "build_view", slow)
    monkeypatch.setattr(choice.time, "sleep", paused)
    contents, paths = index._current(), []
    threads = [
        threading.Thread(target=lambda: paths.append(make_view(contents, USUAL).path))
        for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert built == [1]
    assert paths == [index.check_view().path] * 2


def test_who_waits_in_vain_builds(index, monkeypatch):
    """As when the one who was first was killed, or holds the folder for ever."""
    folder = Path(index.path, "_views")
    folder.mkdir()
    monkeypatch.setattr(choice, "_PATIENCE", 0.1)
    with choice._turn(str(folder)) as waited:
        assert not waited
        made = index.build_view()
    assert index.check_view() == made


def test_room_is_taken_before_rows_are_read(index, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(building.os, "posix_fallocate", full)
        patched.setattr(building._Writer, "_write_rows", None)
        with pytest.raises(MemoryIndexError, match="No space left on device"):
            index.build_view()
    assert list(Path(index.path, "_views").iterdir()) == []

    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(building.os, "posix_fallocate", unknown)
    assert index.build_view() == index.check_view()


def test_nobody_may_write_to_a_view_and_who_may_read_the_index_may_read_it(index):
    os.chmod(index.path, 0o755)
    made = index.build_view()
    assert mode_of(made.path) == 0o444
    os.chmod(index.path, 0o700)
    assert index.build_view() == made  # takes the place of the other one
    assert mode_of(made.path) == 0o400
    assert index.remove_views() == made.size


def test_a_view_elsewhere_is_private(index, elsewhere):
    os.chmod(index.path, 0o755)  # in a folder that perhaps only its owner may look into
    assert mode_of(elsewhere.build_view().path) == 0o400


def test_an_index_that_was_removed_does_not_come_back(index, monkeypatch):
    real = choice.source_of

    def removed(*given):
        shutil.rmtree(index.path)
        return real(*given)

    monkeypatch.setattr(choice, "source_of", removed)
    with pytest.raises(MemoryIndexError, match=r"building the view failed: No such file"):
        index.build_view()
    assert not os.path.exists(index.path)


def test_upkeep_removes_views_in_another_folder_too(elsewhere, tmp_path):
    cache = tmp_path / "cache"
    for tidy in (elsewhere.compact, lambda: elsewhere.clean_up(keep_versions=1)):
        made = elsewhere.build_view()
        kept = cache / f"{'0' * 16}-1-{'0' * 16}.view1"  # of another index
        kept.touch()
        elsewhere.delete([elsewhere.ids()[0]])
        freed = tidy()
        assert list(cache.iterdir()) == [kept]
    assert freed >= made.size


def test_a_view_that_is_gone_is_not_mapped_for_ever(index):
    index.build_view()
    opened = MemoryIndex.open(index.path)
    opened.search(queries(), 2)
    view = weakref.ref(opened._alone[1])
    opened.ids()
    gc.disable()
    try:
        opened.search(queries(), 2)
        assert view() is None
    finally:
        gc.enable()


def test_a_folder_in_the_place_of_a_view_is_told_before_anything_is_written(index, monkeypatch):
    made = index.build_view()
    expected = [[hit.id for hit in hits] for hits in index.search(queries(), 2)]
    os.remove(made.path)
    os.mkdir(made.path)
    monkeypatch.setattr(building, "replacing", None)
    with pytest.raises(
        MemoryIndexError, match=f"building the view failed: Is a directory: {made.path}"
    ):
        index.build_view()
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)
    with pytest.warns(UserWarning, match="not a file|read into RAM: Is a directory"):
        hits = MemoryIndex.open(index.path).search(queries(), 2)
    assert [[hit.id for hit in each] for each in hits] == expected


def test_an_empty_name_is_no_folder(index):
    with pytest.raises(MemoryIndexError, match="the folder for views has an empty name"):
        MemoryIndex.open(index.path, views="")
