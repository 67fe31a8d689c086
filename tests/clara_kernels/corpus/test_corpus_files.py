"""`Corpus.from_file`: raw and .npy files, mapped and not read into memory."""

import re

import numpy as np
import pytest
import torch

from clara_kernels import Corpus, cosine_topk, quantize_memory

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


def write(path, rows, before=b""):
    path.write_bytes(before + rows.contiguous().view(torch.uint8).numpy().tobytes())
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 12, 4096])
def test_raw_rows(tmp_path, dtype, offset):
    rows = (torch.randn(50, 9) * 30).to(dtype)
    path = write(tmp_path / "rows.bin", rows, bytes(offset))
    corpus = Corpus.from_file(path, dtype, 9, offset=offset)
    assert corpus.dtype == dtype
    assert corpus.rows.equal(rows)
    queries = torch.randn(2, 9)
    for one, other in zip(corpus.search(queries, 5), cosine_topk(queries, rows, 5)):
        assert one.equal(other)


def test_the_rows_are_the_file(tmp_path):
    path = write(tmp_path / "rows.bin", torch.zeros(4, 3))
    corpus = Corpus.from_file(str(path), torch.float32, 3)
    with path.open("r+b") as file:
        file.write(np.float32(5).tobytes())
    assert corpus.rows[0].tolist() == [5, 0, 0]


def test_some_rows_with_scales_and_ids(tmp_path):
    codes, scales = quantize_memory(torch.randn(20, 6))
    path = write(tmp_path / "rows.bin", codes)
    ids = [f"d{row}" for row in range(11)]
    corpus = Corpus.from_file(
        path, torch.int8, 6, offset=6 * 4, count=11, scales=scales[4:15], ids=ids
    )
    assert corpus.rows.equal(codes[4:15])
    query = codes[9:10].float()
    assert corpus.search(query, 1)[1] == [["d5"]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
def test_npy(tmp_path, name):
    array = (np.random.default_rng(1).standard_normal((30, 7)) * 9).astype(name)
    np.save(tmp_path / "rows.npy", array)
    corpus = Corpus.from_file(tmp_path / "rows.npy", count=12)
    assert corpus.rows.tolist() == array[:12].tolist()
    with (tmp_path / "rows.npy").open("r+b") as file:  # the rows are the file, not a copy
        file.seek(-array.nbytes, 2)
        file.write(array[1:2, :1].tobytes())
    assert corpus.rows[0, 0] == corpus.rows[1, 0]


def test_an_array_mapped_by_the_caller_is_not_copied(tmp_path):
    rows = torch.randn(30, 7)
    path = write(tmp_path / "rows.bin", rows)
    array = np.memmap(path, dtype=np.float32, mode="r", shape=(30, 7))
    corpus = Corpus(array)
    assert corpus.rows.data_ptr() == array.ctypes.data
    del array
    assert corpus.rows.equal(rows)


def test_a_mapping_outlives_the_corpus(tmp_path):
    expected = torch.randn(30, 7)
    path = write(tmp_path / "rows.bin", expected)
    rows = Corpus.from_file(path, torch.float32, 7)[10:].rows
    assert rows.equal(expected[10:])


def test_an_empty_npy_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((0, 5), dtype=np.float32))
    assert Corpus.from_file(tmp_path / "rows.npy").rows.shape == (0, 5)


def test_an_empty_file(tmp_path):
    path = tmp_path / "rows.bin"
    path.touch()
    corpus = Corpus.from_file(path, torch.float16, 5)
    assert corpus.rows.shape == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "none.bin"}, FileNotFoundError, "path 'F/none.bin' does not exist"),
        ({"path": "."}, ValueError, "path must be a file, got 'F'"),
        (
            {"dtype": None},
            TypeError,
            "dtype must be float32, float16, bfloat16 or int8, got None",
        ),
        (
            {"dtype": torch.float64},
            TypeError,
            "dtype must be float32, float16, bfloat16 or int8, got torch.float64",
        ),
        ({"width": None}, TypeError, "width must be an int, got NoneType"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        (
            {"width": 5},
            ValueError,
            "path 'F/rows.bin' must hold rows of 20 bytes after offset 0, got 48",
        ),
        ({"offset": 2}, ValueError, "offset must be a multiple of 4 bytes, got 2"),
        ({"offset": -4}, ValueError, "offset must be at least 0, got -4"),
        ({"offset": 0.0}, TypeError, "offset must be an int, got float"),
        (
            {"offset": 52},
            ValueError,
            "offset must be at most 48, the size of 'F/rows.bin', got 52",
        ),
        ({"count": 5}, ValueError, "count must be at most 4, the rows of 'F/rows.bin', got 5"),
        ({"count": -1}, ValueError, "count must be at least 0, got -1"),
        ({"count": 1.5}, TypeError, "count must be an int, got float"),
        (
            {"path": "rows.npy"},
            ValueError,
            "dtype and offset must not be given for 'F/rows.npy': it has its own",
        ),
        (
            {"path": "rows.npy", "dtype": None, "width": 4},
            ValueError,
            "width must be 3, that of 'F/rows.npy', got 4",
        ),
        (
            {"path": "flat.npy", "dtype": None, "width": None},
            ValueError,
            "rows must have shape [N, D], got [8] in 'F/flat.npy'",
        ),
        (
            {"path": "double.npy", "dtype": None, "width": None},
            TypeError,
            "rows must be float32, float16, bfloat16 or int8, got float64 in 'F/double.npy'",
        ),
    ],
)
def test_bad_files(tmp_path, arguments, error, message):
    write(tmp_path / "rows.bin", torch.zeros(4, 3))
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), dtype=np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(8, dtype=np.float32))
    np.save(tmp_path / "double.npy", np.zeros((4, 3)))
    arguments = {"path": "rows.bin", "dtype": torch.float32, "width": 3} | arguments
    path = tmp_path / arguments.pop("path")
    with pytest.raises(error) as caught:
        Corpus.from_file(path, **arguments)
    assert str(caught.value) == message.replace("'F", f"'{tmp_path}")


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[{}]]), allow_pickle=True)
    message = f"^path '{re.escape(str(tmp_path))}/rows.npy' is not a .npy file of numbers: "
    with pytest.raises(ValueError, match=message) as caught:
        Corpus.from_file(tmp_path / "rows.npy")
    assert "\n" not in str(caught.value)


def test_a_damaged_npy_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((40, 30), dtype=np.float32))
    whole = (tmp_path / "rows.npy").read_bytes()
    for damaged in (b"", b"text", whole[:40], whole[:-100]):
        (tmp_path / "rows.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a .npy file of numbers: "):
            Corpus.from_file(tmp_path / "rows.npy")
