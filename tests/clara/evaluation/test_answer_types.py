import pytest

from clara.evaluation.answer_types import NO_ANSWER, TYPES, answer_type, question_type
from clara.evaluation.dataset import EvaluatedQuestion

EXAMPLES = {
    "number": """
        180 sq km
        1.06 male(s)/female
        -3.9%
        $309.526 billion
        -$66.231 million
        US$ 5 million
        € 3.50
        15,000 metric tons
        26 deaths/1,000 live births
        14.41 deaths/1,000 population
        2.763 billion cubic meters
        420
        7,264,767
        0.925
        2,000
        10.373 million metric tonnes of CO2
        0.22 liters of pure alcohol
        14,000 bbl/day
        127.8 kt
        350 MW
        2.5 kWh
        37 °C
        37°C
        9.8 micrograms per cubic meter
        18 years of age
        18-24 years
        10 to 15 km
        5 ft 10 in
        14 years (2024 est.)
        20% (male 25%, female 15%)
        approximately 43,000 active-duty professional military personnel
        less than 1%
        about 2,000 people
        more than 20
        [1] (202) 966-8540
        seven
        Twenty-five
        two thirds
        three million people
        1/2
        3rd
        third
        99
        1 m
    """,
    "date": """
        31 December 2023
        December 31, 2023
        4 April 1960
        4 April 1960 (from France)
        9/11/2022
        2022-11-09
        March 2024
        July
        1947
        1990s
        the 1990s
        1939–1945
        from 1939 to 1945
        19th century
        the early 19th century
        500 BC
        Monday
        4 July
        July 4th
        second Monday in October
        1 January - 31 December
        12:30
        UTC-5
        UTC 0
    """,
    "place": """
        12 30 N, 69 58 W
        1 00 S, 11 45 E
        45°30'N, 12°15'E
        48.85 N, 2.35 E
        Central America and the Caribbean
        Southwestern Asia, between Turkey (to the west) and Azerbaijan
        island in the North Atlantic Ocean
        Mount Ararat
        Ellice Islands
        British Solomon Islands
        France
        the Netherlands
        New Zealand
        Trinidad and Tobago
        Lagos, Nigeria
        Hamilton, New Zealand
        Northern Africa, bordering the Mediterranean Sea
        Lake Victoria
        2433 Massachusetts Avenue NW, Washington, DC 20008
    """,
    "name": """
        Prime Minister Alix Didier FILS-AIMÉ
        Ambassador Christine TORETTI
        Francis Scott KEY/John Stafford SMITH
        La Marseillaise
        Netherlands Space Office
        Bank of America
        Turkish
        Solomon Islander
        12 Angry Men
        Ludwig van Beethoven
        Boeing 747
        King Charles III
        Prime Minister Américo d'Oliveira DOS RAMOS
        "Himno Nacional"
    """,
    "phrase": """
        about two-thirds the size of Pennsylvania
        the name means "Land of the Turks"
        Syrian pounds
        yes
        tropical marine; little seasonal temperature variation
        one of the largest countries
        parliamentary democracy
        it was 30 km from the sea when the war began
        北京
        may be extended by two years
    """,
}
PAIRS = [
    (wanted, line.strip())
    for wanted, lines in EXAMPLES.items()
    for line in lines.strip().splitlines()
]


@pytest.mark.parametrize(("wanted", "answer"), PAIRS)
def test_type(wanted, answer):
    assert answer_type(answer) == wanted
    assert answer_type(f"  {answer}\n") == wanted


def test_every_type_has_examples():
    assert set(EXAMPLES) == set(TYPES)


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is the capital of Gabon?", "place"),
        ("Where was the treaty signed?", "place"),
        ("In which city did they meet?", "place"),
        ("Who wrote it?", "name"),
        ("", "name"),
    ],
)
def test_the_question_tells_places_from_names(question, wanted):
    assert answer_type("Libreville", question) == wanted
    assert answer_type("180 sq km", question) == "number"


@pytest.mark.parametrize("answer", ["", " ", "()", "(1990)", "...", "\x1b[31m", "%", "1" * 5000])
def test_odd_answers_have_some_type(answer):
    assert answer_type(answer) in TYPES


def test_long_hostile_answers_are_quick():
    for answer in ("1 " * 20000, "(" * 20000, "1 00 " * 5000, "about " * 5000, " (" * 9000):
        assert answer_type(answer) in TYPES


def test_type_of_a_question():
    asked = EvaluatedQuestion("q", "How large is it?", ("180 sq km", "small"))
    assert question_type(asked) == "number"
    refused = EvaluatedQuestion("q", "How large is it?", (), answerable=False)
    assert question_type(refused) == NO_ANSWER
