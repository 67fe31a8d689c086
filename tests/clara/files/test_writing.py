"""Files and folders are whole or not there, whatever happens to the process that writes them."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from clara.files.writing import (
    new_files,
    new_folder,
    put_back,
    replace_folder,
    replacing,
    replacing_folder,
    write_text,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from clara.files.writing import new_folder, replacing
target = Path(sys.argv[1])
"""
IN_A_FILE = """
with replacing(target, sync=True) as unfinished:
    unfinished.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
IN_A_FOLDER = """
with new_folder(target) as unfinished:
    (unfinished / "one").write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
BETWEEN_FILES = """
from clara.files import writing
moved = os.replace
def once(source, place):
    moved(source, place)
    os.kill(os.getpid(), signal.SIGKILL)
writing.os.replace = once
with writing.new_files(target) as made:
    for name in ("one", "two"):
        (made / name).write_text("new")
"""


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def killed(code, target):
    done = subprocess.run([sys.executable, "-c", KILLED + code, str(target)], timeout=300)
    assert done.returncode == -signal.SIGKILL


def fail_in(context, work, error=RuntimeError):
    with context as unfinished:
        work(unfinished)
        raise error


@pytest.fixture
def usual(tmp_path):
    """The permissions of a file and a folder that are made in the plain way."""
    folder = tmp_path / "usual"
    folder.mkdir()
    (folder / "file").touch()
    return mode(folder / "file"), mode(folder)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_process_leaves_the_old_file_whole(place, existing):
    target = place / "file"
    if existing:
        target.write_text("old")
    killed(IN_A_FILE, target)
    assert (target.read_text() if existing else target.exists()) == ("old" if existing else False)
    (left,) = {*names(place)} - {"file"}
    assert left.startswith(".")
    assert left.endswith(".tmp")
    write_text(target, "new")
    assert target.read_text() == "new"


def test_a_killed_process_leaves_no_folder(place):
    killed(IN_A_FOLDER, place / "folder")
    assert not (place / "folder").exists()
    with new_folder(place / "folder") as unfinished:
        (unfinished / "one").write_text("whole")
    assert (place / "folder" / "one").read_text() == "whole"


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_new(place, existing, error):
    target = place / "file"
    if existing:
        target.write_text("old")
    with pytest.raises(error):
        fail_in(replacing(target), lambda unfinished: unfinished.write_text("half"), error)
    assert names(place) == (["file"] if existing else [])
    if existing:
        assert target.read_text() == "old"


@pytest.mark.parametrize("sync", [False, True])
def test_the_new_file_appears_at_the_end(place, usual, sync):
    target = place / "file"
    target.write_text("old")
    with replacing(target, sync=sync) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(place) == ["file"]
    assert mode(target) == usual[0]


def test_private_files_and_folders(place):
    write_text(place / "file", "new", private=True)
    assert mode(place / "file") == 0o600
    with new_folder(place / "folder", private=True):
        pass
    assert mode(place / "folder") == 0o700


def test_a_link_is_replaced_not_what_it_points_to(place):
    (place / "file").write_text("old")
    (place / "link").symlink_to("file")
    write_text(place / "link", "ü\n")
    assert (place / "file").read_text() == "old"
    assert not (place / "link").is_symlink()
    assert (place / "link").read_bytes() == b"\xc3\xbc\n"


def test_a_path_stays_what_it_was_when_the_process_goes_elsewhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    with replacing("file") as unfinished:
        monkeypatch.chdir(tmp_path)
        unfinished.write_text("new")
    assert (place / "file").read_text() == "new"


def test_no_folder_to_write_to(place):
    with pytest.raises(FileNotFoundError):
        write_text(place / "none" / "file", "new")


# Folders


@pytest.mark.parametrize("empty", [False, True])
def test_a_new_folder_appears_at_the_end(place, usual, empty):
    target = place / "folder"
    if empty:
        target.mkdir()
    with new_folder(target) as unfinished:
        (unfinished / "one").write_text("1")
        assert not (target / "one").exists()
    assert names(target) == ["one"]
    assert names(place) == ["folder"]
    assert mode(target) == usual[1]


def test_an_error_leaves_neither_the_folder_nor_its_parents(place):
    with pytest.raises(RuntimeError):
        fail_in(new_folder(place / "a" / "b" / "c"), lambda made: (made / "one").touch())
    assert names(place) == []


def test_new_files_come_together_and_others_stay(tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "one").write_text("old")
    with new_files(tmp_path) as made:
        (made / "one").write_text("new")
        (made / "two").write_text("new")
        assert names(tmp_path) == sorted([made.name, "kept", "one"])
        assert (tmp_path / "one").read_text() == "old"
    found = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert found == {"kept": "old", "one": "new", "two": "new"}


def test_a_process_killed_between_two_files_leaves_both_whole(place):
    for name in ("one", "two"):
        (place / name).write_text("old")
    killed(BETWEEN_FILES, place)
    assert [(place / name).read_text() for name in ("one", "two")] == ["new", "old"]
    with new_files(place) as made:
        (made / "two").write_text("new")
    assert (place / "two").read_text() == "new"


def test_an_error_leaves_the_files_as_they_were(tmp_path):
    (tmp_path / "one").write_text("old")
    with pytest.raises(RuntimeError):
        fail_in(new_files(tmp_path), lambda made: (made / "one").write_text("half"))
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"one": "old"}


def test_parents_in_use_by_others_stay(place):
    with pytest.raises(RuntimeError):
        fail_in(new_folder(place / "a" / "b"), lambda _: (place / "a" / "other").touch())
    assert names(place) == ["a"]
    assert names(place / "a") == ["other"]


def test_a_folder_that_another_process_made_first_is_kept(place):
    making = new_folder(place / "folder")
    (making.__enter__() / "mine").touch()
    (place / "folder").mkdir()
    (place / "folder" / "theirs").touch()
    with pytest.raises(OSError, match="folder"):
        making.__exit__(None, None, None)
    assert names(place) == ["folder"]
    assert names(place / "folder") == ["theirs"]


def folder_of(path, content):
    path.mkdir(parents=True)
    (path / content).write_text(content)
    return path


@pytest.fixture
def replacement(place):
    """Arguments of `replace_folder`: a new folder, an old one, and where that is kept meanwhile."""
    return folder_of(place / "made", "new"), folder_of(place / "folder", "old"), place / "aside"


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_replaces_another_one(place, existing):
    if existing:
        folder_of(place / "folder" / "deep", "old")
    folder_of(place / "made" / "deep", "new")
    replace_folder(place / "made", place / "folder", place / "aside")
    assert names(place) == ["folder"]
    assert names(place / "folder" / "deep") == ["new"]


def test_a_folder_that_is_not_there_replaces_nothing(place, replacement):
    _, target, aside = replacement
    with pytest.raises(FileNotFoundError):
        replace_folder(place / "none", target, aside)
    assert names(target) == ["old"]
    assert names(place) == ["folder", "made"]


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    place, replacement, monkeypatch, error
):
    new, target, _ = replacement
    rename = os.rename

    def failing(old, name):
        if str(old) == str(new):
            raise error
        rename(old, name)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)):
        replace_folder(*replacement)
    assert names(target) == ["old"]
    assert names(new) == ["new"]
    assert names(place) == ["folder", "made"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_only_a_folder_is_replaced_by_a_folder(place, kind):
    folder_of(place / "made", "new")
    target = place / "target"
    if kind == "file":
        target.touch()
    else:
        target.symlink_to(
            place / "none" if kind == "dangling link" else folder_of(place / "x", "x")
        )
    before = names(place)
    with pytest.raises(NotADirectoryError, match="target"):
        replace_folder(place / "made", target, place / "aside")
    assert names(place) == before
    assert target.is_symlink() is (kind != "file")


REPLACED = """
import os, shutil, sys
from clara.files.writing import replace_folder
left = int(sys.argv[4])
def counted(call):
    def before(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return call(*arguments, **options)
    return before
os.rename, shutil.rmtree = counted(os.rename), counted(shutil.rmtree)
replace_folder(*sys.argv[1:4])
"""


@pytest.mark.parametrize(
    ("calls", "left", "whole"),
    [
        (0, ["folder", "made"], "old"),
        (1, ["aside", "made"], "old"),
        (2, ["aside", "folder"], "new"),
        (3, ["folder", "made"], "new"),
        (4, ["folder"], "new"),
    ],
)
def test_a_kill_never_costs_the_only_whole_folder(place, replacement, calls, left, whole):
    new, target, aside = replacement
    command = [sys.executable, "-c", REPLACED, *map(str, replacement), str(calls)]
    done = subprocess.run(command, timeout=300)
    assert done.returncode == (0 if calls == 4 else -signal.SIGKILL)
    assert names(place) == left
    if aside.exists():
        assert names(aside) == ["old"]
        put_back(aside, target, new)
    assert not aside.exists()
    assert names(target) == [whole]


@pytest.mark.parametrize("existing", [False, True])
def test_a_new_folder_takes_the_place_of_an_old_one_at_the_end(place, usual, existing):
    target = place / "deep" / "folder"
    if existing:
        folder_of(target, "old")
    with replacing_folder(target) as unfinished:
        (unfinished / "new").write_text("1")
        assert not target.exists() if not existing else names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(target.parent) == ["folder"]
    assert mode(target) == usual[1]


@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_the_old_folder(place, existing):
    target = place / "deep" / "folder"
    if existing:
        folder_of(target, "old")
    with pytest.raises(RuntimeError):
        fail_in(replacing_folder(target), lambda made: (made / "new").touch())
    assert names(place) == (["deep"] if existing else [])
    if existing:
        assert names(target) == ["old"]
        assert names(target.parent) == ["folder"]


REPLACING = """
import os, signal, sys
from clara.files import writing
left = int(sys.argv[2])
rename = os.rename
def counted(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*arguments)
os.rename = counted
with writing.replacing_folder(sys.argv[1]) as unfinished:
    (unfinished / "new").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_killed_replacement_is_finished_by_the_next_one(place, renames):
    target = folder_of(place / "folder", "old")
    command = [sys.executable, "-c", REPLACING, str(target), str(renames)]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    aside = place / ".replaced-folder"
    assert target.exists() is (renames != 1)
    assert aside.exists() is (renames != 0)
    with pytest.raises(RuntimeError):
        fail_in(replacing_folder(target), lambda made: None)
    assert names(target) == (["new"] if renames == 2 else ["old"])
    assert not aside.exists()
    with replacing_folder(target) as unfinished:
        (unfinished / "newer").touch()
    assert names(target) == ["newer"]
