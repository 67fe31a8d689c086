"""Ways to answer a question: all of them answer it, and are told apart where they do not."""

from importlib.util import find_spec

import pytest

from bench.baselines.text_rag import TextRag
from bench.questions import Found, Ways, filler
from bench.ways import LINGUA, MEMORY, MERGED, ONLINE, REFERENCE, TEXT
from bench.workload import load_model

RATE, LENGTH = 8, 48


@pytest.fixture(scope="module")
def ways(backbone):
    return Ways(load_model(backbone, RATE, document_length=LENGTH))


@pytest.fixture(scope="module")
def found(ways):
    return Found.of(ways.model, corpus=60, top_k=3, length=LENGTH - 8)


def test_all_answer_what_they_have_to(ways, found):
    assert set(ways.calls(found, 5)) == {MEMORY, MERGED, ONLINE, TEXT, REFERENCE}
    assert ways.differences(found, 5) == {}


@pytest.mark.skipif(find_spec("llmlingua") is not None, reason="llmlingua is installed")
def test_what_is_missing_says_why(ways, found):
    assert LINGUA not in ways.calls(found, 1)
    assert ways.missing == {LINGUA: "the package llmlingua is not installed"}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("text.answer", TEXT),
        ("reference.answer", REFERENCE),
        ("merged.answer", MERGED),
    ],
)
def test_an_answer_that_differs_is_found(ways, found, monkeypatch, changed, name):
    side, method = changed.split(".")
    other = "no such answer"
    if side == "merged":
        (answer,) = ways.model.answer(["Who?"], found.index, top_k=1, max_new_tokens=1)
        object.__setattr__(answer, "text", other)
        monkeypatch.setattr(ways.merged, method, lambda *a, **k: [answer])
    else:
        monkeypatch.setattr(getattr(ways, side), method, lambda *a, **k: other)
    wrong = ways.differences(found, 3)
    assert list(wrong) == [name]
    assert other in wrong[name]


def test_stages_are_kept_for_each_call(ways, found):
    ways.laps.clear()
    ways.calls(found, 2)[MEMORY]()
    ways.calls(found, 2)[ONLINE]()
    assert {len(laps) for laps in ways.laps.values()} == {1}
    (lap,) = ways.laps[MEMORY, 2]
    assert set(lap) == {"query", "rank", "generate"}
    assert all(value > 0 for value in lap.values())


def test_work_is_counted_of_all_that_computes(ways, found):
    calls = ways.calls(found, 2)
    for name in (MEMORY, MERGED, TEXT):
        calls[name]()
        calls[name]()  # the words that prompts begin with are read before
    amounts = {name: ways.work.amounts(name) for name in (MEMORY, MERGED, TEXT)}
    assert amounts[MERGED] == amounts[MEMORY]
    assert amounts[TEXT]["positions"] == ways.prompt_tokens(found)[TEXT] + 1


def test_prompts_are_as_long_as_said(ways, found):
    counts = ways.prompt_tokens(found)
    assert counts[TEXT] > 3 * (LENGTH - 8)
    per_document = LENGTH // RATE + 1  # and its separator
    one = Found(found.index, 60, 1, found.texts[:1], found.folder)
    assert counts[MEMORY] - ways.prompt_tokens(one)[MEMORY] == 2 * per_document


def test_random_rows_are_searched_but_never_found(ways, found):
    assert len(found.index) == 60
    assert not any(text == "filler" for text in found.texts)
    (best,) = found.index.search(ways.model.encode_queries(["What?"]), 60)
    assert sum(hit.text == "filler" for hit in best) == 50
    compressed = ways.model.compress(["The river."])
    rows = filler(compressed, 3, 8)
    assert rows.memory.std() == pytest.approx(compressed.memory.std().item(), rel=0.1)


def test_the_merged_twin_shares_the_backbone(ways):
    assert ways.merged.backbone is ways.model.backbone
    assert ways.merged._merged is not None
    assert ways.model._merged is None


def test_text_is_read_by_the_bare_backbone(ways, found):
    text = TextRag(ways.model)
    assert not any("lora" in name for name, _ in text.backbone.named_parameters())
    (bare,) = ways.model.answer_from_text(["Who?"], [found.texts], max_new_tokens=4)
    assert text.answer("Who?", found.texts, 4).strip().startswith(bare.strip())
