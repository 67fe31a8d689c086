"""How good an answer is: exact match, token F1, two kinds of cover-exact-match, ROUGE-L.

Every score is from 0 to 1 and the best over all golden answers. Answers and golden answers are
normalised as the evaluation script of SQuAD v1.1 does it (Rajpurkar et al., 2016, arXiv
1606.05250), see `clara.data.matching.normalised`. XQuAD and FlashRAG take the same normalisation
for every language, and so do we, with what follows from it:

- Only ASCII punctuation is removed and only English articles: "¿Río?" keeps its first mark,
  French "a" is dropped as if it were the article.
- Words are split at blanks: a Chinese sentence is one token, so token F1 is 0 or 1 there.
- Signs and decimal points are punctuation: "1.06" and "10.6" are the same answer.

A golden answer that normalises to nothing ("The", "…" in ASCII dots) matches and is covered only by
an answer that does so too. A question without golden answers, whose right answer is silence, is
scored in the same way: as SQuAD v2 does, by the golden answer "".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from clara.data.matching import is_exact_match, normalised
from clara.errors import ClaraError

SCORES = ("exact_match", "f1", "cover_substring", "cover_tokens")
"""The scores that need no optional package, as `answer_scores` names them."""

# Scripts that are written without blanks between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f]"
)
_WORDS = re.compile(r"[^\W_]+")


class MetricError(ClaraError, ValueError):
    """A score cannot be computed: a package is missing, or what is scored makes no sense."""


def exact_match(answer: str, golden_answers: Sequence[str]) -> float:
    """Whether the normalised answer is a normalised golden answer: 1.0 or 0.0.

    Raises:
        TypeError: `golden_answers` is one string; so for all scores here.
    """
    return float(is_exact_match(answer, _checked(golden_answers)))


def token_f1(answer: str, golden_answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the answer's words, repeated ones counted.

    As SQuAD has it. HotpotQA's script, which the reference implementation of CLaRa follows, also
    gives 0 where one of both is "yes", "no" or "noanswer" and the other is not.
    """
    return _best(_f1, answer, golden_answers)


def cover_substring(answer: str, golden_answers: Sequence[str]) -> float:
    """Whether the normalised answer contains a normalised golden answer, from word to word.

    FlashRAG's `acc` is the same without the condition on words, so that there "1,500 km" contains
    "5". Scripts without blanks between words have no such condition here either.
    """
    return _best(_holds, answer, golden_answers)


def cover_tokens(answer: str, golden_answers: Sequence[str]) -> float:
    """Whether every word of a normalised golden answer occurs anywhere in the normalised answer.

    This is the cover-exact-match of CLaRa's reference implementation, by which its tables are
    counted: order and number of occurrences do not matter. There only the first golden answer
    counts, and one without words is always covered.
    """
    return _best(_holds_words, answer, golden_answers)


def rouge_l(answer: str, golden_answers: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), by rouge-score.

    Words are runs of letters and digits of any script in lower case, without stemming. For ASCII
    text they are those of rouge-score, whose own tokenizer drops all other letters.

    Raises:
        MetricError: the package rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    if not golden_answers:  # silence is right, to which rouge-score gives 0
        return float(not normalised(answer))
    return max(
        float(scorer.score(golden, answer)["rougeL"].fmeasure)
        for golden in _checked(golden_answers)
    )


def answer_scores(
    answer: str, golden_answers: Sequence[str], *, rouge: bool = False
) -> dict[str, float]:
    """All scores of one answer by name: those of `SCORES`, and "rouge_l" if asked for.

    Example:
        >>> answer_scores("It covers 180 sq km.", ["180 sq km"])["cover_substring"]
        1.0

    Raises:
        MetricError: `rouge` is set and the package rouge-score is not installed.
    """
    scores = {
        "exact_match": exact_match(answer, golden_answers),
        "f1": token_f1(answer, golden_answers),
        "cover_substring": cover_substring(answer, golden_answers),
        "cover_tokens": cover_tokens(answer, golden_answers),
    }
    if rouge:
        scores["rouge_l"] = rouge_l(answer, golden_answers)
    return scores


def _checked(golden_answers: Sequence[str]) -> Sequence[str]:
    if isinstance(golden_answers, str):
        raise TypeError("golden_answers must be a list of strings, got a single one")
    return golden_answers or ("",)


def _best(score: Callable[[str, str], float], answer: str, golden_answers: Sequence[str]) -> float:
    """The best score of the normalised answer beside each normalised golden answer."""
    given = normalised(answer)
    wanted = {normalised(golden) for golden in _checked(golden_answers)}
    return max(
        score(given, golden) if given and golden else float(given == golden) for golden in wanted
    )


def _f1(answer: str, golden: str) -> float:
    answer_words, golden_words = answer.split(), golden.split()
    same = (Counter(answer_words) & Counter(golden_words)).total()
    return 2 * same / (len(answer_words) + len(golden_words))


def _holds(answer: str, golden: str) -> float:
    begin = answer.find(golden)
    while begin >= 0:
        end = begin + len(golden)
        if not _within_word(answer, begin) and not _within_word(answer, end):
            return 1.0
        begin = answer.find(golden, begin + 1)
    return 0.0


def _within_word(text: str, place: int) -> bool:
    """Whether a word goes on over a place between two characters."""
    if not 0 < place < len(text):
        return False
    beside = text[place - 1 : place + 1]
    return " " not in beside and not _WITHOUT_BLANKS.search(beside)


def _holds_words(answer: str, golden: str) -> float:
    return float(set(golden.split()) <= set(answer.split()))


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise MetricError(
            "ROUGE-L needs the package rouge-score, of the extra 'eval': pip install rouge-score"
        ) from error
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())
