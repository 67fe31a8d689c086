"""Whether a written answer is the expected one."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """An answer in lower case, without punctuation, articles and repeated blanks.

    As SQuAD's evaluation has it (Rajpurkar et al., 2016, arXiv 1606.05250).
    """
    bare = answer.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def is_exact_match(answer: str, expected: Iterable[str]) -> bool:
    """Whether an answer is one of the expected ones, both normalised."""
    return normalised(answer) in {normalised(each) for each in expected}
