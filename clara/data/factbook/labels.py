"""How a question names a field of the World Factbook.

The Factbook writes "Elevation, highest point" or "Debt - external 2023". A question says "highest
point" or "external debt in 2023". A label without an entry in `_NAMES` and without a pattern in
`_PATTERNS` is made readable by rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Name:
    """A field's name within a question.

    Attributes:
        head: "coastline", "exports".
        joint: what stands between the head and a country: "of", "in".
        tail: "in 2023" where the field is that of a year, else "".
    """

    head: str
    joint: str
    tail: str

    @property
    def alone(self) -> str:
        """The name without a country: "exports in 2023"."""
        return f"{self.head} {self.tail}".rstrip()

    def with_country(self, country: str) -> str:
        """The name with a country: "exports of Kenya in 2023"."""
        return f"{self.head} {self.joint} {country} {self.tail}".rstrip()


@cache
def name_of(label: str) -> Name:
    """The name of the field with this label.

    "Area, total" gives "total area", "Exports 2023" gives "exports" with the tail "in 2023".
    """
    found = re.fullmatch(r"(.*) (20\d\d)", label)
    stem, tail = (found[1], f"in {found[2]}") if found else (label, "")
    head = (_NAMES.get(stem) or _from_pattern(stem) or _readable(stem)).replace("(s)", "s")
    words, _, last = head.rpartition(" ")
    return Name(words, last, tail) if last in _JOINTS else Name(head, "of", tail)


def _from_pattern(label: str) -> str | None:
    for pattern, name in _PATTERNS:
        if found := re.fullmatch(pattern, label):
            return found.expand(name)
    return None


def _readable(label: str) -> str:
    """ "Land use, forest" becomes "forest (land use)"; a parenthesis of the first part goes."""
    first, *rest = (part.replace(" - ", " ") for part in label.split(", "))
    if not rest:
        return _lowered(first)
    first = re.sub(r" \([^()]*\)", "", first)
    return f"{', '.join(map(_lowered, rest))} ({_lowered(first)})"


def _lowered(text: str) -> str:
    """The text with a small first letter, unless its first word is a name or an abbreviation."""
    word = text.split(" ")[0]
    is_name = any(letter.isupper() for letter in word[1:]) or word in _CAPITALISED
    return text if is_name else text[:1].lower() + text[1:]


_JOINTS = ("in", "to")
_CAPITALISED = ("African", "Arctic", "Atlantic", "French", "Gini", "Indian", "Pacific", "Taipei")

# A last word "in" or "to" is the joint; without one it is "of".
_NAMES = {
    # Geography
    "Area - comparative": "comparative area",
    "Elevation, highest point": "highest point",
    "Elevation, lowest point": "lowest point",
    "Land boundaries, total": "total length of the land boundaries",
    "Land boundaries, border countries": "border countries",
    "Land use, agricultural land": "share of agricultural land in",
    "Land use, agricultural land, arable land": "share of arable land in",
    "Land use, agricultural land, permanent crops": "share of land under permanent crops in",
    "Land use, agricultural land, permanent pasture": "share of permanent pasture in",
    "Land use, forest": "share of forest in",
    "Land use, other": "share of other land use in",
    "Irrigated land": "irrigated land in",
    # People and society
    "Literacy, total population": "literacy of the total population",
    "Nationality, noun": "nationality (noun)",
    "Nationality, adjective": "nationality (adjective)",
    "Dependency ratios, potential support ratio": "potential support ratio",
    "Sex ratio, at birth": "sex ratio at birth in",
    "Sex ratio, total population": "sex ratio of the total population",
    "Life expectancy at birth, total population": "life expectancy at birth in",
    "Children under the age of 5 years underweight": "underweight children under the age of 5 in",
    "Currently married women (ages 15-49)": "currently married women aged 15-49 in",
    "Obesity - adult prevalence rate": "adult prevalence rate of obesity in",
    "Urbanization, urban population": "urban population",
    # Environment
    "Carbon dioxide emissions, total emissions": "total carbon dioxide emissions",
    "International environmental agreements, signed, but not ratified": (
        "international environmental agreements signed, but not ratified"
    ),
    # Government
    "Country name, conventional long form": "conventional long name",
    "Country name, conventional short form": "conventional short name",
    "Country name, local long form": "local long name",
    "Country name, local short form": "local short name",
    "Country name, former": "former name",
    "Country name, abbreviation": "abbreviation of the name",
    "Country name, etymology": "etymology of the name",
    "Capital, name": "capital",
    "Capital, geographic coordinates": "geographic coordinates of the capital",
    "Capital, time difference": "time difference of the capital",
    "Capital, daylight saving time": "daylight saving time in the capital",
    "Capital, etymology": "etymology of the capital",
    "Dual citizenship recognized": "recognition of dual citizenship in",
    "Citizenship by birth": "citizenship by birth in",
    "Citizenship by descent only": "citizenship by descent only in",
    "Citizenship, residency requirement for naturalization": (
        "residency requirement for naturalization in"
    ),
    "Constitution, history": "history of the constitution",
    "Constitution, amendment process": "amendment process of the constitution",
    "Executive branch, most recent election date": (
        "most recent election date of the executive branch"
    ),
    "Executive branch, expected date of next election": (
        "expected date of the next election of the executive branch"
    ),
    "Judicial branch, highest court(s)": "highest courts",
    "Judicial branch, subordinate courts": "subordinate courts",
    "National anthem(s), title": "title of the national anthem",
    "National anthem(s), lyrics/music": "lyrics and music of the national anthem",
    "National anthem(s), history": "history of the national anthem",
    "National heritage, total World Heritage Sites": "total World Heritage Sites in",
    "National heritage, selected World Heritage Site locales": "World Heritage Site locales in",
    # Economy
    "Real GDP (purchasing power parity)": "real GDP at purchasing power parity",
    "GDP (official exchange rate)": "GDP at the official exchange rate",
    "Inflation rate (consumer prices)": "inflation rate of consumer prices in",
    "Gini Index coefficient - distribution of family income": "Gini index of family income in",
    "Debt - external": "external debt",
    "Exchange rates": "exchange rate",
    "Exchange rates, Currency": "currency",
    "Exports - partners": "export partners",
    "Imports - partners": "import partners",
    "Exports - commodities": "export commodities",
    "Imports - commodities": "import commodities",
    # Energy
    "Electricity, installed generating capacity": "installed electricity generating capacity",
    "Electricity, transmission/distribution losses": (
        "transmission and distribution losses of electricity in"
    ),
    "Petroleum, crude oil estimated reserves": "estimated crude oil reserves",
    "Nuclear energy, Percent of total electricity production": (
        "nuclear energy in percent of the total electricity production"
    ),
    # Communications
    "Internet users, percent of population": "internet users in percent of the population",
    "Broadband - fixed subscriptions, total": "total fixed broadband subscriptions in",
    "Broadband - fixed subscriptions, subscriptions per 100 inhabitants": (
        "fixed broadband subscriptions per 100 inhabitants in"
    ),
    # Transportation
    "Railways, total": "total length of the railways",
    "Merchant marine, total": "total number of merchant ships",
    "Merchant marine, by type": "merchant ships by type",
    "Airports": "number of airports in",
    "Heliports": "number of heliports in",
    "Total ports": "total number of ports in",
    "Ports with oil terminals": "number of ports with oil terminals in",
    "Ports, size unknown": "number of ports of unknown size in",
    # Military and security
    "Military Expenditures": "military expenditures",
    # Transnational issues
    "Refugees and internally displaced persons, IDPs": "number of internally displaced persons in",
    "Illicit drugs, USG identification": "USG identification of illicit drugs in",
    "Trafficking in persons, tier rating": "tier rating of trafficking in persons in",
}

_PATTERNS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"Area, (total|land|water)", r"\1 area"),
        (r"Maritime claims, (.*)", r"claimed \1"),
        (r"Population, (total|male|female)", r"\1 population"),
        (r"Age structure, (.*)", r"population aged \1 in"),
        (r"Dependency ratios, (.*)", r"\1"),
        (r"(Median age), total", r"median age in"),
        (r"Median age, (male|female)", r"median age of the \1 population in"),
        (r"Sex ratio, (\d.*)", r"sex ratio at the age of \1 in"),
        (r"Infant mortality rate, (.*)", r"\1 infant mortality rate in"),
        (r"Life expectancy at birth, (.*)", r"\1 life expectancy at birth in"),
        (r"Literacy, (male|female)", r"literacy of the \1 population"),
        (r"School life expectancy \(.*\), (.*)", r"\1 school life expectancy in"),
        (r"Tobacco use, (.*)", r"\1 tobacco use in"),
        (r"Alcohol consumption per capita, total", r"total alcohol consumption per capita in"),
        (r"Alcohol consumption per capita, (.*)", r"alcohol consumption per capita from \1 in"),
        (
            r"(Health|Education) expenditure \((?:as )?% (?:of )?(.*)\)",
            r"\1 expenditure as % of \2",
        ),
        (r"Child marriage, (.*)", r"\1 in"),
        (
            r"Drinking water source, (improved|unimproved), (.*)",
            r"\1 drinking water source of the \2 population",
        ),
        (
            r"Sanitation facility access, (improved|unimproved), (.*)",
            r"\1 sanitation facility access of the \2 population",
        ),
        (r"Carbon dioxide emissions, from (.*)", r"carbon dioxide emissions from \1 in"),
        (r"Methane emissions, other", r"methane emissions from other sources in"),
        (r"Methane emissions, (.*)", r"methane emissions from \1 in"),
        (r"Total water withdrawal, (.*)", r"\1 water withdrawal in"),
        (r"Waste and recycling, (.*)", r"\1 in"),
        (r"Executive branch, (chief of state|head of government|cabinet)", r"\1"),
        (r"Legislative branch, legislature name", r"name of the legislature"),
        (r"Legislative branch, chamber name", r"name of the only chamber of the legislature"),
        (r"Legislative branch, (number of seats)", r"\1 in the legislature"),
        (r"Legislative branch, (percentage of women)(?: in chamber)?", r"\1 in the legislature"),
        (r"Legislative branch, legislative structure", r"structure of the legislature"),
        (r"Legislative branch, (.*)", r"\1 of the legislature"),
        (
            r"Legislative branch - (lower|upper) chamber, chamber name",
            r"name of the \1 chamber",
        ),
        (
            r"Legislative branch - (lower|upper) chamber, number of seats",
            r"number of seats in the \1 chamber",
        ),
        (
            r"Legislative branch - (lower|upper) chamber, percentage of women in chamber",
            r"percentage of women in the \1 chamber",
        ),
        (r"Legislative branch - (lower|upper) chamber, (.*)", r"\2 of the \1 chamber"),
        (r"Diplomatic representation in the US, FAX", r"fax number of the mission in the US"),
        (
            r"Diplomatic representation in the US, telephone",
            r"telephone number of the mission in the US",
        ),
        (
            r"Diplomatic representation in the US, chief of mission",
            r"chief of the mission in the US",
        ),
        (r"Diplomatic representation in the US, (.*)", r"\1 of the mission in the US"),
        (r"Diplomatic representation from the US, FAX", r"fax number of the US mission in"),
        (
            r"Diplomatic representation from the US, telephone",
            r"telephone number of the US mission in",
        ),
        (r"Diplomatic representation from the US, chief of mission", r"chief of the US mission in"),
        (r"Diplomatic representation from the US, embassy", r"address of the US embassy in"),
        (r"Diplomatic representation from the US, (.*)", r"\1 of the US mission in"),
        (
            r"GDP - composition, by (?:sector of origin|end use), (.*)",
            r"share of \1 in the GDP",
        ),
        (r"Youth unemployment rate (\(.*\)), total", r"youth unemployment rate \1 in"),
        (r"Youth unemployment rate (\(.*\)), (.*)", r"\2 youth unemployment rate \1 in"),
        (
            r"Household income or consumption by percentage share, (.*)",
            r"income share of the \1 in",
        ),
        (r"Average household expenditures, (.*)", r"average household expenditures \1 in"),
        (r"Budget, (.*)", r"budget \1"),
        (r"Electricity access, electrification - (.*)", r"electricity access of the \1 in"),
        (r"Electricity generation sources, (.*)", r"share of \1 in the electricity generation"),
        (r"Electricity, (consumption|exports|imports)", r"electricity \1"),
        (r"Coal, (production|consumption|exports|imports)", r"coal \1"),
        (r"Natural gas, (production|consumption|exports|imports)", r"natural gas \1"),
        (r"Coal, proven reserves", r"proven coal reserves"),
        (r"Natural gas, proven reserves", r"proven natural gas reserves"),
        (r"Nuclear energy, Number of (.*)", r"number of \1 in"),
        (r"Nuclear energy, Net capacity (.*)", r"net capacity \1 in"),
        (r"Telephones - fixed lines, total (.*)", r"total fixed line \1 in"),
        (r"Telephones - mobile cellular, total (.*)", r"total mobile cellular \1 in"),
        (r"Telephones - fixed lines, (.*)", r"fixed line \1 in"),
        (r"Telephones - mobile cellular, (.*)", r"mobile cellular \1 in"),
        (r"Railways, (.*)", r"\1 railways in"),
        (r"Ports, (.*)", r"number of \1 ports in"),
        (r"Refugees and internally displaced persons, (.*)", r"number of \1 in"),
    )
)
