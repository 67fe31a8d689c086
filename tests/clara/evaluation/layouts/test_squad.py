"""SQuAD's JSON."""

import json

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import read_dataset
from clara.evaluation.layouts.squad import read as read_squad

from . import layout_files as files


@pytest.mark.parametrize("indent", [None, 1])
def test_squad(tmp_path, indent):
    dataset = read_dataset(files.write_squad(tmp_path, indent=indent))
    assert dataset.questions == [
        EvaluatedQuestion("s1", "How long is the Alder?", ("12 km", "12 km long"), ("Alder/0",)),
        EvaluatedQuestion("s2", "How deep is the Alder?", (), answerable=False),
        EvaluatedQuestion("s3", "Who owns the mill?", ("Ida Marsh",), ("Alder/2",)),
        EvaluatedQuestion("s4", "Where does it rise?", ("Old Ford",), ("Alder/1",)),
    ]
    assert list(dataset.documents.values()) == [
        Document("Alder/0", "The Alder is 12 km long.", "Alder"),
        Document("Alder/1", "It rises at Old Ford.", "Alder"),
        Document("Alder/2", "Ida Marsh owns the mill.", "Alder"),
    ]


def test_squad_without_titles_and_in_another_script(tmp_path):
    paragraph = {
        "context": "الدر طوله 12 كم",
        "qas": [
            {"id": 7, "question": "كم طوله؟", "answers": [{"text": "12 كم", "answer_start": 10}]}
        ],
    }
    path = tmp_path / "xquad.ar.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"data": [{"paragraphs": [paragraph]}]}).encode())
    dataset = read_dataset(path)
    assert dataset.documents == {"0": Document("0", "الدر طوله 12 كم")}
    assert dataset.questions == [EvaluatedQuestion("7", "كم طوله؟", ("12 كم",), ("0",))]


def squad_with(**changes):
    """SQuAD's JSON whose first question is changed."""
    whole = json.loads(json.dumps(files.SQUAD))
    entries = whole["data"][0]["paragraphs"][0]["qas"]
    entries[0] = files.edited(entries[0], **changes)
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            squad_with(answers=[]),
            r": data\[0\]: paragraphs\[0\]: qas\[0\]: field 'answers' is empt",
        ),
        (squad_with(answers=None), r": qas\[0\]: field 'answers' is missing"),
        (squad_with(answers=["12"]), r": qas\[0\]: answers\[0\] must be an object, got a string"),
        (squad_with(answers=[{"text": ""}]), r": qas\[0\]: answers\[0\]: field 'text' is empty"),
        (squad_with(question=None), r": qas\[0\]: field 'question' is missing"),
        (squad_with(is_impossible=1), "field 'is_impossible' must be a boolean"),
        (
            squad_with(id="s3"),
            r": data\[1\]: paragraphs\[0\]: qas\[0\]: id 's3' is also that of data\[0\]",
        ),
        (json.dumps(files.SQUAD)[:-30], r":1: not valid JSON: .* at column \d+"),
        (json.dumps(files.SQUAD, indent=1)[:-30], r":\d\d: not valid JSON: .* at column \d+"),
        ('{"data": []}', ": holds no questions"),
        ('{"data": {}}', "field 'data' must be a list of objects, got an object"),
        ('{"data": [{"title": "x"}]}', r": data\[0\]: field 'paragraphs' is missing"),
        ("[]", "must be a JSON object with the field 'data', got a list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_squad(tmp_path, text, message):
    path = tmp_path / "squad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_squad(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": ["\xff"]}', "not valid UTF-8: byte 0xff"),
        (b'{"data": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (None, "No such file"),
    ],
)
def test_squad_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "squad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"squad\.json: {message}"):
        read_dataset(path, layout="squad")
