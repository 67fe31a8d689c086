"""Parquet and data sets: read in another process, row by row, whatever the file does."""

import datetime
import decimal
import json
import os
import signal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara.corpus.arrow import dataset_rows, parquet_rows
from clara.corpus.extraction import process
from clara.corpus.extraction.process import Extractor
from clara.corpus.limits import Limits
from clara.data import DataError

from .made_files import outcome


def opened_table(folder, table=None):
    """A descriptor of the Parquet file in a folder, which a table is written to first."""
    path = folder / "t.parquet"
    if table is not None:
        pq.write_table(table, path)
    return os.open(path, os.O_RDONLY)


def opened_nulls(folder, rows, length):
    """A descriptor of a small stream, whose rows are long lists of nothing, which take no bytes."""
    offsets = pa.array([length * row for row in range(rows + 1)], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.nulls(rows * length))
    batch = pa.record_batch({"text": ["a"] * rows, "x": lists})
    with pa.OSFile(str(folder / "nulls"), "wb") as file:
        with pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)
        assert file.tell() < 10_000
    return os.open(folder / "nulls", os.O_RDONLY)


def test_parquet(tmp_path, opened, extractor):
    table = pa.table(
        {"id": [1, 2, 3], "text": ["a", "b" * 200, None], "w": [0.5, None, 1.5]},
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with Extractor(Limits(document_mb=0.0001)) as small:  # 100 bytes
        found = list(parquet_rows(opened_table(tmp_path), "t", small))
    assert outcome(found) == [
        ("t: row 1", {"id": 1, "text": "a", "w": 0.5}),
        ("t: row 2", "the row is longer than 0.0001 MB, the limit document_mb"),
        ("t: row 3", {"id": 3, "text": None, "w": 1.5}),
    ]
    assert found[0].columns == ["id", "text", "w"]
    for content in (b"PAR1 and no more", b"", (tmp_path / "t.parquet").read_bytes()[:-9]):
        with pytest.raises(DataError, match=r"cannot be read as Parquet: "):
            list(parquet_rows(opened(content), "t", extractor))


@pytest.mark.parametrize("kind", ["dictionary", "views"])
def test_values_that_share_bytes_are_measured_alone(kind, tmp_path):
    texts = pa.array(["a" * 60, "b" * 60, "c" * 200, None])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(pa.string_view())
    batch = pa.record_batch({"text": column})
    with (
        pa.OSFile(str(tmp_path / "t"), "wb") as file,
        pa.ipc.new_stream(file, batch.schema) as stream,
    ):
        stream.write_batch(batch)
    with Extractor(Limits(document_mb=0.0001)) as small:  # 100 bytes
        found = list(small.rows("arrow", os.open(tmp_path / "t", os.O_RDONLY)))
    flaw = "the row is longer than 0.0001 MB, the limit document_mb"
    assert [row.values.get("text") for row in found] == ["a" * 60, "b" * 60, None, None]
    assert [row.flaw for row in found] == [None, None, flaw, None]


def test_rows_before_a_damaged_batch_are_given(tmp_path, extractor):
    with (
        pa.OSFile(str(tmp_path / "t"), "wb") as file,
        pa.ipc.new_stream(file, pa.schema({"n": pa.int64()})) as stream,
    ):
        for begin in (0, 100, 200):
            stream.write_batch(pa.record_batch({"n": list(range(begin, begin + 100))}))
    whole = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(whole[: len(whole) - 200])
    rows = []
    with pytest.raises(DataError, match=r"cannot be read as an Arrow stream: "):
        rows.extend(
            row.values["n"] for row in extractor.rows("arrow", os.open(tmp_path / "t", os.O_RDONLY))
        )
    assert rows == list(range(200))


def test_strings_that_are_not_utf8_are_failures_of_their_rows(tmp_path, extractor):
    raw = pa.array([b"fine", b"\xff", b"too"], pa.binary())
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    found = outcome(parquet_rows(opened_table(tmp_path), "t", extractor))
    assert [values for _, values in found[::2]] == [{"text": "fine"}, {"text": "too"}]
    assert found[1][1].startswith("cannot be read: 'utf-8' codec")


def test_folders_that_datasets_saved(tmp_path, extractor):
    table = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"]})
    table.save_to_disk(tmp_path / "one", num_shards=2)
    found = list(dataset_rows(str(tmp_path / "one"), "one", extractor))
    assert [dict(row.values) for row in found] == list(table)
    assert [row.number for row in found] == [1, 2]
    assert found[1].where == "one/data-00001-of-00002.arrow: row 1"

    splits = datasets.DatasetDict({"train": table, "test": table.select([1])})
    splits.save_to_disk(tmp_path / "splits")
    found = list(dataset_rows(str(tmp_path / "splits"), "s", extractor))
    assert [(row.number, row.values["id"]) for row in found] == [(1, "a"), (2, "b"), (3, "b")]
    assert found[2].where == "s/test/data-00000-of-00001.arrow: row 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{", "state.json: not valid JSON"),
        ("state.json", "[]", "state.json: must be a JSON object"),
        ("state.json", "{}", "field '_data_files' must be a list"),
        ("state.json", {"_data_files": [{"filename": "../x"}]}, "must be a list of names"),
        ("state.json", {"_data_files": [{"filename": "gone"}]}, "gone: No such file"),
        ("state.json", {"_data_files": [{"filename": "text"}]}, "text: cannot be read as an Arrow"),
        ("state.json", {"_data_files": [{"filename": "link"}]}, "link: is a symbolic link"),
        ("state.json", {"_data_files": [{"filename": "pipe"}]}, "pipe: is not a file, but a pipe"),
        ("state.json", {"_data_files": [{"filename": "none"}]}, "none: cannot be read as an Arrow"),
        ("state.json", {"_data_files": 5}, "field '_data_files' must be a list"),
        ("dataset_dict.json", {"splits": ["out"]}, "state.json: is a symbolic link or lies behind"),
        ("dataset_dict.json", {"splits": ["in"]}, "state.json: is not a file, but a pipe"),
        ("dataset_dict.json", {"splits": ["/etc"]}, "field 'splits' must be a list of names"),
        ("dataset_dict.json", {"splits": ["train"]}, "state.json: No such file"),
    ],
)
def test_folders_that_are_not_as_datasets_saves_them(tmp_path, name, content, message, extractor):
    (tmp_path / "text").write_text("no Arrow")
    (tmp_path / "none").write_text("")
    (tmp_path / "in").mkdir()
    for pipe in ("pipe", "in/state.json"):
        os.mkfifo(tmp_path / pipe)
    os.symlink("/etc/passwd", tmp_path / "link")
    os.symlink("/etc", tmp_path / "out")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        list(dataset_rows(str(tmp_path), "d", extractor))


def test_damaged_arrow_is_not_followed(tmp_path, extractor):
    table = datasets.Dataset.from_dict({"text": ["x" * 50, "y" * 50]})
    table.save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    content = file.read_bytes()
    offsets = b"\x32\x00\x00\x00\x64\x00\x00\x00"  # where the second text begins and ends
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, b"\x32\x00\x00\x00\xff\xff\xff\x7f"))
    with pytest.raises(DataError, match=r"cannot be read as an Arrow stream"):
        list(dataset_rows(str(tmp_path / "d"), "d", extractor))


def test_names_of_columns_that_are_not_utf8(tmp_path, extractor):
    table = pa.table({"text": ["x"], "AAAAAAAA": [1]})
    pq.write_table(table, tmp_path / "t.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "d")
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    for file in (tmp_path / "t.parquet", arrow):
        file.write_bytes(file.read_bytes().replace(b"AAAAAAAA", b"\xff" * 8))
    with pytest.raises(DataError, match=r"^cannot be read as Parquet: "):
        list(parquet_rows(opened_table(tmp_path), "t", extractor))
    with pytest.raises(DataError, match=r"arrow: the name of a column cannot be read: 'utf-8' "):
        list(dataset_rows(str(tmp_path / "d"), "d", extractor))


def test_values_that_are_no_scalars_keep_their_types(tmp_path, extractor):
    table = pa.table(
        {
            "day": [datetime.date(2024, 5, 31)],
            "at": [datetime.datetime(2024, 5, 31, 7, 30)],
            "hour": [datetime.time(7, 30)],
            "list": [["a", "b"]],
            "none": pa.array([[]], pa.list_(pa.string())),
            "object": [{"a": 1}],
            "bytes": [b"\xff"],
            "price": [decimal.Decimal("1.5")],
            "span": [datetime.timedelta(seconds=5)],
            "large": pa.array([2**64 - 1], pa.uint64()),
            "nan": [float("nan")],
            "true": [True],
        }
    )
    (row,) = parquet_rows(opened_table(tmp_path, table), "t", extractor)
    nan = row.values.pop("nan")
    assert nan != nan
    assert row.values == {
        "day": "2024-05-31",
        "at": "2024-05-31T07:30:00",
        "hour": "07:30:00",
        "list": [None],
        "none": [],
        "object": {},
        "bytes": b"",
        "price": decimal.Decimal(0),
        "span": datetime.timedelta(),
        "large": 2**64 - 1,
        "true": True,
    }


def test_rows_come_in_several_answers(tmp_path, extractor):
    table = pa.table({"n": range(1000), "text": ["x" * 20_000] * 1000})
    rows = list(parquet_rows(opened_table(tmp_path, table), "t", extractor))
    assert [row.values["n"] for row in rows] == [row.number - 1 for row in rows]
    assert len(rows) == 1000
    assert rows[-1].where == "t: row 1000"


def test_a_table_that_was_left_does_not_go_on(tmp_path, extractor):
    table = pa.table({"n": range(1000)})
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        rows = parquet_rows(opened_table(tmp_path, table), "t", extractor)
        assert [next(rows).values["n"] for _ in range(300)] == list(range(300))
        rows.close()
    del rows
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the socket of a first process


def test_a_small_file_that_expands_to_much(tmp_path):
    descriptor = opened_table(tmp_path, pa.table({"text": ["x" * 1000] * 20_000}))
    assert os.fstat(descriptor).st_size < 100_000
    found = []
    with Extractor(Limits(expanded_mb=1)) as extractor:
        rows = parquet_rows(descriptor, "t", extractor)
        with pytest.raises(
            DataError,
            match=r"^expands to 100 times its size and more than 1 MB, the limit expanded_mb$",
        ):
            found.extend(rows)
    assert 500 < len(found) < 20_000  # those before are there
    with Extractor(Limits(expanded_mb=25)) as extractor:
        assert len(list(parquet_rows(opened_table(tmp_path), "t", extractor))) == 20_000


def test_rows_that_take_too_much_processor_time(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_PATIENCE", 100)  # other programs may take most of the time
    table = pa.table({"text": ["after"]})
    with Extractor(Limits(seconds=0.5)) as extractor:
        list(parquet_rows(opened_table(tmp_path, table), "t", extractor))
        with pytest.raises(DataError, match=r"^takes more than 0.5 s of processor time, the limit"):
            list(extractor.rows("arrow", opened_nulls(tmp_path, 256, 1_000_000)))
        assert extractor.pid is None
        (row,) = parquet_rows(opened_table(tmp_path), "t", extractor)
    assert row.values == {"text": "after"}


def test_rows_that_need_too_much_memory(tmp_path):
    with (
        Extractor(Limits(memory_mb=500)) as extractor,
        pytest.raises(DataError, match=r"^needs more memory than 500 MB, the limit mem"),
    ):
        list(extractor.rows("arrow", opened_nulls(tmp_path, 1, 100_000_000)))


def test_a_process_that_dies_in_the_middle_of_a_table(tmp_path, extractor):
    table = pa.table({"n": range(1000)})
    rows = parquet_rows(opened_table(tmp_path, table), "t", extractor)
    assert next(rows).number == 1
    os.kill(extractor.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"^its reader was killed"):
        list(rows)
    assert len(list(parquet_rows(opened_table(tmp_path), "t", extractor))) == 1000


def test_a_table_goes_on_in_a_new_process_where_memory_was_lacking(tmp_path, monkeypatch):
    """What earlier files have left in the memory of a process is no fault of this one."""
    extractor = Extractor()
    monkeypatch.setattr(extractor, "_running", "a process that has read files")
    answers = [
        {"columns": ["n"], "rows": [[1, [5], None], [2, None, "is bad"]]},
        {"error": "", "memory": True},
        {"columns": ["n"], "rows": [[3, [7], None]]},
        {"end": True},
    ]
    asked = []

    def answer(kind, descriptor, after):
        asked.append((kind, descriptor is None, after))
        return answers[len(asked) - 1]

    monkeypatch.setattr(extractor, "_asked", answer)
    found = list(extractor.rows("parquet", os.open(os.devnull, os.O_RDONLY)))
    assert [(row.number, row.values, row.flaw) for row in found] == [
        (1, {"n": 5}, None),
        (2, {}, "is bad"),
        (3, {"n": 7}, None),
    ]
    assert asked == [
        ("parquet", False, 0),
        ("parquet", True, 2),
        ("parquet", False, 2),
        ("parquet", True, 3),
    ]


def test_rows_that_came_are_passed_over(tmp_path, extractor):
    descriptor = opened_table(tmp_path, pa.table({"n": range(700)}))
    answer = extractor._asked("parquet", descriptor, after=650)
    os.close(descriptor)
    assert [row[0] for row in answer["rows"]] == list(range(651, 701))
    extractor.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"columns": "n", "rows": []},
        {"columns": [1], "rows": []},
        {"columns": ["n"], "rows": 3},
        {"columns": ["n"], "rows": [[1, [5]]]},
        {"columns": ["n"], "rows": [[2, [5], None]]},
        {"columns": ["n"], "rows": [[1, [5, 6], None]]},
        {"columns": ["n"], "rows": [[1, None, None]]},
    ],
)
def test_answers_that_make_no_sense(monkeypatch, answer):
    """What a process answers that its file has taken over."""
    extractor = Extractor()
    monkeypatch.setattr(extractor, "_asked", lambda *_, **__: answer)
    with pytest.raises(DataError, match=r"^cannot be read: its reader's answer makes no sense$"):
        list(extractor.rows("parquet", os.open(os.devnull, os.O_RDONLY)))
