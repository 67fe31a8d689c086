"""Questions that the documents at hand do not answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from clara.data.matching import normalised

REFUSAL = "The documents do not say."
"""The answer of training data where no document holds one; evaluation counts it as a refusal."""

_ASKING_WORDS = (
    "what which who whom whose when where why how many much long old far large big high is are was "
    "were be been do does did has have had can could will would of in on at to for from by with as "
    "and or not it its this that there their me tell say says look up find name named called give "
    "given list listed under stated entry text document documents"
)
_ASKING = frozenset(_ASKING_WORDS.split())
_POSSESSIVE = re.compile(r"['’]s\b")


def holds(text: str, answer: str) -> bool:
    """Whether an answer stands in a text, letter case, punctuation and articles aside.

    >>> holds("The mill was built in 1874.", "1874"), holds("There are 18740 mills.", "1874")
    (True, False)
    """
    return f" {_plain(answer)} " in f" {_plain(text)} "


def may_answer(documents: Iterable[str], question: str, answer: str) -> bool:
    """Whether documents may answer a question that they were not made for.

    They may if one holds the answer, or if they have all the words of the question but those that
    every question has. So "Coastline?" may be answered by whatever document mentions a coastline,
    and "How long is the coastline of Kenya?" only by one that mentions Kenya too.
    """
    texts = list(documents)
    if any(holds(text, answer) for text in texts):
        return True
    words = {word for text in texts for word in _plain(text).split()}
    return set(_plain(question).split()) - _ASKING <= words


def _plain(text: str) -> str:
    return normalised(_POSSESSIVE.sub("", text))
