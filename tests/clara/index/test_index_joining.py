"""Files that cannot be written whole while files are joined."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from clara.index import MemoryIndex, MemoryIndexError
from clara.index.joining import _require_whole

PROGRAM = """
import resource, signal, sys
from clara.index import MemoryIndex, MemoryIndexError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = MemoryIndex.open(sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
try:
    index.compact()
except MemoryIndexError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_file_that_is_cut_off_is_not_committed(make_index, make_documents, warm):
    """In a process of its own, as limits are of a process."""
    index = make_index()
    for number in range(4):
        index.add(make_documents([f"{number}-{row}" for row in range(20)]))
    before, names = index.ids(), sorted(os.listdir(os.path.join(index.path, "data")))
    sizes = [os.path.getsize(os.path.join(index.path, "data", name)) for name in names]
    for limit in (max(sizes), 2 * max(sizes)):  # bytes: all that is joined takes more
        result = subprocess.run(
            [warm().python, "-c", PROGRAM, index.path, str(limit)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.count("\n") == 1, result.stderr
        assert result.stdout.startswith(f"{index.path}: ")
        again = MemoryIndex.open(index.path)
        assert again.ids() == before
        assert [row for batch in again for row in batch.ids] == before
        assert list(again.verify()) == []
        assert sorted(os.listdir(os.path.join(index.path, "data"))) == names
    assert index.compact().written == 1
    assert MemoryIndex.open(index.path).ids() == before


def test_the_file_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.lance").write_bytes(b"12345")
    file = SimpleNamespace(path="a.lance", file_size_bytes=5)
    _require_whole(str(tmp_path), [SimpleNamespace(files=[file])])
    file.file_size_bytes = 9
    with pytest.raises(
        MemoryIndexError, match=r"data/a\.lance: only 5 of 9 bytes could be written"
    ):
        _require_whole(str(tmp_path), [SimpleNamespace(files=[file])])
