import pyarrow as pa
import pytest

from clara.index.arrays import values_of

COLUMNS = {
    "numbers": pa.array([1, -2, 3, 2**31 - 1], pa.int32()),
    "numbers with nulls": pa.array([1, None, -(2**62), None], pa.int64()),
    "digests": pa.array([b"ab", b"\0\xff", b"cd", b"ef"], pa.binary(2)),
    "digests with nulls": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
    "bytes": pa.array([b"", b"\xff", b"abc", b""], pa.large_binary()),
    "strings with nulls": pa.array([None, "\u00fc", "", None], pa.large_string()),
    "nothing": pa.array([], pa.large_string()),
    "nulls": pa.array([None, None], pa.large_string()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_values_are_those_of_arrow(name):
    column = COLUMNS[name]
    for part in (column, column.slice(1), column.slice(1, 2), column.slice(0, 0)):
        expected = part.to_pylist()
        if column.type == pa.large_string():
            expected = [None if value is None else value.encode() for value in expected]
        assert values_of(part) == expected


@pytest.mark.parametrize("wrong", [0, 3, 1000, -5])
def test_offsets_that_are_wrong_give_other_values(wrong):
    ends = pa.array([0, 2, 4, 6], pa.int64()).buffers()[1].to_pybytes()
    moved = ends[:8] + wrong.to_bytes(8, "little", signed=True) + ends[16:]
    buffers = [None, pa.py_buffer(moved), pa.py_buffer(b"aabbcc")]
    column = pa.Array.from_buffers(pa.large_binary(), 3, buffers)
    found = values_of(column)
    assert len(found) == 3
    assert found[:2] != [b"aa", b"bb"]
    assert found[2] == b"cc"
