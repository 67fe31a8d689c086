"""Questions about the World Factbook: one template per kind of field."""

from __future__ import annotations

from dataclasses import dataclass

from clara.data.factbook.answers import (
    AREA,
    CURRENCY,
    CURRENCY_USED,
    DATE,
    FROM,
    HEIGHT,
    HOLIDAY,
    HOLIDAY_DATE,
    NOUN,
    NUMBER,
    PLACE,
    QUOTED,
    TIME_ZONE,
    YEARS,
    Answers,
    largest_city,
    largest_partner,
    largest_share,
    leading,
    longest_border,
    names,
    official_languages,
    person,
)


@dataclass(frozen=True)
class Template:
    """A question about one field.

    Attributes:
        key: names the kind of question in its id.
        label: of the field; "{year}" stands for the last year there is.
        question: with places for `country` and `year`.
        answers: from the field's text to literal parts of it; empty where it has no plain answer.
    """

    key: str
    label: str
    question: str
    answers: Answers = leading


TEMPLATES = (
    # Geography
    Template("location", "Location", "Where is {country} located?"),
    Template("area", "Area, total", "What is the total area of {country}?", AREA),
    Template("land-area", "Area, land", "How much land area is there in {country}?", AREA),
    Template(
        "size",
        "Area - comparative",
        "How does the size of {country} compare with that of US places?",
    ),
    Template("coastline", "Coastline", "How long is the coastline of {country}?"),
    Template("borders", "Land boundaries, total", "How long are the land borders of {country}?"),
    Template(
        "longest-border",
        "Land boundaries, border countries",
        "Which neighbor has the longest land border with {country}?",
        longest_border,
    ),
    Template("peak", "Elevation, highest point", "What is the highest point of {country}?", PLACE),
    Template(
        "peak-height",
        "Elevation, highest point",
        "How high is the highest point of {country}?",
        HEIGHT,
    ),
    Template("low", "Elevation, lowest point", "What is the lowest point of {country}?", PLACE),
    Template("mean-elevation", "Mean elevation", "What is the mean elevation of {country}?"),
    Template("coordinates", "Geographic coordinates", "What are the coordinates of {country}?"),
    Template("irrigated-land", "Irrigated land", "How much irrigated land is there in {country}?"),
    Template("forest", "Land use, forest", "What share of the land of {country} is forest?"),
    Template(
        "arable-land",
        "Land use, agricultural land, arable land",
        "What share of the land of {country} is arable?",
    ),
    Template(
        "territorial-sea",
        "Maritime claims, territorial sea",
        "How wide is the territorial sea claimed by {country}?",
    ),
    # People
    Template("population", "Population, total", "What is the population of {country}?"),
    Template(
        "population-growth",
        "Population growth rate",
        "How fast does the population of {country} grow per year?",
    ),
    Template("noun", "Nationality, noun", "What is a citizen of {country} called?", NOUN),
    Template(
        "adjective", "Nationality, adjective", "Which adjective describes things from {country}?"
    ),
    Template(
        "largest-ethnic-group",
        "Ethnic groups",
        "What is the largest ethnic group in {country}?",
        largest_share,
    ),
    Template(
        "official-language",
        "Languages",
        "Which language is official in {country}?",
        official_languages,
    ),
    Template(
        "main-religion",
        "Religions",
        "What is the largest religious group in {country}?",
        largest_share,
    ),
    Template(
        "largest-city",
        "Major urban areas - population",
        "What is the most populous urban area of {country}?",
        largest_city,
    ),
    Template(
        "urban-population",
        "Urbanization, urban population",
        "What share of the population of {country} is urban?",
    ),
    Template("median-age", "Median age, total", "What is the median age in {country}?"),
    Template("birth-rate", "Birth rate", "What is the birth rate of {country}?"),
    Template("death-rate", "Death rate", "What is the death rate of {country}?"),
    Template("migration", "Net migration rate", "What is the net migration rate of {country}?"),
    Template(
        "fertility",
        "Total fertility rate",
        "How many children does a woman have on average in {country}?",
        NUMBER,
    ),
    Template(
        "age-at-first-birth",
        "Mother's mean age at first birth",
        "How old are mothers in {country} at their first birth on average?",
    ),
    Template(
        "maternal-mortality",
        "Maternal mortality ratio",
        "What is the maternal mortality ratio of {country}?",
    ),
    Template(
        "infant-mortality",
        "Infant mortality rate, total",
        "What is the infant mortality rate of {country}?",
    ),
    Template(
        "life-expectancy",
        "Life expectancy at birth, total population",
        "What is the life expectancy at birth in {country}?",
    ),
    Template(
        "life-expectancy-women",
        "Life expectancy at birth, female",
        "What is the life expectancy of women in {country}?",
    ),
    Template(
        "physicians",
        "Physician density",
        "How many physicians are there per 1,000 people in {country}?",
        NUMBER,
    ),
    Template(
        "hospital-beds",
        "Hospital bed density",
        "How many hospital beds are there per 1,000 people in {country}?",
        NUMBER,
    ),
    Template(
        "obesity", "Obesity - adult prevalence rate", "What share of adults in {country} is obese?"
    ),
    Template(
        "alcohol",
        "Alcohol consumption per capita, total",
        "How much pure alcohol is drunk per person in {country}?",
    ),
    Template("tobacco", "Tobacco use, total", "What share of people in {country} uses tobacco?"),
    Template("literacy", "Literacy, total population", "What is the literacy rate of {country}?"),
    Template(
        "schooling",
        "School life expectancy (primary to tertiary education), total",
        "How many years of schooling can a child in {country} expect?",
    ),
    Template(
        "education-spending",
        "Education expenditure (% GDP)",
        "What share of GDP is spent on education in {country}?",
    ),
    # Environment
    Template(
        "co2",
        "Carbon dioxide emissions, total emissions",
        "How much carbon dioxide is emitted in {country} in total?",
    ),
    Template(
        "particulates",
        "Particulate matter emissions",
        "What is the particulate matter concentration in the air of {country}?",
    ),
    Template(
        "waste",
        "Waste and recycling, municipal solid waste generated annually",
        "How much municipal solid waste is generated in {country} in a year?",
    ),
    Template(
        "water",
        "Total renewable water resources",
        "How large are the renewable water resources of {country}?",
    ),
    # Government
    Template("capital", "Capital, name", "What is the capital of {country}?"),
    Template(
        "capital-coordinates",
        "Capital, geographic coordinates",
        "What are the coordinates of the capital of {country}?",
    ),
    Template(
        "time-zone",
        "Capital, time difference",
        "In which time zone is the capital of {country}?",
        TIME_ZONE,
    ),
    Template(
        "local-name", "Country name, local short form", "What is the local short name of {country}?"
    ),
    Template("former-name", "Country name, former", "What is a former name of {country}?", names),
    Template("government", "Government type", "What is the type of government of {country}?"),
    Template("independence", "Independence", "When did {country} become independent?", DATE),
    Template(
        "independent-from", "Independence", "From whom did {country} gain independence?", FROM
    ),
    Template("holiday", "National holiday", "What is the national holiday of {country}?", HOLIDAY),
    Template(
        "holiday-date",
        "National holiday",
        "On which day is the national holiday of {country}?",
        HOLIDAY_DATE,
    ),
    Template("voting-age", "Suffrage", "What is the voting age in {country}?", YEARS),
    Template(
        "head-of-state",
        "Executive branch, chief of state",
        "Who is the chief of state of {country}?",
        person,
    ),
    Template(
        "head-of-government",
        "Executive branch, head of government",
        "Who is the head of government of {country}?",
        person,
    ),
    Template(
        "legislature",
        "Legislative branch, legislature name",
        "What is the legislature of {country} called?",
    ),
    Template(
        "seats",
        "Legislative branch, number of seats",
        "How many seats are there in the legislature of {country}?",
    ),
    Template(
        "lower-chamber",
        "Legislative branch - lower chamber, chamber name",
        "What is the lower chamber of the legislature of {country} called?",
    ),
    Template(
        "lower-seats",
        "Legislative branch - lower chamber, number of seats",
        "How many seats are there in the lower chamber of the legislature of {country}?",
    ),
    Template(
        "naturalization",
        "Citizenship, residency requirement for naturalization",
        "How long must one reside in {country} before naturalization?",
        YEARS,
    ),
    Template(
        "anthem", "National anthem(s), title", "What is the national anthem of {country}?", QUOTED
    ),
    Template("symbol", "National symbol(s)", "What is the national symbol of {country}?"),
    Template("colors", "National color(s)", "What are the national colors of {country}?"),
    Template(
        "world-heritage",
        "National heritage, total World Heritage Sites",
        "How many World Heritage Sites are there in {country}?",
    ),
    # Economy
    Template(
        "currency", "Exchange rates, Currency", "What is the currency of {country}?", CURRENCY
    ),
    Template("currency", "Exchange rates", "What is the currency of {country}?", CURRENCY_USED),
    Template(
        "gdp",
        "GDP (official exchange rate)",
        "What is the GDP of {country} at the official exchange rate?",
    ),
    Template(
        "gdp-per-capita",
        "Real GDP per capita {year}",
        "What was the real GDP per capita of {country} in {year}?",
    ),
    Template(
        "growth",
        "Real GDP growth rate {year}",
        "What was the real GDP growth rate of {country} in {year}?",
    ),
    Template(
        "inflation",
        "Inflation rate (consumer prices) {year}",
        "What was the inflation rate of {country} in {year}?",
    ),
    Template(
        "unemployment",
        "Unemployment rate {year}",
        "What was the unemployment rate of {country} in {year}?",
    ),
    Template(
        "public-debt",
        "Public debt {year}",
        "How high was the public debt of {country} in {year}, in percent of GDP?",
    ),
    Template("exports", "Exports {year}", "How much did {country} export in {year}?"),
    Template(
        "export-partner",
        "Exports - partners",
        "Which trading partner takes the largest share of the exports of {country}?",
        largest_partner,
    ),
    Template("imports", "Imports {year}", "How much did {country} import in {year}?"),
    Template(
        "import-partner",
        "Imports - partners",
        "Which trading partner supplies the largest share of the imports of {country}?",
        largest_partner,
    ),
    Template(
        "remittances",
        "Remittances {year}",
        "How large were remittances to {country} in {year}, in percent of GDP?",
    ),
    Template("labor-force", "Labor force", "How large is the labor force of {country}?"),
    Template(
        "poverty",
        "Population below poverty line",
        "What share of the population of {country} lives below the poverty line?",
    ),
    Template("revenues", "Budget, revenues", "How high are the budget revenues of {country}?"),
    # Energy
    Template(
        "electricity-access",
        "Electricity access, electrification - total population",
        "What share of the population of {country} has electricity?",
    ),
    Template(
        "electricity-use",
        "Electricity, consumption",
        "How much electricity is consumed in {country}?",
    ),
    Template(
        "generating-capacity",
        "Electricity, installed generating capacity",
        "What is the installed electricity generating capacity of {country}?",
    ),
    Template(
        "fossil-share",
        "Electricity generation sources, fossil fuels",
        "What share of the electricity generating capacity of {country} runs on fossil fuels?",
    ),
    Template(
        "oil-use",
        "Refined petroleum consumption",
        "How much refined petroleum is consumed in {country}?",
    ),
    Template(
        "oil-reserves",
        "Petroleum, crude oil estimated reserves",
        "How large are the crude oil reserves of {country}?",
    ),
    Template(
        "reactors",
        "Nuclear energy, Number of operational nuclear reactors",
        "How many operational nuclear reactors are there in {country}?",
    ),
    Template(
        "energy-per-capita",
        "Total energy consumption per capita {year}",
        "How much energy was consumed per person in {country} in {year}?",
    ),
    # Communications
    Template(
        "internet-code", "Internet country code", "What is the internet country code of {country}?"
    ),
    Template(
        "internet-users",
        "Internet users, percent of population",
        "What share of the population of {country} uses the internet?",
    ),
    Template(
        "mobile-phones",
        "Telephones - mobile cellular, total subscriptions",
        "How many mobile phone subscriptions are there in {country}?",
    ),
    # Transportation
    Template("airports", "Airports", "How many airports are there in {country}?"),
    Template("heliports", "Heliports", "How many heliports are there in {country}?"),
    Template("railways", "Railways, total", "How long is the railway network of {country}?"),
    Template(
        "merchant-ships",
        "Merchant marine, total",
        "How many ships are in the merchant marine of {country}?",
    ),
    Template("ports", "Total ports", "How many ports are there in {country}?"),
    Template(
        "aircraft-prefix",
        "Civil aircraft registration country code prefix",
        "Which prefix do civil aircraft registered in {country} have?",
    ),
    # Military and Security
    Template(
        "military-spending",
        "Military Expenditures {year}",
        "What share of GDP was spent on the military in {country} in {year}?",
    ),
)
