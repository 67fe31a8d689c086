"""Questions and documents in our own JSON lines."""

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import read_dataset

from . import layout_files as files


def test_own_json_lines(tmp_path):
    questions, documents = files.write_own(tmp_path)
    said = []
    dataset = read_dataset(questions, documents, say=said.append)
    assert dataset.questions == [
        EvaluatedQuestion(
            "q1",
            "How long is the Alder?",
            ("12 km", "twelve km"),
            positives=("alder",),
            candidates=("mill", "alder"),
        ),
        EvaluatedQuestion("2", "Who owns the mill?", ("Ida Marsh",)),
        EvaluatedQuestion("q3", "When did it burn?", (), candidates=("mill",), answerable=False),
    ]
    assert [each.place for each in dataset.questions] == [
        f"{questions}:1: 'q1'",
        f"{questions}:2: '2'",
        f"{questions}:3: 'q3'",
    ]
    assert dataset.documents == {
        "alder": Document("alder", "The Alder is 12 km long.", "Alder"),
        "mill": Document("mill", "Ida Marsh owns the mill."),
    }
    assert said == [
        f"{questions}: our own JSON lines: 3 questions, 2 documents from {documents}",
    ]


def test_documents_in_memory_or_none_at_all(tmp_path):
    questions, documents = files.write_own(tmp_path)
    held = read_dataset(questions, documents).documents
    assert read_dataset(questions, held).documents == held
    closed = files.write_lines(tmp_path / "closed.jsonl", files.OWN_QUESTIONS[1:2])
    assert read_dataset(closed, {}).documents == {}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            files.edited(files.OWN_QUESTIONS[0], golden_answers=[]),
            "field 'golden_answers' is empty",
        ),
        (files.edited(files.OWN_QUESTIONS[0], golden_answers=None), "'golden_answers' is missing"),
        (
            files.edited(files.OWN_QUESTIONS[0], golden_answers=["12", " "]),
            r"answers\[1\]' is empty",
        ),
        (files.edited(files.OWN_QUESTIONS[0], golden_answers="12 km"), "must be a list of strings"),
        (
            files.edited(files.OWN_QUESTIONS[0], golden_answers=[12]),
            "must be a string, got the number",
        ),
        (files.edited(files.OWN_QUESTIONS[0], question=" "), "field 'question' is empty"),
        (
            files.edited(files.OWN_QUESTIONS[0], positives=["oak"]),
            "field 'positives' names 'oak', an id that none of the 2 documents has",
        ),
        (
            files.edited(files.OWN_QUESTIONS[0], candidates=["mill", "oak\n"]),
            r"field 'candidates' names 'oak\\n', an id that none of the 2 documents has",
        ),
        (
            files.edited(files.OWN_QUESTIONS[0], candidates=[]),
            "field 'candidates' is empty; leave it",
        ),
        (files.edited(files.OWN_QUESTIONS[0], answerable="no"), "'answerable' must be a boolean"),
        (files.edited(files.OWN_QUESTIONS[0], answerable=False), "'answerable' is false"),
        (files.edited(files.OWN_QUESTIONS[1], id="q0"), "id 'q0' is also on line 1"),
        (
            '{"id": "q9", "question": "cut of',
            "not valid JSON: Unterminated string starting at column 26",
        ),
        ("[]", "must be a JSON object, got a list"),
    ],
)
def test_bad_questions(tmp_path, record, message):
    """One line names the file, the line and the field."""
    _, documents = files.write_own(tmp_path)
    first = files.edited(files.OWN_QUESTIONS[1], id="q0")
    questions = files.write_lines(tmp_path / "bad.jsonl", [first, "", record])
    with pytest.raises(DataError, match=message) as raised:
        read_dataset(questions, documents)
    assert str(raised.value).startswith(f"{questions}:3: ")
    assert "\n" not in str(raised.value)


def test_bad_corpora(tmp_path):
    questions, documents = files.write_own(tmp_path)
    with pytest.raises(DataError, match=r"questions\.jsonl: documents are missing; a corpus is"):
        read_dataset(questions)
    with pytest.raises(DataError, match="No such file"):
        read_dataset(questions, tmp_path / "none.jsonl")
    files.write_lines(documents, [*files.OWN_DOCUMENTS, files.OWN_DOCUMENTS[0]])
    with pytest.raises(DataError, match=r"documents\.jsonl:3: id 'alder' is also on line 1"):
        read_dataset(questions, documents)
    documents.write_bytes(documents.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"documents\.jsonl:3: not valid JSON"):
        read_dataset(questions, documents)
    documents.write_text("\n")
    with pytest.raises(DataError, match=r"documents\.jsonl: holds no documents"):
        read_dataset(questions, documents)


def test_questions_are_checked_before_the_corpus_is_read(tmp_path):
    """A corpus may take minutes."""
    questions = files.write_lines(tmp_path / "q.jsonl", [files.OWN_QUESTIONS[0], "{"])
    with pytest.raises(DataError, match=r"q\.jsonl:2: not valid JSON"):
        read_dataset(questions, tmp_path / "none.jsonl")


def test_hostile_texts_are_kept_and_messages_are_one_line(tmp_path):
    text = "<script>alert(1)</script>\x1b[31m\u2028</s>"
    record = {"id": "q", "question": text, "golden_answers": [text], "positives": [text]}
    questions = files.write_lines(tmp_path / "q.jsonl", [record])
    documents = files.write_lines(tmp_path / "d.jsonl", [{"id": text, "contents": text}])
    dataset = read_dataset(questions, documents)
    assert dataset.questions == [EvaluatedQuestion("q", text, (text,), (text,))]
    with pytest.raises(DataError) as raised:
        read_dataset(questions, {})
    assert str(raised.value).isprintable()
