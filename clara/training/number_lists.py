"""Lists of random numbers with names, to be repeated from memory.

Nothing but memory can say which digits a list has, and in which order: language helps to guess
words, and no number. So a share of such lists teaches a model to keep and to read the order of
digits sooner than passages do, of which numbers are a small part.
"""

from __future__ import annotations

import random

_NAMES = (
    *("Airports", "Area", "Birth rate", "Budget", "Coastline", "Crossings", "Debt", "Deaths"),
    *("Depth", "Distance", "Exports", "Forest", "Height", "Imports", "Islands", "Length"),
    *("Literacy", "Members", "Population", "Price", "Rainfall", "Roads", "Schools", "Seats"),
    *("Ships", "Speed", "Stations", "Tax", "Temperature", "Unemployment", "Weight", "Width"),
)
_UNITS = ("", "%", " km", " m", " sq km", " kg", " years", " km/h", " million", " billion kWh")
_LINES = 3


def number_list(generator: random.Random) -> str:
    """Lines such as "Coastline: 1,309.5 km", each with another name."""
    names = generator.sample(_NAMES, _LINES)
    return "\n".join(f"{name}: {_number(generator)}" for name in names)


def _number(generator: random.Random) -> str:
    """A number of one to seven digits, perhaps with a sign, decimals, and a unit."""
    whole = generator.randrange(10 ** generator.randint(1, 7))
    decimals = generator.choice((0, 0, 1, 2, 3))
    fraction = f".{generator.randrange(10**decimals):0{decimals}}" if decimals else ""
    sign = "-" if generator.random() < 0.1 else ""
    return f"{sign}{whole:,}{fraction}{generator.choice(_UNITS)}"
