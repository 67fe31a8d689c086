"""Questions of the World Factbook to evaluate with, on some countries of the installed package."""

import json
import re
from collections import Counter

import pytest

from clara.data import read_documents
from clara.data.factbook import FactbookError, evaluation_questions, load_factbook
from clara.data.factbook.asking import ask_all, guessable
from clara.data.factbook.build import SPLITS, Country, Field
from clara.data.factbook.comparisons import number_of
from clara.data.factbook.evaluation import KINDS, Evaluation, easy_kinds
from clara.data.factbook.neighbours import neighbours
from clara.data.factbook.paraphrases import paraphrase_records
from clara.data.factbook.passages import build_passages, divided
from clara.data.factbook.unanswerable import missing, stem
from clara.data.unanswerable import REFUSAL


def fold(text):
    return " ".join(text.casefold().split())


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(files_of_thirteen):
    return files_of_thirteen


@pytest.fixture(scope="module")
def texts(folder):
    return {document.id: document.text for document in read_documents(folder / "docs.jsonl")}


def country(code, name, **values):
    """A country with fields in the sections that the entry of every country has."""
    fields = {"Geography": {}, "People and Society": {"Religions": "none"}, "Government": {}}
    for key, value in values.items():
        section = "Government" if key == "capital" else "Geography"
        label = {
            "capital": "Capital, name",
            "area": "Area, total",
            "borders": "Land boundaries, border countries",
            "peak": "Elevation, highest point",
            "coast": "Coastline",
        }[key]
        fields[section][label] = value
    sections = {
        section: tuple(Field(label, text) for label, text in each.items())
        for section, each in fields.items()
    }
    return Country(code, name, sections)


KENYA = country(
    "ke",
    "Kenya",
    capital="Nairobi",
    area="580,367 sq km",
    borders="Ethiopia 867 km; Uganda 814 km; Nowhere 12 km",
    peak="Mount Kenya 5,199 m",
    coast="536 km",
)
ETHIOPIA = country(
    "et",
    "Ethiopia",
    capital="Addis Ababa",
    area="1,104,300 sq km",
    borders="Kenya 867 km",
    peak="Ras Dejen 4,550 m",
)
UGANDA = country(
    "ug", "Uganda", capital="Kampala", area="241,038 sq km", borders="Kenya 814 km (lake)"
)
THREE = [KENYA, ETHIOPIA, UGANDA]


@pytest.fixture(scope="module")
def three():
    """What is asked of three made-up entries."""
    passages = build_passages(THREE, 32)  # about a field each
    return Evaluation(THREE, THREE, passages, ask_all(THREE, passages), frozenset())


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_what_the_function_gives(folder, thirteen_countries, kind):
    name = "" if kind == "facts" else f"{kind}."
    written = rows(folder / f"questions.{name}test.jsonl")
    documents, questions = evaluation_questions("test", None, kind)
    assert [question.fields() for question in questions] == written
    known = {document.id for document in documents}
    assert all(known.issuperset(question.candidates) for question in questions)
    _, first = evaluation_questions("test", 3, kind)
    assert first == questions[:3]


@pytest.mark.parametrize("split", SPLITS)
def test_one_candidate_of_twenty_holds_the_answer(folder, texts, split):
    lines = rows(folder / f"questions.{split}.jsonl")
    assert len({line["id"] for line in lines}) == len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"\S+", line["id"])
        assert len(set(line["candidates"])) == len(line["candidates"])
        (gold,) = line["positives"]
        assert gold in line["candidates"]
        own = gold.split("/")[0]
        for answer in line["golden_answers"]:
            assert fold(answer) in fold(texts[gold])
        for name in line["candidates"]:
            if name != gold and name.split("/")[0] == own:
                assert fold(line["golden_answers"][0]) not in fold(texts[name])


def test_no_file_names_a_passage_of_another_split(folder, thirteen_countries):
    members = divided(load_factbook())
    for split in SPLITS:
        slugs = {country.slug for country in members[split]}
        assert slugs
        for kind in ("", "two-chunks.", "unanswerable."):
            for line in rows(folder / f"questions.{kind}{split}.jsonl"):
                assert {name.split("/")[0] for name in line["candidates"]} <= slugs


def test_splits_share_no_passage(folder):
    for kind in ("two-chunks", "unanswerable", "paraphrases"):
        held = {}
        for split in SPLITS:
            for record in rows(folder / f"{kind}.{split}.jsonl"):
                for text in record["docs"]:
                    assert held.setdefault(text, split) == split


def test_records_without_an_answer_refuse_as_the_questions_do(folder, texts):
    assert rows(folder / "unanswerable.train.jsonl")
    for split in SPLITS:
        questions = rows(folder / f"questions.unanswerable.{split}.jsonl")
        records = rows(folder / f"unanswerable.{split}.jsonl")
        for question, record in zip(questions, records, strict=True):
            assert record == {
                "question": question["question"],
                "docs": [texts[name] for name in question["candidates"]],
                "pos_index": [],
                "answer": REFUSAL,
            }


def test_both_passages_are_needed(folder, texts):
    for split in SPLITS:
        questions = rows(folder / f"questions.two-chunks.{split}.jsonl")
        records = rows(folder / f"two-chunks.{split}.jsonl")
        assert len(questions) == len(records) > 0
        for question, record in zip(questions, records, strict=True):
            first, second = question["positives"]
            (answer,) = question["golden_answers"]
            assert len(set(question["candidates"])) == len(question["candidates"])
            assert record["docs"] == [texts[name] for name in question["candidates"]]
            golds = [record["docs"][place] for place in record["pos_index"]]
            assert golds == [texts[first], texts[second]]
            assert record["answer"] == answer
            if question["id"].startswith("compare/"):
                assert first.split("/")[0] != second.split("/")[0]
                assert answer in {gold.partition(": ")[0] for gold in golds}
            else:
                assert fold(answer) in fold(golds[1])
                assert fold(answer) not in fold(golds[0])


def test_comparisons_of_three_countries(three):
    questions = {q.id: q for q in three.questions("two-chunks", None)}
    areas = {name: q for name, q in questions.items() if name.startswith("compare/area-total/")}
    sizes = {"Kenya": 580_367, "Ethiopia": 1_104_300, "Uganda": 241_038}
    assert len(areas) == 3
    for name, question in areas.items():
        pair = re.search(r"area, (\w+) or (\w+)\?", question.question).groups()
        best = (max if "/most/" in name else min)(pair, key=sizes.get)
        assert question.golden_answers == (best,)
        assert ("larger" in question.question) == ("/most/" in name)


def test_neighbours_of_three_countries(three):
    questions = {q.id: q for q in three.questions("two-chunks", None)}
    asked = questions["border/kenya/ethiopia/capital-name"]
    assert asked.question == (
        "What is the capital of the country that has the longest border with Kenya?"
    )
    assert asked.golden_answers == ("Addis Ababa",)
    assert questions["border/kenya/uganda/capital-name"].question == (
        "What is the capital of the country whose border with Kenya is 814 km long?"
    )
    assert questions["capital-name/ethiopia/ethiopia/elevation-highest-point"].question == (
        "What is the highest point of the country whose capital is Addis Ababa?"
    )
    # Nairobi is in a candidate, to be told from the capital that is asked for.
    assert any(name.startswith("kenya/government") for name in asked.candidates)


def test_who_borders_on_whom(countries):
    assert neighbours(THREE)["kenya"] == {"ethiopia": "867", "uganda": "814"}
    found = neighbours(countries)
    assert "canada" in found["united-states"]
    assert "world" not in found
    assert "european-union" not in found
    # A border is of both, whoever measured it.
    one_sided = [(a, b) for a, others in found.items() for b in others if a not in found.get(b, {})]
    assert len(one_sided) < 0.03 * sum(map(len, found.values())), one_sided


def test_numbers():
    assert number_of("580,367 sq km") == (580367, "sq km")
    assert number_of("23.5 million") == (23.5e6, "")
    assert number_of("$1.5 trillion") == (1.5e12, "")
    assert number_of("-2 m") == (-2, "m")
    assert number_of("Mount Kenya") is None


def test_what_is_missing_is_in_no_entry(folder):
    lines = [line for s in SPLITS for line in rows(folder / f"questions.unanswerable.{s}.jsonl")]
    assert lines
    for line in lines:
        assert line["answerable"] is False
        assert line["golden_answers"] == line["positives"] == []
    three = [KENYA, ETHIOPIA, UGANDA]
    passages = build_passages(three)
    facts = missing(three, ask_all(three, passages))
    assert list(facts) == ["uganda/missing/elevation-highest-point"]


def test_stems():
    assert stem("Exports 2023") == stem("Exports - partners") == stem("Exports") == "exports"
    assert stem("Area, land") == "area"
    assert stem("Health expenditure (as % of GDP)") == "health expenditure"


def test_paraphrases_tell_what_the_passage_says(folder):
    records = [row for split in SPLITS for row in rows(folder / f"paraphrases.{split}.jsonl")]
    assert len(records) > 100
    for record in records:
        assert record["data_type"] == "paraphrase"
        name = record["docs"][0].partition(": ")[0]
        (told,) = record["answers"]
        assert fold(name.removeprefix("The ")) in fold(told) or name == "World"
    passages = build_passages([KENYA])
    told = list(paraphrase_records(passages, ask_all([KENYA], passages), [KENYA]))
    assert len(told) == 1  # of Geography; the other sections have a field each
    assert "Mount Kenya" in told[0]["answers"][0]
    assert "580,367 sq km" in told[0]["answers"][0]


def test_mistakes():
    with pytest.raises(
        FactbookError, match=r"split must be one of train, validation, test, got 'x'"
    ):
        evaluation_questions("x")
    with pytest.raises(FactbookError, match="limit must be at least 1, got 0"):
        evaluation_questions("test", 0)
    with pytest.raises(FactbookError, match=r"kind must be one of facts, .* got 'y'"):
        evaluation_questions("test", 1, "y")


@pytest.mark.slow
def test_sixty_thousand_pairs_that_their_passages_hold(countries, passages):
    """Of the whole package: each pair's passages are known, and hold the answer."""
    texts = {passage.id: fold(passage.text) for passage in passages}
    asked = ask_all(countries, passages)
    assert len(asked) >= 60_000
    assert len({(a.country, a.label) for a in asked}) >= 50_000
    for each in asked:
        assert each.positives
        assert all(fold(each.answer) in texts[name] for name in each.positives)
    wordings = Counter(len(each.named) + len(each.bare) for each in asked if each.bare)
    assert set(wordings) == {4}
    assert sum(len(each.named) + len(each.bare) for each in asked) > 200_000


@pytest.mark.slow
def test_kinds_that_can_be_guessed_are_those_of_training(countries):
    """Without cutting the entries into passages, the same is found."""
    training = divided(countries)["train"]
    assert easy_kinds(training) == guessable(ask_all(training, build_passages(training)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_candidates(kind):
    """Of the whole package; the thirteen entries have too few passages."""
    documents, questions = evaluation_questions("validation", None, kind)
    texts = {document.id: fold(document.text) for document in documents}
    assert len(questions) == {"facts": 5_238, "two-chunks": 1_000, "unanswerable": 500}[kind]
    for question in questions:
        assert len(set(question.candidates)) == 20
        assert set(question.positives) <= set(question.candidates)
        assert len(question.positives) == {"facts": 1, "two-chunks": 2, "unanswerable": 0}[kind]
        if question.positives:
            answer = fold(question.golden_answers[0])
            assert any(answer in texts[name] for name in question.positives)
