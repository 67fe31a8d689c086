"""What kind of answer a question asks for: number, date, name, place or phrase, by rule.

The rules look at the words of a golden answer, which they take for English, in this order. Remarks
in parentheses after a blank are left out first; an answer of more than 300 characters is a phrase.

1. place: coordinates, such as "12 30 N, 69 58 W".
2. date: made of nothing but days, months, weekdays, years (a bare number from 1000 to 2099),
   decades, centuries, clock times, time zones, and words such as "early", "until" and "BC".
3. number: digits or number words, perhaps with a currency or "about" before and a unit after. A
   unit is lower-case words ("deaths/1,000 live births") or a symbol ("MW", "%"), so that
   "12 Angry Men" is no number. Telephone numbers are numbers.
4. place: capitalised words with a word of geography among them ("Mount", "Islands", "Asia") or the
   name of a country, joined by words such as "between" and "north of"; or capitalised words where
   the question asks for a place. Organisations ("Bank of America") are names.
5. name: capitalised words, joined by words such as "of" and "de".
6. phrase: anything else. So are the words of scripts without capitals.
"""

from __future__ import annotations

import re
from typing import Literal

from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.place_words import COUNTRIES, GEOGRAPHY, listed

AnswerType = Literal["number", "date", "name", "place", "phrase"]

TYPES: tuple[AnswerType, ...] = ("number", "date", "name", "place", "phrase")
NO_ANSWER = "none"
"""The type of a question that has no golden answer."""

_LONGEST = 300  # characters
_REMARK = re.compile(r"\s+\([^()]*\)")
_DEGREES = r"\d{1,3}(?:[.,]\d+)?\s*°?(?:\s*\d{1,2}\s*['′]?){0,2}(?:\s*\d{1,2}\s*[\"″])?"
_COORDINATES = re.compile(rf"{_DEGREES}\s*[NS]\b[\s,;]*{_DEGREES}\s*[EW]\b")

_MONTHS = listed(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
_WEEKDAYS = listed("monday tuesday wednesday thursday friday saturday sunday")
_AROUND_DATES = listed(
    "a about ad after and annually around at bc bce before between by c ca ce circa during early "
    "end every first fourth from in last late mid of on o'clock pm am second since the third "
    "through till to until year"
)
_IN_DATE = re.compile(
    r"(?P<telling>(1\d|20)\d\d(s|['’]s)?|\d{1,2}[/.]\d{1,2}[/.](\d{4}|\d{2})|\d{4}-\d{2}(-\d{2})?"
    r"|(1\d|20)\d\d[-–/](\d{2}|\d{4})|\d{1,2}:\d{2}(:\d{2})?|(utc|gmt)([-−+±]\d{1,2}(:\d{2})?)?|century|centuries|decade)"
    r"|\d{1,2}(st|nd|rd|th)?|\d{1,2}[-–]\d{1,2}|[-–]"
)
_YEAR_BEFORE = re.compile(r"\d{1,4}\s+(BC|BCE|AD|CE)")

_ABOUT = re.compile(
    r"(?:about|approximately|approx\.?|around|nearly|almost|roughly|over|under|some|only|below|above"
    r"|(?:more|less|fewer) than|up to|at (?:least|most)|[~≈<>≤≥+±])\s*",
    re.IGNORECASE,
)
_FIGURE = r"[-–−+]?\d[\d.,]*(?:st|nd|rd|th)?(?:\s*/\s*\d[\d.,]*)?"
_MONEY = r"(?:[A-Z]{0,3}[$€£¥₹₽₩]|USD|EUR|GBP)"
_AMOUNT = re.compile(rf"[-–−+]?{_MONEY}?\s*{_FIGURE}\s*(?:[%‰°$€£¥₹₽₩′″]|percent\b)?\s*[A-Z]?\b")
_TELEPHONE = re.compile(r"[\d\s()\[\].+/-]*\d[\d\s()\[\].+/-]*")
_NUMBER_WORD = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    "|hundred|thousand|million|billion|trillion|dozen|half|quarters?|first|second|thirds?|fourth"
    "|fifths?|sixth|seventh|eighth|ninth|tenths?|both|none"
)
_IN_WORDS = re.compile(
    rf"(?:{_NUMBER_WORD})(?:[\s-]+(?:and\s+)?(?:{_NUMBER_WORD}))*\b", re.IGNORECASE
)
_NO_UNIT = listed("of the a an in at on")
_SYMBOL = re.compile(r"[A-Z]{1,4}\d?|[a-zµ]{1,2}[A-Z][A-Za-z]?|Btu|Mt|Gt|Mbps|Gbps|Hz|°[CF]")
_LONGEST_UNIT = 6  # words

_JOINING = listed(
    "a al an and as at bin da das de del della der des di do dos du e el en et for ibn in la las "
    "le les los of on or the to und van von y"
)
_ELIDED = re.compile(r"(?:[dlDL]['’]|al-)\w")
_ORGANISATION = listed(
    "agency alliance army assembly association authority bank board bureau center centre church "
    "club commission committee company congress corporation corps council court department "
    "federation force forces foundation front government group guard institute league ministry "
    "movement navy office organisation organization parliament party police president service "
    "society team union university"
)
_DIRECTION = re.compile(r"(?:north|south|east|west|central|mid)[a-z]*", re.IGNORECASE)
_AROUND_PLACES = listed(
    "about along astride between border bordering borders both center centre coast coastal edge "
    "end entirely half its just mainland middle near off part shore side tip various within"
)
_ASKS_FOR_PLACE = re.compile(
    r"^\W*where\b|\b(?:which|what) (?:country|city|town|state|province|region|continent|island|"
    r"county|river|lake|sea|ocean|district)\b|\bcapital\b|\b(?:birthplace|location|located)\b",
    re.IGNORECASE,
)


def answer_type(golden_answer: str, question: str = "") -> AnswerType:
    """The type of an answer by the rules of this module.

    Args:
        question: tells a place from another name where the answer alone does not.

    Example:
        >>> answer_type("180 sq km"), answer_type("Oslo", "What is the capital of Norway?")
        ('number', 'place')
    """
    answer = " ".join(golden_answer.split())
    answer = _REMARK.sub("", answer).strip(" .;,\"'“”") or answer
    if len(answer) > _LONGEST:
        return "phrase"
    if _COORDINATES.search(answer):
        return "place"
    if _is_date(answer):
        return "date"
    if _is_number(answer):
        return "number"
    words = [word for word in re.split(r"[\s,;/]+", answer) if word]
    if _is_place(words, answer, question):
        return "place"
    return "name" if _is_name(words) else "phrase"


def question_type(question: EvaluatedQuestion) -> str:
    """The type of a question's first golden answer; `NO_ANSWER` if there is none."""
    if not question.golden_answers:
        return NO_ANSWER
    return answer_type(question.golden_answers[0], question.question)


def _is_date(answer: str) -> bool:
    if _YEAR_BEFORE.fullmatch(answer):
        return True
    telling = False
    for word in re.split(r"[\s,]+", answer):
        bare = word.lower().strip(".")
        found = _IN_DATE.fullmatch(bare)
        if bare in _MONTHS | _WEEKDAYS or (found and found["telling"]):
            telling = True
        elif not found and bare not in _AROUND_DATES:
            return False
    return telling


def _is_number(answer: str) -> bool:
    if _TELEPHONE.fullmatch(answer):
        return True
    rest = answer
    while about := _ABOUT.match(rest):
        rest = rest[about.end() :]
    amount = _AMOUNT.match(rest) or _IN_WORDS.match(rest)
    if not amount:
        return False
    rest = rest[amount.end() :]
    units = [each for each in re.split(r"[\s,/;·×*]+|[-–](?=\d)", rest) if each]
    units = [each for each in units if not _AMOUNT.fullmatch(each)]
    if units and units[0].lower() in _NO_UNIT:
        return False
    return len(units) <= _LONGEST_UNIT and all(map(_is_unit, units))


def _is_unit(word: str) -> bool:
    """Whether a word after a figure may be of its unit: in lower case or a symbol."""
    return word == word.lower() or bool(_SYMBOL.fullmatch(word.strip(".()")))


def _is_place(words: list[str], answer: str, question: str) -> bool:
    lowered = [word.strip(".()'’").lower() for word in words]
    if any(word in _ORGANISATION for word in lowered):
        return False
    if " ".join(lowered).removeprefix("the ") in COUNTRIES:
        return True
    of_places = [
        word in GEOGRAPHY or word in COUNTRIES or bool(_DIRECTION.fullmatch(word))
        for word in lowered
    ]
    fits = all(
        known or word in _JOINING or word in _AROUND_PLACES or not given[:1].islower()
        for given, word, known in zip(words, lowered, of_places)
    )
    if not fits or not any(given[:1].isupper() for given in words):
        return False
    if any(word in GEOGRAPHY or word in COUNTRIES for word in lowered):
        return True
    parts = [part.strip().lower() for part in re.split(r",| and ", answer)]
    if any(part.removeprefix("the ") in COUNTRIES for part in parts):
        return True
    return bool(_ASKS_FOR_PLACE.search(question)) and _is_name(words)


def _is_name(words: list[str]) -> bool:
    """Whether words are capitalised, apart from those that join names."""
    capitalised = [word for word in words if word.lstrip("(\"'“‘")[:1].isupper()]
    return bool(capitalised) and all(
        word in capitalised
        or word.lower() in _JOINING
        or _ELIDED.match(word)
        or word[:1].isdigit()
        or word in ("&", "-")
        for word in words
    )
