import contextlib
import json
import os
import re
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.data import DataError, Document, Question, read_documents, read_questions, write_jsonl


@pytest.fixture
def written(tmp_path):
    """Writes bytes, or records as JSON, and gives the path."""

    def write(*lines):
        path = tmp_path / "records.jsonl"
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw))
        return path

    return write


def document(number=0, **fields):
    return {"id": f"d{number}", "contents": f"text {number}", **fields}


def question(number=0, **fields):
    return {"id": f"q{number}", "question": "Who?", "golden_answers": ["Ada"], **fields}


def test_documents_are_read_with_and_without_title(written):
    path = written(
        document(0, title="A title"),
        document(1),
        document(2, title=None),
        document(3, title=""),
        document(4, title=float("nan")),
    )
    assert list(read_documents(path)) == [
        Document("d0", "text 0", "A title"),
        Document("d1", "text 1"),
        Document("d2", "text 2"),
        Document("d3", "text 3", ""),
        Document("d4", "text 4"),
    ]


def test_questions_are_read_with_and_without_positives(written):
    path = written(
        question(0, golden_answers=["Ada", "A. L."], positives=["d1", 7]),
        question(1),
        question(2, positives=None),
        question(3, positives=[]),
    )
    assert list(read_questions(path)) == [
        Question("q0", "Who?", ("Ada", "A. L."), ("d1", "7")),
        Question("q1", "Who?", ("Ada",)),
        Question("q2", "Who?", ("Ada",)),
        Question("q3", "Who?", ("Ada",)),
    ]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n  \n"])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path, end):
    path = tmp_path / "docs.jsonl"
    first, second = (json.dumps(document(n)).encode() for n in range(2))
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\n \t\r\n" + second + end)
    assert [d.id for d in read_documents(path)] == ["d0", "d1"]


def test_blank_lines_count_in_line_numbers(written):
    with pytest.raises(DataError, match=r"records\.jsonl:4: not valid JSON"):
        list(read_documents(written(document(0), b"", b"", b"{")))


def test_empty_file_has_no_documents(written):
    assert list(read_documents(written())) == []


def test_text_comes_back_exactly(written):
    text = "  a\tb\u2028c\x85d\x00e \U0001f600\u0301 </s> <MEM0>\r\n "
    assert [d.text for d in read_documents(written(document(contents=text)))] == [text]


def test_control_characters_may_stand_unescaped(written):
    path = written(b'{"id": "a", "contents": "x\x00y\tz"}')
    assert next(read_documents(path)).text == "x\x00y\tz"


def test_integer_ids_become_strings(written):
    path = written(document(id=12), document(id=-3), document(id=10**40))
    assert [d.id for d in read_documents(path)] == ["12", "-3", "1" + "0" * 40]


def test_unknown_fields_are_ignored(written):
    path = written(document(extra={"deep": [1, None]}), b'{"id":"x","contents":"y","z":NaN}')
    assert [d.id for d in read_documents(path)] == ["d0", "x"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a", "contents": ', "not valid JSON: Expecting value at column 24"),
        (b'{"id": "a"} {"id": "b"}', "not valid JSON: Extra data at column 13"),
        (b"\x00\x00\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"id": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"id": "a", "contents": "\xff"}', "not valid UTF-8: byte 0xff at 25"),
        (b'{"id": "a", "contents": "\xed\xa0\x80"}', "not valid UTF-8: byte 0xed"),
        (b'["a", "b"]', "must be a JSON object, got a list"),
        (b'"text"', "must be a JSON object, got a string"),
        (b"null", "must be a JSON object, got null"),
        (b"3", "must be a JSON object, got the number 3"),
        ({"contents": "t"}, "field 'id' is missing"),
        (document(id=""), "field 'id' is empty"),
        (document(id=" \n"), "field 'id' is empty"),
        (document(id=None), "field 'id' must be a string or an integer, got null"),
        (document(id=True), "field 'id' must be a string or an integer, got a boolean"),
        (document(id=1.0), "field 'id' must be a string or an integer, got the number 1.0"),
        (document(id=float("nan")), "'id' must be a string or an integer, got the number nan"),
        (document(id=["a"]), "field 'id' must be a string or an integer, got a list"),
        ({"id": "a"}, "'a': field 'contents' is missing"),
        ({"id": "a", "text": "t"}, "'a': field 'contents' is missing"),
        (document(contents=""), "'d0': field 'contents' is empty"),
        (document(contents=" \t\n"), "'d0': field 'contents' is empty"),
        (document(contents=None), "'d0': field 'contents' must be a string, got null"),
        (document(contents=["t"]), "'d0': field 'contents' must be a string, got a list"),
        (document(contents={}), "'d0': field 'contents' must be a string, got an object"),
        (document(title=5), "'d0': field 'title' must be a string, got the number 5"),
        (document(id="\ud800"), r"field 'id' holds half a surrogate pair, \ud800, at character 0"),
        (document(contents="ab\udfffc"), r"surrogate pair, \udfff, at character 2"),
        (document(title="\udc00"), "'d0': field 'title' holds half a surrogate pair"),
    ],
)
def test_a_bad_document_is_named_by_its_line(written, line, reason):
    path = written(document(98), document(99), line, document(100))
    documents = read_documents(path)
    assert [next(documents).id, next(documents).id] == ["d98", "d99"]
    with pytest.raises(DataError) as caught:
        next(documents)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"id": "a", "golden_answers": ["x"]}, "'a': field 'question' is missing"),
        (question(question=""), "'q0': field 'question' is empty"),
        ({"id": "a", "question": "Q"}, "'a': field 'golden_answers' is missing"),
        (question(golden_answers=[]), "'q0': field 'golden_answers' is empty"),
        (question(golden_answers="Ada"), "'golden_answers' must be a list of strings, got a str"),
        (question(golden_answers=None), "'golden_answers' must be a list of strings, got null"),
        (
            question(golden_answers=["a", 3]),
            "'golden_answers[1]' must be a string, got the number 3",
        ),
        (question(golden_answers=["\ud800"]), "'golden_answers[0]' holds half a surrogate pair"),
        (question(positives="d1"), "'positives' must be a list of strings, got a string"),
        (question(positives=["d1", ""]), "field 'positives[1]' is empty"),
        (question(positives=[None]), "'positives[0]' must be a string or an integer, got null"),
    ],
)
def test_a_bad_question_is_named_by_its_line(written, line, reason):
    path = written(question(99), line)
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        list(read_questions(path))
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("first", [7, "7"])
def test_a_repeated_id_names_both_lines(written, first):
    path = written(document(id=first), document(1), b"", document(id="7"))
    with pytest.raises(DataError, match=r":4: id '7' is also on line 1$"):
        list(read_documents(path))


def test_a_long_id_is_cut_in_messages(written):
    path = written({"id": "x" * 10_000})
    with pytest.raises(DataError) as caught:
        list(read_documents(path))
    assert len(str(caught.value)) < len(str(path)) + 150


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: No such file or directory$"):
        next(read_documents(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match=r": is a folder; questions are JSON lines"):
        next(read_questions(tmp_path))


def test_reading_does_not_run_ahead(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, json.dumps(document()).encode() + b"\n")
    os.write(descriptor, b" " * 9000)  # fills the read buffer; the line does not end
    documents = read_documents(path)
    assert next(documents).id == "d0"
    documents.close()
    os.close(descriptor)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FILLED = TEXT.filter(str.strip)


@given(st.lists(st.builds(Document, FILLED, FILLED, st.none() | TEXT), unique_by=lambda d: d.id))
def test_documents_survive_writing_and_reading(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("records") / "docs.jsonl"
    write_jsonl(path, documents)
    assert list(read_documents(path)) == documents


@given(
    st.lists(
        st.builds(
            Question,
            FILLED,
            FILLED,
            st.lists(TEXT, min_size=1).map(tuple),
            st.lists(FILLED).map(tuple),
        ),
        unique_by=lambda q: q.id,
    )
)
def test_questions_survive_writing_and_reading(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("records") / "questions.jsonl"
    write_jsonl(path, questions)
    assert list(read_questions(path)) == questions


@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_raise_anything_but_data_error(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("records") / "docs.jsonl"
    path.write_bytes(b"\n".join(lines))
    with contextlib.suppress(DataError):
        assert list(read_documents(path)) == []  # 40 bytes of chance hold no document


def test_mappings_are_written_one_per_line_in_utf8(tmp_path):
    path = tmp_path / "out.jsonl"
    write_jsonl(path, iter([{"a": "ü\n"}, {"b": [1, None]}]))
    assert path.read_bytes() == '{"a": "ü\\n"}\n{"b": [1, null]}\n'.encode()


def test_what_a_table_holds_is_written_as_plain_values(tmp_path):
    path = tmp_path / "out.jsonl"
    write_jsonl(path, [Document(np.int64(7), np.str_("text"), float("nan"))])
    assert path.read_text() == '{"id": "7", "contents": "text"}\n'


def test_no_records_make_an_empty_file(tmp_path):
    write_jsonl(tmp_path / "out.jsonl", [])
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", r"records\[1\] must be a Document, Question or mapping, got str"),
        ({"a": float("nan")}, r"records\[1\] cannot be written"),
        ({"a": object()}, r"records\[1\] cannot be written"),
        ({"a": "\ud800"}, r"records\[1\] cannot be written"),
        (Document(1.0, "text"), r"records\[1\]\.id must be a string or an integer, got the number"),
        (Document("a", None), r"records\[1\]\.text must be a string, got null"),
        (Document("a", "text", ["b"]), r"records\[1\]\.title must be a string, got a list"),
        (Question(True, "Who?", ("Ada",)), r"records\[1\]\.id must be a string or an integer"),
        (Question("q", "Who?", (1,)), r"records\[1\]\.golden_answers\[0\] must be a string"),
        (Question("q", "Who?", "Ada"), r"records\[1\]\.golden_answers must be a list of strings"),
        (Question("q", "Who?", ("Ada",), (None,)), r"records\[1\]\.positives\[0\] must be"),
    ],
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, bad, reason, existing):
    path = tmp_path / "out.jsonl"
    if existing:
        path.write_text("before")
    with pytest.raises(DataError, match=reason):
        write_jsonl(path, [{"a": 1}, bad])
    assert [p.name for p in tmp_path.iterdir()] == (["out.jsonl"] if existing else [])
    assert not existing or path.read_text() == "before"


def test_a_write_interrupted_from_outside_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("before")

    def records():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, records())
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "before"


def test_a_file_can_be_rewritten_from_itself(tmp_path):
    path = tmp_path / "docs.jsonl"
    documents = [Document(str(n), "text " * 1000) for n in range(100)]
    write_jsonl(path, documents)
    write_jsonl(path, (d for d in read_documents(path) if int(d.id) % 2))
    assert list(read_documents(path)) == documents[1::2]


def test_links_are_kept_and_permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "plain").touch()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "target.jsonl")
    write_jsonl(link, [{"a": 1}])
    assert link.is_symlink()
    assert (tmp_path / "target.jsonl").read_text() == '{"a": 1}\n'
    mode = stat.S_IMODE((tmp_path / "target.jsonl").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
