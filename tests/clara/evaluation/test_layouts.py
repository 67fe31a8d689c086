import json
import os
import threading

import pytest

from clara.data.records import Document
from clara.data.values import DataError
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.layouts import LAYOUTS, read_dataset, recognised_layout
from clara.evaluation.layouts.squad import read as read_squad

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


def test_flashrag(tmp_path):
    questions, corpus = files.write_flashrag(tmp_path)
    dataset = read_dataset(questions, corpus)
    assert dataset.questions == [
        EvaluatedQuestion("test_0", "how long is the alder", ("12 km",)),
        EvaluatedQuestion("test_1", "Which is a river?", ("the Alder",)),
    ]
    assert dataset.documents == {
        "0": Document("0", '"Alder"\nThe Alder is 12 km long.'),
        "1": Document("1", "Ida Marsh owns the mill.", "Mill"),
    }


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


def test_beir(tmp_path):
    folder = files.write_beir(tmp_path)
    dataset = read_dataset(folder)
    assert dataset.questions == [
        EvaluatedQuestion("1", "length of the Alder", (), ("d1", "d3")),
        EvaluatedQuestion("2", "owner of the mill", (), ("d2",)),
    ]
    assert dataset.documents == {
        "d1": Document("d1", "Alder\nThe Alder is 12 km long.", "Alder"),
        "d2": Document("d2", "Ida Marsh owns the mill."),
        "d3": Document("d3", "Old Ford", "Old Ford"),
    }
    assert read_dataset(folder / "queries.jsonl") == dataset
    assert read_dataset(folder / "queries.jsonl", folder / "corpus.jsonl") == dataset
    assert read_dataset(folder, dataset.documents) == dataset
    training = read_dataset(folder / "qrels" / "train.tsv")
    assert [question.id for question in training.questions] == ["3"]


def test_beir_with_one_file_of_judgements(tmp_path):
    folder = files.write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").unlink()
    assert [question.id for question in read_dataset(folder).questions] == ["3"]


def test_records_with_documents_to_rank(tmp_path):
    dataset = read_dataset(files.write_ranking(tmp_path))
    assert dataset.documents == {
        "0": Document("0", "Ida Marsh owns the mill."),
        "1": Document("1", "The Alder is 12 km long."),
        "2": Document("2", "It rises at Old Ford."),
    }
    assert dataset.questions == [
        EvaluatedQuestion("0", "How long is the Alder?", ("12 km",), ("1",), ("0", "1", "2")),
        EvaluatedQuestion(
            "owner", "Who owns the mill?", ("Ida Marsh", "Marsh"), ("0",), ("2", "0")
        ),
    ]


def test_layouts_are_recognised(tmp_path):
    written = {
        "clara": files.write_own(tmp_path)[0],
        "flashrag": files.write_flashrag(tmp_path / "flashrag")[0],
        "squad": files.write_squad(tmp_path),
        "beir": files.write_beir(tmp_path / "beir"),
        "ranking": files.write_ranking(tmp_path),
    }
    assert set(written) == set(LAYOUTS)
    for layout, path in written.items():
        assert recognised_layout(path) == layout
        assert recognised_layout(str(path)) == layout


def test_a_layout_can_be_named(tmp_path):
    questions, documents = files.write_own(tmp_path)
    assert read_dataset(questions, documents, "clara") == read_dataset(questions, documents)
    with pytest.raises(ValueError, match=r"layout must be one of clara, flashrag, .*, got 'csv'"):
        read_dataset(questions, documents, "csv")


def test_lines_of_squad_longer_than_what_is_looked_at(tmp_path):
    """The file of a data set is one line of many megabytes."""
    whole = {"data": [{"title": "x", "paragraphs": [{"context": "y " * 100_000, "qas": []}]}]}
    whole["data"] += files.SQUAD["data"]
    path = tmp_path / "dev"
    path.write_text(json.dumps(whole))
    assert recognised_layout(path) == "squad"
    assert len(read_dataset(path).documents) == 4


def edited(record, **changes):
    """A copy of a record; None removes a field."""
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (edited(files.OWN_QUESTIONS[0], golden_answers=[]), "field 'golden_answers' is empty"),
        (edited(files.OWN_QUESTIONS[0], golden_answers=None), "'golden_answers' is missing"),
        (edited(files.OWN_QUESTIONS[0], golden_answers=["12", " "]), r"answers\[1\]' is empty"),
        (edited(files.OWN_QUESTIONS[0], golden_answers="12 km"), "must be a list of strings"),
        (edited(files.OWN_QUESTIONS[0], golden_answers=[12]), "must be a string, got the number"),
        (edited(files.OWN_QUESTIONS[0], question=" "), "field 'question' is empty"),
        (
            edited(files.OWN_QUESTIONS[0], positives=["oak"]),
            "field 'positives' names 'oak', an id that none of the 2 documents has",
        ),
        (
            edited(files.OWN_QUESTIONS[0], candidates=["mill", "oak\n"]),
            r"field 'candidates' names 'oak\\n', an id that none of the 2 documents has",
        ),
        (edited(files.OWN_QUESTIONS[0], candidates=[]), "field 'candidates' is empty; leave it"),
        (edited(files.OWN_QUESTIONS[0], answerable="no"), "'answerable' must be a boolean"),
        (edited(files.OWN_QUESTIONS[0], answerable=False), "'answerable' is false"),
        (edited(files.OWN_QUESTIONS[1], id="q0"), "id 'q0' is also on line 1"),
        ('{"id": "q9", "question": "cut of', "not valid JSON: Unterminated string"),
        ("[]", "must be a JSON object, got a list"),
    ],
)
def test_bad_questions(tmp_path, record, message):
    """One line names the file, the line and the field."""
    _, documents = files.write_own(tmp_path)
    first = edited(files.OWN_QUESTIONS[1], id="q0")
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


def test_files_that_hold_no_questions(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="holds no questions"):
        read_dataset(empty, {})
    with pytest.raises(DataError, match="holds no questions"):
        read_dataset(empty, {}, "clara")
    with pytest.raises(DataError, match="No such file"):
        read_dataset(tmp_path / "none.jsonl", {})
    with pytest.raises(DataError, match=r"is a folder without queries\.jsonl"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match=r"documents\.jsonl:1: field 'question' is missing"):
        read_dataset(files.write_own(tmp_path)[1], {})
    archive = tmp_path / "questions.jsonl.gz"
    archive.write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match="compressed with gzip"):
        read_dataset(archive, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_answers": [2]}, r"'golden_answers\[0\]' is 2, there are 2 choices"),
        ({"golden_answers": [-1]}, r"'golden_answers\[0\]' is -1, there are 2 choices"),
        ({"golden_answers": [True]}, "must be the number of a choice, got a boolean"),
        ({"golden_answers": []}, "must be a list of numbers of choices, got an empty list"),
        ({"golden_answers": "1"}, "must be a list of numbers of choices, got a string"),
        ({"choices": "the mill"}, "field 'choices' must be a list of strings"),
    ],
)
def test_bad_choices(tmp_path, changes, message):
    _, corpus = files.write_flashrag(tmp_path)
    record = {**files.FLASHRAG_QUESTIONS[1], **changes}
    questions = files.write_lines(tmp_path / "bad.jsonl", [files.FLASHRAG_QUESTIONS[0], record])
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: 'test_1': .*{message}"):
        read_dataset(questions, corpus)


def squad_with(**changes):
    """SQuAD's JSON whose first question is changed."""
    whole = json.loads(json.dumps(files.SQUAD))
    entries = whole["data"][0]["paragraphs"][0]["qas"]
    entries[0] = edited(entries[0], **changes)
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


def test_questions_with_documents_take_no_others(tmp_path):
    for path in (files.write_squad(tmp_path), files.write_ranking(tmp_path)):
        with pytest.raises(DataError, match="bring their own documents; leave out"):
            read_dataset(path, files.write_own(tmp_path)[1])


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("qrels/test.tsv", files.BEIR_QRELS[1:], r"test\.tsv:1: must be the headings query-id"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1"], r"test\.tsv:2: must have the columns .* got 2"),
        ("qrels/test.tsv", ["a\tb\tc", "1 d1 1"], r"test\.tsv:2: must have the columns .* got 1"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\tx"], r"test\.tsv:2: field 'score' must be a number"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\tnan"], "field 'score' must be a number, got 'nan'"),
        ("qrels/test.tsv", ["a\tb\tc", "9\td1\t1"], r"test\.tsv:2: field 'query-id' names '9'"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td9\t1"], r"test\.tsv:2: field 'corpus-id' names 'd9'"),
        ("qrels/test.tsv", ["a\tb\tc", "1\td1\t0"], "no judgement has a score above 0"),
        ("qrels/test.tsv", ["a\tb\tc"], "no judgement has a score above 0"),
        ("queries.jsonl", ['{"_id": "1", "te'], r"queries\.jsonl:1: not valid JSON"),
        ("queries.jsonl", [{"_id": "1"}], r"queries\.jsonl:1: '1': field 'text' is missing"),
        ("corpus.jsonl", [{"_id": "d1", "text": ""}], r"corpus\.jsonl:1: 'd1': field 'text' is em"),
        ("corpus.jsonl", [{"id": "d1", "text": "x"}], r"corpus\.jsonl:1: field '_id' is missing"),
        ("corpus.jsonl", files.BEIR_CORPUS[:1] * 2, r"corpus\.jsonl:2: id 'd1' is also on line 1"),
        ("corpus.jsonl", [], r"corpus\.jsonl: holds no documents"),
    ],
)
def test_bad_beir(tmp_path, name, lines, message):
    files.write_lines(files.write_beir(tmp_path) / name, lines)
    with pytest.raises(DataError, match=message) as raised:
        read_dataset(tmp_path)
    assert "\n" not in str(raised.value)


def test_beir_with_files_missing(tmp_path):
    folder = files.write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    with pytest.raises(DataError, match=r"give one of dev\.tsv, train\.tsv in place of"):
        read_dataset(folder)
    for name in ("dev.tsv", "train.tsv"):
        (folder / "qrels" / name).unlink()
    with pytest.raises(DataError, match=r"no judgements: .* it has no \*\.tsv"):
        read_dataset(folder)
    files.write_beir(folder)
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus\.jsonl: No such file"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docs": []}, r"ranking\.jsonl:2: field 'docs' is empty"),
        ({"docs": ["x", " "], "pos_index": [0]}, r"field 'docs\[1\]' is empty"),
        ({"pos_index": [2]}, r"field 'pos_index\[0\]' is 2, there are 2"),
        ({"golden_answers": []}, "field 'golden_answers' is empty"),
        ({"golden_answers": None, "answer": None}, "field 'answer' is missing"),
        ({"golden_answers": None, "answer": ""}, "field 'answer' is empty"),
        ({"question": None}, "field 'question' is missing"),
        ({"id": "0"}, r"ranking\.jsonl:2: id '0' is also on line 1"),
    ],
)
def test_bad_records_with_documents(tmp_path, changes, message):
    record = edited(files.RANKING[1], **changes)
    path = files.write_lines(tmp_path / "ranking.jsonl", [files.RANKING[0], record])
    with pytest.raises(DataError, match=message):
        read_dataset(path)


def test_a_pipe_needs_its_layout(tmp_path):
    _, documents = files.write_own(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="is a pipe or device; say which layout it has"):
        read_dataset(pipe, documents)
    content = (tmp_path / "questions.jsonl").read_text()
    writer = threading.Thread(target=pipe.write_text, args=(content,))
    writer.start()
    assert len(read_dataset(pipe, documents, "clara").questions) == 3
    writer.join()


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"query-id\tcorpus-id\tscore\n1\td\xff\t1\n", "not valid UTF-8: byte 0xff"),
        (b"a\tb\tc\n1\t" + b"d" * 200_000 + b"\t1\n", "not a table with tabs between columns"),
        (None, "No such file"),
    ],
)
def test_judgements_that_cannot_be_read(tmp_path, content, message):
    table = files.write_beir(tmp_path) / "qrels" / "dev.tsv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(DataError, match=rf"dev\.tsv: {message}"):
        read_dataset(table)


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


def test_squad_whose_data_are_not_its_first_field(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps({"licence": "none", "data": files.SQUAD["data"]}))
    assert recognised_layout(path) == "squad"


def test_flashrag_with_documents_in_memory(tmp_path):
    questions, _ = files.write_flashrag(tmp_path)
    held = {"0": Document("0", "The Alder is 12 km long.")}
    assert read_dataset(questions, held).documents == held
    with pytest.raises(DataError, match="documents are missing"):
        read_dataset(questions)


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ({"answer": "teacher's", "gold_answer": "gold"}, ("gold",)),
        ({"answer": "teacher's", "answers": ["one", "two"]}, ("one", "two")),
        ({"answer": ["one", "two"]}, ("one",)),
    ],
)
def test_golden_answers_come_before_the_teachers(tmp_path, answers, wanted):
    record = {**edited(files.RANKING[0], answer=None), **answers}
    path = files.write_lines(tmp_path / "ranking.jsonl", [record])
    assert read_dataset(path).questions[0].golden_answers == wanted
