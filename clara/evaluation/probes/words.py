"""Words to make sentences of that say nothing, and values that nobody can guess."""

from __future__ import annotations

import random

FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
    "The path bends to the left behind the last house.",
    "A gate stands open for most of the year.",
    "Somebody left a basket on the wall.",
    "The wind turns before it rains.",
    "Two boats lie on the shore.",
    "The old clock is slow again.",
    "Bread is baked in the morning.",
    "The stairs are made of wood.",
    "Nobody asked about the weather.",
    "A letter came and was read aloud.",
    "The field is wet after the snow.",
    "They walked home without a word.",
    "The lamp in the window stays on.",
    "It takes a while to cross the bridge.",
    "The market closes in the afternoon.",
    "A dog sleeps beside the stove.",
    "The hill looks lower from here.",
    "Some of the chairs are broken.",
    "The river carries leaves away.",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words(
    "amber brisk calm dusty eager faint gentle hollow idle jolly keen lofty mellow narrow olive "
    "patient quiet rusty silver timid upper velvet wooden young"
)
_NOUNS = _words(
    "anchor basin canyon dolphin ember falcon garden harbour island jacket kettle lantern meadow "
    "needle orchard pebble quarry ribbon saddle thimble umbrella violin walnut yard"
)

_STARTS = _words("Bel Cor Dra Fen Gar Hal Ist Jor Kel Lom Mar Nev Osk Per Rud Sel Tov Ulm Vos Wen")
_ENDS = _words(
    "anik bert cova dren erin fold gard ic jana kov lund mira nis olt pek ross stad tova"
)
_GIVEN = _words(
    "Ada Benno Clara Dario Edda Franz Greta Hugo Irma Jonas Katya Lev Mina Nils Olga Pavel Rosa "
    "Stefan Tilda Zoë"
)
_MONTHS = _words(
    "January February March April May June July August September October November December"
)


def key(draw: random.Random) -> str:
    """Two words, such as "quiet-harbour"."""
    return f"{draw.choice(_ADJECTIVES)}-{draw.choice(_NOUNS)}"


def number(draw: random.Random) -> str:
    """A number as texts write them: with commas, a decimal point, a sign or a percent sign."""
    return draw.choice(
        (
            f"{draw.randrange(10**3, 10**7):,}",
            f"{draw.randrange(10**4, 10**8)}",
            f"{draw.randrange(1, 10**3)}.{draw.randrange(1, 10**4):04}",
            f"-{draw.randrange(10, 10**4)}",
            f"{draw.randrange(1, 100)}.{draw.randrange(1, 10)}%",
        )
    )


def date(draw: random.Random) -> str:
    """A day in one of three ways to write it."""
    day, month, year = draw.randrange(1, 29), draw.randrange(12), draw.randrange(1700, 2030)
    return draw.choice(
        (
            f"{day} {_MONTHS[month]} {year}",
            f"{_MONTHS[month]} {day}, {year}",
            f"{year}-{month + 1:02}-{day:02}",
        )
    )


def name(draw: random.Random) -> str:
    """A person's name with an invented surname."""
    return f"{draw.choice(_GIVEN)} {draw.choice(_STARTS)}{draw.choice(_ENDS)}"
