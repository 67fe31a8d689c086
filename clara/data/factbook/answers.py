"""Short answers out of the texts of World Factbook fields.

Each function takes a field's text and returns literal parts of it, letter case aside: the accepted
answers, or nothing where the text has no plain answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Answers = Callable[[str], tuple[str, ...]]

LONGEST_ANSWER = 12  # words


def is_answer(answer: str) -> bool:
    """Whether it says something, and briefly."""
    return (
        any(c.isalnum() for c in answer)
        and len(answer.split()) <= LONGEST_ANSWER
        and ": " not in answer
        and not re.match(r"(?:n/?a|nil|no|none|not|note|see|unknown|unspecified)\b", answer, re.I)
    )


def folded(text: str) -> str:
    """The text without letter case, with single spaces."""
    return " ".join(text.casefold().split())


def leading(text: str) -> tuple[str, ...]:
    """The value before any remark: "58%" of "58% of total population (2019 est.)"."""
    text = re.sub(r"^(?:\([^)]*\) ?)+", "", text)
    # A parenthesis within a name stays: "Cocos (Keeling) Islands Shire Council".
    return (re.split(r" \((?![^()]*\) [A-Z])|;|(?<=%) ", text)[0].rstrip(" ,"),)


def matching(pattern: str) -> Answers:
    """The group of a regular expression, searched for in the text."""
    compiled = re.compile(pattern)

    def answers(text: str) -> tuple[str, ...]:
        found = compiled.search(text)
        return (found[1],) if found else ()

    return answers


def person(text: str) -> tuple[str, ...]:
    """An office-holder with title; the Factbook writes surnames in capitals."""
    (name,) = leading(text)
    named = any(len(word) > 1 and word.isupper() for word in re.findall(r"[^\W\d_]+", name))
    return (name,) if named else ()


def names(text: str) -> tuple[str, ...]:
    """Each name of a list: "Upper Volta, Republic of Upper Volta"."""
    return tuple(n for n in _entries(text) if n[:1].isupper() and len(n.split()) < 7)


def official_languages(text: str) -> tuple[str, ...]:
    """All names in front of "(official"."""
    found = re.findall(
        r"(?:^|[,;] |\band )([A-Z][^\W\d_]+(?: [A-Z][^\W\d_]+)*)[ \d.%]*\(official", text
    )
    return tuple(dict.fromkeys(found))


def largest_share(text: str) -> tuple[str, ...]:
    """The name with the highest percentage of a list such as "Muslim 52%, Christian 44% (2014)".

    Nothing where percentages that the list does not give could be higher.
    """
    shares = _shares(text)
    unknown = 100 - sum(share for _, share in shares)
    return tuple(name for name in largest_partner(text) if dict(shares)[name] > unknown)


def largest_partner(text: str) -> tuple[str, ...]:
    """The same for a list that is known to have the largest: "China 26%, UK 5% (2023)"."""
    named = [(name, share) for name, share in _shares(text) if name[0].isupper()]
    largest = max((share for _, share in named), default=0.0)
    best = [name for name, share in named if share == largest]
    return tuple(best) if len(best) == 1 else ()


def _shares(text: str) -> list[tuple[str, float]]:
    found = (
        re.fullmatch(r"([^\W\d_][^\d%;:]*?)(?: at least)? (\d+(?:\.\d+)?)%.*", entry)
        for entry in _entries(text)
    )
    return [(m[1], float(m[2])) for m in found if m and not m[1].endswith(" than")]


def longest_border(text: str) -> tuple[str, ...]:
    """The neighbour with the most kilometres."""
    borders = []
    for entry in _entries(text):
        found = re.fullmatch(r"(?:the )?([A-Z][^\d:]*?) ([\d,.]+) km.*", entry)
        if found:
            borders.append((float(found[2].replace(",", "")), found[1]))
    return (max(borders)[1],) if borders else ()


def largest_city(text: str) -> tuple[str, ...]:
    """The urban area with the most people; capitals are in capitals in the Factbook."""
    cities = []
    for number, million, name in re.findall(
        r"([\d.,]*\d)( million)? ((?:[^\W\d_]|['’ .-])+?)(?= \(|,|;|$)", text
    ):
        people = float(number.replace(",", "")) * (1e6 if million else 1)
        cities.append((people, name.title().replace("'S", "'s") if name.isupper() else name))
    return (max(cities)[1],) if cities else ()


def _entries(text: str) -> list[str]:
    """Entries of a list, without what stands in parentheses or brackets."""
    while (shorter := re.sub(r" ?\([^()]*\)| ?\[[^\[\]]*\]", "", text)) != text:
        text = shorter
    return [entry.strip() for entry in re.split(r"[,;] (?!\d)", text)]


# "Mont Blanc 4,810 m", "Hvannadalshnukur (at Vatnajokull Glacier) 2,110 m", "Mont Blanc 4,810"
PLACE = matching(
    r"^(?![^;]*unnamed)([^\W\d_][^;:(\d]*?)(?: (?:more|less) than)?,? (?:\([^;]*?\) )*"
    r"-?\d[\d,.]*(?: m\b|$|;| \()"
)
HEIGHT = matching(r"^[^;:]*? (-?\d[\d,.]*(?: m\b)?)(?=$|;| \()")
AREA = matching(r"^([\d.,]+ (?:million |billion )?sq km)")
QUOTED = matching(r"^[\"“](.+?),?[\"”]")
CURRENCY = matching(r"^([^(:]+) \([A-Z]{3}\)")
CURRENCY_USED = matching(r"^(?:note: uses )?the (US dollar|euro)\b")
HOLIDAY = matching(r"^([^;:,(]+?)(?: \([^)]*\))?, \d")
HOLIDAY_DATE = matching(r"^[^;:,]+, (\d{1,2} [A-Z][a-z]+)\b")
DATE = matching(r"^(\d{1,2} [A-Z][a-z]+ \d{4})\b")
FROM = matching(
    r"^\d{1,2} [A-Z][a-z]+ \d{4} \(from ((?:the )?[A-Z][\w-]*(?: (?:and |the )*[A-Z][\w-]*){0,3})\)"
)
TIME_ZONE = matching(r"^(UTC ?[+-]?\d+(?:[:.]\d+)?)")
YEARS = matching(r"^(\d+ years?)\b")
NUMBER = matching(r"^(\d[\d.,]*)")
NOUN = matching(r"^([^(;,]+?) ?(?=[(;,]|$)")
