"""Text cut to a token budget: never above it, at good places, and with the best sentences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara import Clara
from clara.evaluation.budget import (
    beginning,
    bm25_scores,
    lead,
    memory_vectors,
    sentences,
    split_sentences,
    token_count,
)

from ..model.of_spans import spans_config

FIRST = (
    "France: Geography\nLocation: Western Europe.\nCoastline: 4,853 km. It borders the Bay of "
    "Biscay and the English Channel. The highest point is Mont Blanc."
)
SECOND = "Kenya: Geography\nCoastline: 536 km\nClimate: varies from tropical to arid"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return tiny_model.tokenizer


def count(tokenizer, texts):
    return sum(token_count(tokenizer, text) for text in texts)


@pytest.fixture(scope="module")
def model_of_spans(tiny_backbone):
    return Clara.from_backbone(tiny_backbone(), spans_config(document_length=40), device="cpu")


def test_vectors_are_those_that_compress_writes(model_of_spans):
    documents = [FIRST, SECOND, "Salt"]
    for rate in (None, 1, 4, 32):
        made = model_of_spans.compress(documents, compression_rate=rate)
        expected = dict.fromkeys(made.document_ids, 0)
        for name, written in zip(made.document_ids, made.counts, strict=True):
            expected[name] += written
        assert memory_vectors(model_of_spans, documents, rate) == list(expected.values())


def test_vectors_of_the_one_rate_of_learned_memory(tiny_model):
    made = tiny_model.compress([FIRST * 2, "Salt"])
    chunks = made.document_ids.count("0")
    assert chunks > 1
    assert memory_vectors(tiny_model, [FIRST * 2, "Salt"], 16) == [4 * chunks, 4]
    # It has no other rate; then each chunk of n tokens counts as n / rate.
    tokens = token_count(tiny_model.tokenizer, "Salt")
    assert memory_vectors(tiny_model, ["Salt"], 1) == [tokens]
    assert memory_vectors(tiny_model, ["Salt"], by_length=True) == [1]


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [(0, ValueError, "rate must be at least 1, got 0"), (2.5, TypeError, "rate must be an int")],
)
def test_a_rate_that_is_none(tiny_model, rate, error, message):
    with pytest.raises(error, match=message):
        memory_vectors(tiny_model, ["Salt"], rate)


def test_a_text_that_fits_stays(tokenizer):
    tokens = token_count(tokenizer, SECOND)
    assert beginning(tokenizer, SECOND, tokens) == SECOND
    assert beginning(tokenizer, SECOND, tokens - 1) != SECOND


def test_a_cut_after_a_sentence_in_the_last_quarter(tokenizer):
    text = "The coast is long and it is steep. It has cliffs and caves."
    whole = token_count(tokenizer, "The coast is long and it is steep.")
    for more in (0, 1, 2):
        assert beginning(tokenizer, text, whole + more) == "The coast is long and it is steep."


def test_a_cut_after_a_word(tokenizer):
    text = "harbour lighthouse waterfall mountaineer"
    for budget in range(1, token_count(tokenizer, text)):
        cut = beginning(tokenizer, text, budget)
        assert text.startswith(cut)
        if " " in cut:
            assert text[len(cut)] == " "


def test_a_word_that_is_longer_than_the_budget_is_cut(tokenizer):
    assert "lighthouse".startswith(beginning(tokenizer, "lighthouse keeper", 2))
    assert beginning(tokenizer, "lighthouse keeper", 2) != ""
    assert beginning(tokenizer, "lighthouse keeper", 0) == ""


TEXTS = st.text(st.sampled_from("ab é\n.!? 漢😀\u200d"), max_size=60)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, budget=st.integers(0, 30))
def test_a_beginning_is_never_above_the_budget(tiny_model, text, budget):
    cut = beginning(tiny_model.tokenizer, text, budget)
    assert text.startswith(cut)
    assert token_count(tiny_model.tokenizer, cut) <= budget


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), question=TEXTS, budget=st.integers(0, 30))
def test_sentences_are_never_above_the_budget(tiny_model, texts, question, budget):
    kept = sentences(tiny_model.tokenizer, texts, question, budget)
    assert count(tiny_model.tokenizer, kept) <= budget
    assert all(kept)


def test_lead_gives_what_is_left_to_the_next(tokenizer):
    short = token_count(tokenizer, "Salt")
    rest = token_count(tokenizer, SECOND)
    assert lead(tokenizer, ["Salt", SECOND], [short + rest - 1, 1]) == ["Salt", SECOND]
    cut = lead(tokenizer, [FIRST, SECOND], [20, 10])
    assert len(cut) == 2
    assert FIRST.startswith(cut[0])
    assert SECOND.startswith(cut[1])
    assert count(tokenizer, cut) <= 30
    assert lead(tokenizer, [FIRST, SECOND], [0, 10]) == [beginning(tokenizer, SECOND, 10)]
    with pytest.raises(ValueError, match="shorter"):
        lead(tokenizer, [FIRST, SECOND], [1])


def test_sentences_are_the_best_in_their_order(tokenizer):
    wanted = ["Coastline: 4,853 km.", "Coastline: 536 km"]
    question = "What is the coastline, in km?"
    assert sentences(tokenizer, [FIRST, SECOND], question, count(tokenizer, wanted)) == wanted
    named = ["Kenya: Geography\nCoastline: 536 km"]
    question = "Kenya, coastline?"
    assert sentences(tokenizer, [FIRST, SECOND], question, count(tokenizer, named)) == named


def test_a_sentence_that_does_not_fit_is_passed_over(tokenizer):
    long = "The mill grinds wheat and the mill grinds rye and the mill grinds oats every day."
    texts = [f"{long} The mill is old."]
    budget = token_count(tokenizer, "The mill is old.")
    assert sentences(tokenizer, texts, "mill", budget) == ["The mill is old."]
    (cut,) = sentences(tokenizer, [long], "mill", budget)
    assert long.startswith(cut)


def test_all_sentences_are_the_texts(tokenizer):
    assert sentences(tokenizer, [FIRST, SECOND], "coast", 10_000) == [FIRST, SECOND]
    assert sentences(tokenizer, [], "coast", 5) == []
    assert sentences(tokenizer, [FIRST], "coast", 0) == []


@given(TEXTS)
def test_sentences_joined_are_the_text(text):
    assert "".join(split_sentences(text)) == text


def test_sentences_of_a_text():
    assert split_sentences("Dr. Ito came. 4 left! st. louis\nNext line. ") == [
        "Dr. ",
        "Ito came. ",
        "4 left! st. louis\n",
        "Next line. ",
    ]


def test_bm25_by_hand():
    # "salt" is in one text of two: ln(1 + 1.5 / 1.5). Lengths are 2 and 4, their mean 3.
    first, second = bm25_scores("Salt?", ["salt mine", "a mill by water"])
    assert first == pytest.approx(0.693147 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)), rel=1e-5)
    assert second == 0
    assert bm25_scores("Salt?", []) == []
    assert bm25_scores("Salt?", ["", "…"]) == [0, 0]


def test_bm25_is_that_of_bm25s():
    import bm25s

    texts = split_sentences(FIRST) + split_sentences(SECOND)
    words = [
        text.casefold().replace(":", " ").replace(",", " ").replace(".", " ").split()
        for text in texts
    ]
    question = "what is the coastline of kenya"
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(words, show_progress=False)
    known = [word for word in question.split() if any(word in each for each in words)]
    expected = index.get_scores(known).tolist()
    assert bm25_scores(question, texts) == pytest.approx(expected, rel=1e-5)
