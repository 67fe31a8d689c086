"""A teacher's probabilities on disk."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from clara.training import teacher_cache
from clara.training.settings import SettingsError
from clara.training.teacher_cache import TeacherCache

from . import filling_teacher_cache
from .filling_teacher_cache import MADE_OF, TOP, drawn, key


def fill(cache, numbers):
    for number in numbers:
        cache.add(key(number), *drawn(number))


def assert_kept(cache, numbers):
    for number in numbers:
        tokens, ids, log_probs = drawn(number)
        kept = cache.get(key(number))
        assert kept.tokens.tolist() == tokens
        assert np.array_equal(kept.ids, ids)
        assert np.array_equal(kept.log_probs, log_probs.astype("float16"))


def test_what_was_added_is_read_at_once_and_by_another_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "_ROWS_OF_TOKENS", 20)
    monkeypatch.setattr(teacher_cache, "_ROWS_OF_ANSWERS", 4)
    cache = TeacherCache(tmp_path / "cache", MADE_OF)
    assert len(cache) == 0
    assert cache.get(key(0)) is None
    fill(cache, range(30))
    long = [1] * 50, np.ones((50, TOP)), np.zeros((50, TOP + 1))  # more than a part has room for
    cache.add(key(99), *long)
    assert_kept(cache, range(30))
    # Both write: files of their own.
    other = TeacherCache(tmp_path / "cache", MADE_OF)
    assert len(other) == 31
    assert_kept(other, range(30))
    assert other.get(key(99)).tokens.tolist() == [1] * 50
    fill(other, range(30, 35))
    fill(cache, range(33, 40))
    last = TeacherCache(tmp_path / "cache", MADE_OF)
    assert len(last) == 41
    assert_kept(last, range(40))
    for file in tmp_path.rglob("*.npy"):
        np.load(file, allow_pickle=False)


def test_a_killed_process_leaves_what_it_had_added(tmp_path):
    counts = []
    for _ in range(2):  # the second one goes on
        process = subprocess.Popen(
            [sys.executable, filling_teacher_cache.__file__, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for line in process.stdout:
                if int(line) >= 300 * (1 + len(counts)):
                    break
        finally:
            process.send_signal(signal.SIGKILL)
            said = [int(number) for number in process.communicate()[0].split("\n")[:-1]]
        cache = TeacherCache(tmp_path, MADE_OF)
        assert len(cache) > max([*said, 300 * (1 + len(counts))])
        assert_kept(cache, range(len(cache)))
        counts.append(len(cache))
    assert counts[1] > counts[0] + 200


def test_a_damaged_answer_is_computed_again(tmp_path, capsys):
    cache = TeacherCache(tmp_path, MADE_OF)
    fill(cache, range(5))
    (file,) = tmp_path.glob("*.tokens.npy")
    array = np.load(file, mmap_mode="r+")
    array["ids"][0, 0] += 1
    array.flush()
    again = TeacherCache(tmp_path, MADE_OF)
    assert again.get(key(0)) is None
    assert_kept(again, range(1, 5))
    fill(again, [0])
    assert_kept(TeacherCache(tmp_path, MADE_OF), range(5))
    file.write_bytes(b"no array")
    assert len(TeacherCache(tmp_path, MADE_OF)) == 1
    assert "answers.npy: is damaged, its answers are computed again" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["answers", "tokens"])
def test_an_empty_file_is_damaged(tmp_path, capsys, which):
    fill(TeacherCache(tmp_path, MADE_OF), range(2))
    (file,) = tmp_path.glob(f"*.{which}.npy")
    file.write_bytes(b"")
    again = TeacherCache(tmp_path, MADE_OF)
    assert len(again) == 0
    assert "answers.npy: is damaged, its answers are computed again" in capsys.readouterr().err
    fill(again, range(2))
    assert_kept(TeacherCache(tmp_path, MADE_OF), range(2))


def test_an_unreadable_answer_is_kept_among_others(tmp_path):
    cache = TeacherCache(tmp_path, MADE_OF)
    cache.add_unreadable(key(50))
    fill(cache, range(3))
    cache.add_unreadable(key(51))
    fill(cache, range(3, 5))
    for each in (cache, TeacherCache(tmp_path, MADE_OF)):
        assert len(each) == 7
        assert_kept(each, range(5))
        for number in (50, 51):
            assert each.get(key(number)).tokens.tolist() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train_data": {"examples": 25, "digest": "d2"}},
            r'train_data is {"examples": 24, "digest": "d1"} there and {"examples": 25, .*} here',
        ),
        ({"teacher": "t2"}, 'teacher is "t1" there and "t2" here'),
        ({"prompt": {"system": "", "user": "{memory}"}}, "prompt is {.*Say it.* there"),
        ({"distillation_top": 4}, "distillation_top is 3 there and 4 here"),
    ],
    ids=["data", "teacher", "prompt", "top"],
)
def test_a_cache_of_something_else_is_refused(tmp_path, changed, message):
    TeacherCache(tmp_path, MADE_OF)
    with pytest.raises(SettingsError, match=message) as error:
        TeacherCache(tmp_path, {**MADE_OF, **changed})
    assert str(error.value).startswith(f"teacher_cache {tmp_path}: was made for something else")
    assert str(error.value).endswith("choose another teacher_cache")
    assert "\n" not in str(error.value)


def test_folders_that_are_no_cache(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds other files; choose an empty folder"):
        TeacherCache(tmp_path, MADE_OF)
    with pytest.raises(SettingsError, match="is a file, not a folder"):
        TeacherCache(tmp_path / "notes.txt", MADE_OF)
    (tmp_path / "teacher.json").write_text("{")
    with pytest.raises(SettingsError, match=r"teacher\.json: cannot be read"):
        TeacherCache(tmp_path, MADE_OF)
    (tmp_path / "teacher.json").write_text(json.dumps({"format": 2, "made_of": {}}))
    with pytest.raises(SettingsError, match="format must be 1, got 2"):
        TeacherCache(tmp_path, MADE_OF)
