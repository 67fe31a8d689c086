"""Paths of indexes, and what a `create` that fails leaves behind: nothing."""

import os

import lance
import pytest

from clara.index import MemoryIndex, MemoryIndexError
from clara.index.folders import bytes_on_disk, is_vacant

FIELDS = {"fingerprint": "f" * 64, "memory_tokens": 2, "hidden_size": 8}

ODD = [
    " lead",
    "trail ",
    "sp ace",
    "per%20cent",
    "per%zz",
    "h#sh",
    "q?uery&a=b",
    "back\\slash",
    "st*r",
    "s3:",
    "s3:bucket",
    "file:",
    "C:",
    "a:b",
    "-x",
    "--output",
    "no~tilde",
    "~nobody-of-this-name",
    "...",
    "..hidden",
    "a..b",
    "p|pe",
    "[a]{b}",
    "'\"`^<>@!$;",
    "ünï 日本 😀",
    "e\u0301",
    "\u2028",
    "\u202e",
    "x" * 200,
    "index.lance",
    b"bytes",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_work(tmp_path, monkeypatch, make_documents, name):
    monkeypatch.chdir(tmp_path)
    index = MemoryIndex.create(name, **FIELDS)
    index.add(make_documents("ab"))
    monkeypatch.chdir("/")
    index.add(make_documents("c"))
    absolute = os.path.join(str(tmp_path), os.fsdecode(name))
    assert index.path == absolute
    assert MemoryIndex.open(absolute).ids() == ["a", "b", "c"]
    assert os.listdir(tmp_path) == [os.fsdecode(name)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\tb", r"the control character '\\t'"),
        ("a\nb/index", r"the control character '\\n'"),
        ("\r", r"the control character '\\r'"),
        ("a\x1b[31m", r"the control character '\\x1b'"),
        ("a\x7f", r"the control character '\\x7f'"),
        ("a\x00b", r"the control character '\\x00'"),
        (b"a\xff", "a byte that is not UTF-8"),
    ],
)
def test_names_that_lance_cannot_have_are_refused(tmp_path, monkeypatch, name, shown):
    monkeypatch.chdir(tmp_path)
    message = f"holds {shown}, which Lance does not allow in a path"
    for use in (lambda: MemoryIndex.create(name, **FIELDS), lambda: MemoryIndex.open(name)):
        with pytest.raises(MemoryIndexError, match=message) as caught:
            use()
        assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_a_working_folder_that_lance_cannot_have(tmp_path, monkeypatch):
    (tmp_path / "a\tb").mkdir()
    monkeypatch.chdir(tmp_path / "a\tb")
    with pytest.raises(MemoryIndexError, match=r"'index', which is '.*a\\tb/index', holds"):
        MemoryIndex.create("index", **FIELDS)
    assert os.listdir() == []


def test_the_home_folder_is_expanded(tmp_path, monkeypatch, make_documents):
    monkeypatch.setenv("HOME", str(tmp_path))
    index = MemoryIndex.create("~/index", **FIELDS)
    assert index.path == str(tmp_path / "index")


def test_another_type_is_no_path():
    with pytest.raises(TypeError):
        MemoryIndex.open(3)


def everything(folder):
    return sorted(
        os.path.relpath(os.path.join(where, name), folder)
        for where, folders, files in os.walk(folder)
        for name in folders + files
    )


@pytest.mark.parametrize("target", ["index", "a/b/index", "there/index", "there/a/index"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("begun", [False, True])
def test_a_failed_create_leaves_nothing(tmp_path, monkeypatch, target, error, begun):
    (tmp_path / "there").mkdir()
    before = everything(tmp_path)
    real = lance.write_dataset

    def failing(*arguments, **options):
        if begun:
            real(*arguments, **options)
        raise error

    monkeypatch.setattr(lance, "write_dataset", failing)
    with pytest.raises((MemoryIndexError, KeyboardInterrupt)):
        MemoryIndex.create(tmp_path / target, **FIELDS)
    assert everything(tmp_path) == before


def test_parents_that_cannot_be_made_leave_nothing(tmp_path):
    (tmp_path / "file").touch()
    for target in ("file/index", "new/" + "x" * 300 + "/index", "y" * 300):
        with pytest.raises(MemoryIndexError) as caught:
            MemoryIndex.create(tmp_path / target, **FIELDS)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_another_process_fills_first_is_left_alone(tmp_path, monkeypatch):
    target = tmp_path / "new" / "index"
    real = lance.write_dataset

    def filled_meanwhile(*arguments, **options):
        monkeypatch.setattr(lance, "write_dataset", real)
        MemoryIndex.create(target, **FIELDS)
        return real(*arguments, **options)

    monkeypatch.setattr(lance, "write_dataset", filled_meanwhile)
    with pytest.raises(MemoryIndexError, match="exists already"):
        MemoryIndex.create(target, **FIELDS)
    assert os.listdir(target.parent) == ["index"]
    assert MemoryIndex.open(target).ids() == []


def test_an_error_while_writing_is_named_also_if_another_process_was_first(tmp_path, monkeypatch):
    target = tmp_path / "index"

    def full(*arguments, **options):
        target.mkdir()
        (target / "theirs").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.raises(MemoryIndexError, match="No space left on device"):
        MemoryIndex.create(target, **FIELDS)
    assert os.listdir(tmp_path) == ["index"]
    assert os.listdir(target) == ["theirs"]


def test_where_a_new_index_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "full" / "inner")
    found = {name: is_vacant(str(tmp_path / name)) for name in ("none", *os.listdir(tmp_path))}
    assert found == {"none": True, "file": False, "full": False, "broken": False, "link": True}


def test_a_file_that_is_renamed_while_files_are_counted_is_left_out(tmp_path, monkeypatch):
    """Lance writes a manifest under another name first."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").write_bytes(b"12345")
    (tmp_path / "data" / "renamed").write_bytes(b"123")
    real = os.path.getsize

    def late(file):
        (tmp_path / "data" / "renamed").unlink(missing_ok=True)
        return real(file)

    monkeypatch.setattr(os.path, "getsize", late)
    assert bytes_on_disk(str(tmp_path)) == 5
