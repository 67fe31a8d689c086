"""From sources to files."""

import os

import pytest

from clara.corpus import kinds
from clara.corpus.listing import Origin, _fits, list_sources
from clara.data import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder of files, three levels deep."""
    base = tmp_path / "handbook"
    for name in ("b.txt", "a/z.md", "a.txt", "a/deep/c.html", "pic.PNG", "Makefile"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("text")
    for name in (".hidden.txt", ".git/x.txt", "a/.x.md"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("text")
    return base


def ids(listing):
    return [file.id for file in listing.files]


def test_a_folder_is_listed_in_the_order_of_paths(folder, tmp_path):
    listing = list_sources([str(folder)])
    expected = ["a.txt", "a/deep/c.html", "a/z.md", "b.txt"]
    assert ids(listing) == [f"handbook/{name}" for name in expected]
    assert [file.kind for file in listing.files] == ["text", "html", "markdown", "text"]
    assert listing.hidden == 3
    assert listing.others == {".png": 1, "no suffix": 1}
    assert ids(list_sources([f"{folder}/"])) == ids(listing)
    assert ids(list_sources([f"book={folder}"]))[0] == "book/a.txt"


def test_the_working_folder_has_its_own_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert ids(list_sources(["."]))[0] == "handbook/a.txt"
    assert ids(list_sources(["*.txt"])) == ["handbook/a.txt", "handbook/b.txt"]


def test_patterns(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert ids(list_sources(["handbook/**/*.md"])) == ["handbook/a/z.md"]
    assert ids(list_sources(["handbook/a/**"])) == ["a/deep/c.html", "a/z.md"]
    assert ids(list_sources(["handbook/[ab].txt"])) == ["handbook/a.txt", "handbook/b.txt"]
    (folder / "[ab].txt").write_text("a file of that name is meant")
    assert ids(list_sources(["handbook/[ab].txt"])) == ["[ab].txt"]
    assert ids(list_sources(["handbook/a.txt", "handbook/**/c.*"])) == [
        "a.txt",
        "handbook/a/deep/c.html",
    ]


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("a", "**", True),
        ("a/b/c", "**/c", True),
        ("c", "**/c", True),
        ("a/b/c", "a/**/c", True),
        ("a/c", "a/**/c", True),
        ("a/b/c", "a/*/*", True),
        ("a/b/c", "*/c", False),
        ("a/b", "**/a", False),
        ("A", "a", False),
        ("/".join("a" * 60), "/".join(["**"] * 60 + ["b"]), False),  # at once, not in years
    ],
)
def test_what_a_pattern_fits(path, pattern, fits):
    assert _fits(path.split("/"), pattern.split("/")) is fits


def test_a_pattern_looks_only_where_something_can_fit(folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", folder / "a" / "out")
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    assert list_sources([f"{folder}/*.txt"]).failures == []
    assert scanned == [str(folder)]
    assert ids(list_sources([f"{folder}/*/*.md"])) == ["handbook/a/z.md"]
    assert scanned[1:] == [str(folder), str(folder / "a")]
    assert len(list_sources([f"{folder}/**/*.md"]).failures) == 1
    assert len(list_sources([f"{folder}/a/**"]).failures) == 1
    assert len(list_sources([str(folder)]).failures) == 1


def test_links(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "handbook-2").mkdir()  # begins as the source does
    (tmp_path / "handbook-2" / "x.txt").write_text("other")
    links = {
        "in.md": "a/z.md",
        "out.txt": tmp_path / "secret.txt",
        "near.txt": "../handbook-2/x.txt",
        "outside": tmp_path / "handbook-2",
        "loop": folder,
        "a/up": "..",
        "self.txt": "self.txt",
        "nothing.txt": "missing.txt",
    }
    for name, target in links.items():
        os.symlink(target, folder / name)
    os.mkfifo(folder / "pipe.txt")
    listing = list_sources([str(folder)])
    names = ["a.txt", "a/deep/c.html", "a/z.md", "b.txt", "in.md"]
    assert ids(listing) == [f"handbook/{name}" for name in names]
    assert listing.linked_folders == 2
    failed = {os.path.basename(each.where): each.reason for each in listing.failures}
    assert list(failed) == ["near.txt", "nothing.txt", "out.txt", "outside", "pipe.txt", "self.txt"]
    secret = os.path.realpath(tmp_path / "secret.txt")
    assert failed["out.txt"] == f"is a symbolic link that leaves its source, to {secret}"
    assert "leaves its source" in failed["near.txt"]
    assert "leaves its source" in failed["outside"]
    assert failed["self.txt"] == "is a symbolic link to nothing, or to itself"
    assert "is not a file, but a pipe" in failed["pipe.txt"]


def test_a_source_may_be_a_link_itself(folder, tmp_path):
    os.symlink(folder, tmp_path / "manual")
    assert ids(list_sources([str(tmp_path / "manual")]))[0] == "manual/a.txt"


def test_names_that_are_not_utf8(folder):
    with open(os.fsencode(folder) + b"/\xff.txt", "wb") as file:
        file.write(b"text")
    listing = list_sources([str(folder)])
    assert [each.reason for each in listing.failures] == ["the name is not UTF-8"]
    assert len(listing.files) == 4


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["missing.txt"], "^missing.txt: no such file or folder$"),
        (["squad"], "^squad: no such file or folder; a data set of the hub is 'datasets:squad'$"),
        (["owner/name"], "'datasets:owner/name'"),
        (["empty"], "empty: holds nothing to read; what is read: JSON lines"),
        (["handbook/**/*.doc"], "holds nothing to read"),
        (["handbook", "x/handbook"], "are both called 'handbook'; name one with NAME=PATH"),
        (["handbook/pic.PNG", "handbook"], "pic.PNG: is of a kind that is not read"),
        (["handbook\0"], "is not a path"),
        (["pipe"], "pipe: is neither a file nor a folder"),
        ("handbook", "sources must be a list of paths"),
    ],
)
def test_bad_sources(folder, tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "handbook").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    os.mkfifo("pipe")
    (folder / "pic.PNG").write_bytes(b"\x89PNG\0\xff")
    with pytest.raises(DataError, match=message):
        list_sources(sources)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n", "pdf"),
        (b"PAR1...", "parquet"),
        (b"PK\x03\x04....word/document.xml", "docx"),
        (b"\xef\xbb\xbf <!DOCTYPE HTML><p>", "html"),
        (b'{"id": 1}\n', "jsonl"),
        (b"Read me first.\n", "text"),
        (b"PK\x03\x04....xl/", None),
        (b"\x1f\x8b...", None),
        ("text".encode("utf-16"), None),
    ],
)
def test_the_kind_of_a_file_without_suffix(tmp_path, content, kind):
    assert kinds.by_content(content) == kind
    file = tmp_path / "README"
    file.write_bytes(content)
    if kind is not None:
        assert [found.kind for found in list_sources([str(file)]).files] == [kind]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "x.docx").write_bytes(b"")
    monkeypatch.setitem(kinds.EXTRACTED, "docx", "no_such_module")
    with pytest.raises(DataError, match=r"reading DOCX files needs the package .*'\.\[files\]'"):
        list_sources([str(tmp_path)])


def test_links_to_folders_that_are_not_read_in_their_place(folder):
    os.symlink(".git", folder / "history")
    os.symlink("a", folder / "other")
    listing = list_sources([str(folder)])
    (failure,) = listing.failures
    assert failure.where == f"{folder}/history"
    assert failure.reason == "is a symbolic link to a hidden folder, .git, which is not read"
    assert listing.linked_folders == 1
    (failure,) = list_sources([f"{folder}/o*/*.md"]).failures
    assert failure.reason == "is a symbolic link to a, which the pattern does not fit"


def test_names_are_shown_on_one_line(tmp_path):
    (tmp_path / "a\nb.txt").write_text("text")
    os.symlink("nothing", tmp_path / "c\x1b.txt")
    listing = list_sources([f"s={tmp_path}"])
    assert [(file.id, file.shown) for file in listing.files] == [
        ("s/a\nb.txt", f"{tmp_path}/a\\nb.txt")
    ]
    assert listing.failures[0].where == f"{tmp_path}/c\\x1b.txt"


def test_where_sources_lie(folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    listing = list_sources([str(tmp_path / "link"), f"md={folder}/**/*.md", f"{folder}/b.txt"])
    assert listing.origins == {
        "link": Origin(str(folder)),
        "md": Origin(str(folder), "**/*.md"),
        "b.txt": Origin(f"{folder}/b.txt"),
    }


@pytest.mark.parametrize(
    ("origin", "held", "others"),
    [
        (Origin("/a/b"), ["/a/b", "/a/b/c", "/a/b/c/d"], ["/a", "/a/bc", "/a/c"]),
        (Origin("/a/b", "*.md"), ["/a/b/x.md"], ["/a/b/c/x.md", "/a/x.md", "/a/b/x.txt"]),
        (Origin("/a/b", "**/*.md"), ["/a/b/x.md", "/a/b/c/x.md"], ["/a/c/x.md", "/a/b/x"]),
        (Origin("/"), ["/x"], []),
    ],
)
def test_which_files_a_source_holds(origin, held, others):
    assert [path for path in held if not origin.holds(path)] == []
    assert [path for path in others if origin.holds(path)] == []
