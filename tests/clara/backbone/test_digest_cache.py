"""The cache of digests of backbones."""

import json
import os
import shutil
import time

import pytest
import torch

from clara.backbone import digest as digests
from clara.backbone import digest_cache
from clara.backbone.loading import backbone_digest

from .stored_backbones import rewrite, written


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


@pytest.fixture
def settled(tmp_path):
    """A backbone whose files were written a while ago."""
    folder = written(tmp_path / "first")
    for file in folder.iterdir():
        os.utime(file, (time.time() - 60, time.time() - 60))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Grows with each reading of weights."""
    made = []
    read = digests.hash_tensors
    monkeypatch.setattr(
        digests, "hash_tensors", lambda *rest: made.append(1) or read(*rest), raising=True
    )
    return made


def test_a_digest_is_kept(settled, reads, tmp_path):
    first = backbone_digest(str(settled))
    assert backbone_digest(str(settled)) == first
    link = tmp_path / "link"
    link.symlink_to(settled)
    assert backbone_digest(str(link)) == first
    assert len(reads) == 1


@pytest.mark.parametrize("what", ["time", "inode", "size", "path", "config.json"])
def test_files_that_changed_are_read_again(settled, reads, tmp_path, what):
    backbone_digest(str(settled))
    file = settled / "model.safetensors"
    entry = file.stat()
    if what == "time":
        os.utime(file, (1, 1))
    elif what == "inode":
        shutil.copy2(file, tmp_path / "copy")
        os.replace(tmp_path / "copy", file)
        assert file.stat().st_mtime_ns == entry.st_mtime_ns
    elif what == "size":
        rewrite(settled, lambda weights: {**weights, "extra": torch.zeros(1)})
        os.utime(file, ns=(entry.st_mtime_ns, entry.st_mtime_ns))
    elif what == "path":
        settled = settled.rename(tmp_path / "moved")
    else:
        os.utime(settled / what, (1, 1))
    backbone_digest(str(settled))
    assert len(reads) == 2


@pytest.mark.parametrize("ahead", [0, 1])
def test_files_written_just_now_may_change_within_one_tick(settled, reads, cache, ahead):
    """Of the clock, which a file server may have ahead of ours."""
    os.utime(settled / "model.safetensors", (time.time() + ahead, time.time() + ahead))
    backbone_digest(str(settled))
    assert not cache.exists()
    backbone_digest(str(settled))
    assert len(reads) == 2


def test_files_that_change_while_they_are_read_are_not_kept(settled, monkeypatch, cache):
    read = digests.hash_tensors

    def replaced(*rest):
        os.utime(settled / "model.safetensors", (2, 2))
        return read(*rest)

    monkeypatch.setattr(digests, "hash_tensors", replaced)
    backbone_digest(str(settled))
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', "\udcff"])
def test_a_damaged_cache_is_no_error(settled, reads, cache, content):
    first = backbone_digest(str(settled))
    (entry,) = cache.iterdir()
    sound = entry.read_bytes()
    entry.write_text(content, errors="surrogateescape")
    assert backbone_digest(str(settled)) == first
    assert len(reads) == 2
    assert entry.read_bytes() == sound


def test_a_cached_digest_that_is_none_is_not_believed(settled, cache):
    first = backbone_digest(str(settled))
    (entry,) = cache.iterdir()
    for wrong in ("x", None, 7, first[:-1]):
        entry.write_text(json.dumps({**json.loads(entry.read_text()), "digest": wrong}))
        assert backbone_digest(str(settled)) == first


def test_a_cache_that_cannot_be_written_is_no_error(settled, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "file"))
    assert backbone_digest(str(settled)) == backbone_digest(str(settled))


def test_a_user_without_a_home_folder_has_no_cache(settled, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    expected = backbone_digest(str(settled))
    monkeypatch.delenv("CLARA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(digest_cache.Path, "home", fail)
    assert backbone_digest(str(settled)) == expected


def test_nothing_is_left_of_a_failed_writing(settled, cache, monkeypatch):
    def fail(*rest):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(digest_cache.os, "replace", fail)
        backbone_digest(str(settled))
    assert list(cache.iterdir()) == []


def test_digests_of_deleted_backbones_are_dropped(settled, cache, tmp_path):
    other = shutil.copytree(settled, tmp_path / "other")
    backbone_digest(str(other))
    shutil.rmtree(other)
    backbone_digest(str(settled))
    (entry,) = cache.iterdir()
    assert json.loads(entry.read_text())["files"][0][0] == str(settled / "config.json")
