"""Documents' text cut to as many tokens as their memory has vectors.

Whoever has room for so many vectors has room for so many tokens. These are the two cuts that need
no training: the beginning of each document, and the sentences that share words with the question.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clara.data.records import DocumentLike
from clara.errors.checks import as_integer
from clara.text.tokenizer import SafeTokenizer

if TYPE_CHECKING:
    from clara.model.retrieval import Retriever

K1 = 1.5
B = 0.75
"""Settings of BM25, the usual ones."""

_WORD = re.compile(r"\w+")
# After "St. louis" nothing ends. An end has a capital, a digit or a mark behind it.
_SENTENCE_END = re.compile(r"(?<=[.!?…。])\s+(?![a-z])")
_ENDS = ".!?…。"


def memory_vectors(
    model: Retriever,
    documents: Sequence[DocumentLike],
    rate: int | None = None,
    *,
    by_length: bool = False,
) -> list[int]:
    """The memory tokens of each document at a compression rate, those of all its chunks together.

    Nothing is compressed. It is the number that `Clara.compress` writes where the model has the
    rate. A model in memory form "learned" has one rate; for others each chunk of n tokens counts as
    n / rate, rounded up.

    Args:
        documents: as in `Clara.compress`.
        rate: tokens per memory token, at least 1; default from the model's configuration.
        by_length: count n / rate for all models, as for one that has no memory of its own.

    Raises:
        TypeError, ValueError: the rate is no positive integer; or those of `Clara.compress`.
    """
    config = model.config
    wanted = config.compression_rate
    if rate is not None:
        wanted = as_integer(rate, "rate", least=1)
    own = wanted == config.compression_rate and not by_length
    fixed = config.memory_tokens if own else None
    counts: dict[str, int] = {}
    for passage in model.passages(documents):
        written = -(-len(passage.tokens) // wanted) if fixed is None else fixed
        counts[passage.document_id] = counts.get(passage.document_id, 0) + written
    return list(counts.values())


def token_count(tokenizer: SafeTokenizer, text: str) -> int:
    """Tokens of a text that stands alone."""
    return len(tokenizer.encode_texts([text])[0].ids)


def beginning(tokenizer: SafeTokenizer, text: str, budget: int) -> str:
    """The first tokens of a text, at most `budget` of them.

    The cut is after a sentence if one ends in the last quarter, else after a word if one ends in
    the last half, else between two tokens.

    Args:
        budget: tokens, at least 0; with 0 the result is "".
    """
    budget = as_integer(budget, "budget", least=0)
    (encoded,) = tokenizer.encode_texts([text])
    if len(encoded.ids) <= budget:
        return text
    for room in range(budget, 0, -1):
        cut = _whole_words(text, encoded.starts[room])
        # A text that ends elsewhere may have other tokens at its end.
        if token_count(tokenizer, cut) <= budget:
            return cut
    return ""


def _whole_words(text: str, end: int) -> str:
    """The text up to a good place to end, at `end` or before it."""
    spaces = [at for at in range(end // 2, end + 1) if text[at].isspace()]
    sentences = [
        at
        for at in spaces
        if at >= end - end // 4 and (text[at] == "\n" or text[:at].rstrip()[-1:] in _ENDS)
    ]
    at = max(sentences or spaces, default=end)
    return text[:at].rstrip()


def lead(tokenizer: SafeTokenizer, texts: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """The beginning of each document, within its budget.

    What a document leaves unused is given to the next one.

    Args:
        texts: of documents, best first.
        budgets: tokens for each of them, see `memory_vectors`.

    Returns:
        The beginnings that are not empty, in the same order. Their tokens, counted for each alone,
        are at most the sum of the budgets.

    Raises:
        ValueError: there is not one budget for each text.
    """
    kept, left = [], 0
    for text, budget in zip(texts, budgets, strict=True):
        left += budget
        cut = beginning(tokenizer, text, left)
        if cut.strip():
            kept.append(cut)
            left -= token_count(tokenizer, cut)
    return kept


def sentences(
    tokenizer: SafeTokenizer, texts: Sequence[str], question: str, budget: int
) -> list[str]:
    """The sentences that BM25 ranks first for a question, as many as fit, in their own order.

    A sentence that no longer fits is left out for the next one that does. If not even the best fits
    alone, its `beginning` is taken.

    Args:
        texts: of documents, best first; at equal scores sentences of the first win.
        budget: tokens for all of them together, at least 0.

    Returns:
        What is left of each document that has any sentence in it, in the order of `texts`. Their
        tokens, counted for each alone, are at most `budget`.
    """
    budget = as_integer(budget, "budget", least=0)
    split = [split_sentences(text) for text in texts]
    places = [(document, at) for document, parts in enumerate(split) for at in range(len(parts))]
    scores = bm25_scores(question, [split[document][at] for document, at in places])
    order = sorted(range(len(places)), key=lambda row: (-scores[row], places[row]))
    chosen: dict[int, set[int]] = {}
    texts_so_far: dict[int, str] = {}
    used: dict[int, int] = {}
    for document, at in (places[row] for row in order):
        others = sum(used.values()) - used.get(document, 0)
        taken = chosen.get(document, set()) | {at}
        text = "".join(split[document][place] for place in sorted(taken)).strip()
        tokens = token_count(tokenizer, text)
        if others + tokens <= budget:
            chosen[document], texts_so_far[document], used[document] = taken, text, tokens
    if not used and order:
        document, at = places[order[0]]
        texts_so_far[document] = beginning(tokenizer, split[document][at].strip(), budget)
    return [texts_so_far[document] for document in sorted(texts_so_far) if texts_so_far[document]]


def split_sentences(text: str) -> list[str]:
    """Sentences and lines of a text, each with the white space behind it: joined they are the text.

    >>> split_sentences("One. Two.\\nThree")
    ['One. ', 'Two.\\n', 'Three']
    """
    parts: list[str] = []
    for line in text.splitlines(keepends=True):
        begin = 0
        for match in _SENTENCE_END.finditer(line):
            if match.end() < len(line):
                parts.append(line[begin : match.end()])
                begin = match.end()
        parts.append(line[begin:])
    return parts


def bm25_scores(question: str, texts: Sequence[str]) -> list[float]:
    """BM25 of each text for a question, as Lucene computes it; words without letter case.

    Robertson and Zaragoza, The Probabilistic Relevance Framework (2009). A text of few sentences
    needs no index.
    """
    counted = [Counter(_WORD.findall(text.casefold())) for text in texts]
    lengths = [counts.total() for counts in counted]
    mean = sum(lengths) / len(lengths) if sum(lengths) else 1.0
    found_in = Counter(word for counts in counted for word in counts)
    asked = Counter(_WORD.findall(question.casefold()))
    rarity = {
        word: times * math.log(1 + (len(texts) - found_in[word] + 0.5) / (found_in[word] + 0.5))
        for word, times in asked.items()
    }
    return [
        sum(
            weight * counts[word] / (counts[word] + K1 * (1 - B + B * length / mean))
            for word, weight in rarity.items()
            if counts[word]
        )
        for counts, length in zip(counted, lengths, strict=True)
    ]
