"""`clara index view`, and views in `clara search` and `clara ask`."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clara.cli.app import app
from clara.index import MemoryIndex, ranking

QUESTION = "How many rivers has country 3?"


@pytest.fixture
def path(index, tmp_path):
    """A copy of an index, to be changed."""
    shutil.copytree(index, tmp_path / "index")
    return str(tmp_path / "index")


def views_of(path):
    return list(Path(path, "_views").glob("*"))


def test_build_check_and_remove(clara, refused, path):
    line = refused("index", "view", path, "--check")
    assert line == f"error: {path}: has no view of its last version"
    printed = clara("index", "view", path).stdout
    (file,) = views_of(path)
    rows = len(MemoryIndex.open(path))
    assert printed.startswith(f"view written, {rows} rows, ")
    assert printed.endswith(f": {path}\n")
    found = json.loads(clara("index", "view", path, "--check", "--json").stdout)
    size = file.stat().st_size
    assert found == {"index": path, "view": str(file), "rows": rows, "bytes": size}
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.unlink()
    file.write_bytes(content)
    assert f"{file}: damaged, " in refused("index", "view", path, "--check")
    removed = json.loads(clara("index", "view", path, "--remove", "--json").stdout)
    assert removed == {"index": path, "bytes_freed": size}
    assert views_of(path) == []


def test_search_uses_a_view(clara, model, path, tmp_path, monkeypatch):
    given = ("--model", model, "--index", path, "--json", QUESTION)

    def found(command, *more):
        return json.loads(clara(command, *more, *given).stdout)["documents"]

    expected = found("search", "--no-view")
    monkeypatch.setattr(ranking, "VIEWS_FROM_BYTES", 1)
    assert found("search", "--no-view") == expected
    assert views_of(path) == []
    assert found("search", "--view-folder", str(tmp_path / "cache")) == expected
    assert views_of(path) == []
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert found("search") == found("search", "--approximate") == expected
    assert found("ask", "--max-new-tokens", "1") == expected
    assert len(views_of(path)) == 1


def test_a_view_that_cannot_be_used_is_told(model, path):
    Path(path, "_views").symlink_to("elsewhere")
    given = ("--model", model, "--index", path, QUESTION)
    result = CliRunner().invoke(app, ["search", *given])
    assert result.exit_code == 0
    assert f"{path}/_views: a link, not a folder" in result.stderr
    assert result.stdout.count("\n") > 3


def test_a_damaged_view_in_a_folder_below_home_is_told(model, path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = MemoryIndex.open(path, views=tmp_path / "cache").build_view().path
    content = bytearray(Path(made).read_bytes())
    content[-1] ^= 1
    Path(made).unlink()
    Path(made).write_bytes(content[:-8])
    given = ("--model", model, "--index", path, "--view-folder", "~/cache", QUESTION)
    result = CliRunner().invoke(app, ["search", *given])
    assert result.exit_code == 0
    assert made in result.stderr


def test_bad_usage(refused, model, path):
    both = "--check and --remove exclude each other"
    assert both in refused("index", "view", path, "--check", "--remove", code=2)
    given = ("--model", model, "--index", path, QUESTION)
    both = "--no-view and --view-folder exclude each other"
    assert both in refused("search", "--no-view", "--view-folder", "x", *given, code=2)
    for command in (("search", *given), ("index", "view", path)):
        line = refused(*command, "--view-folder", "")
        assert line == "error: the folder for views has an empty name"
