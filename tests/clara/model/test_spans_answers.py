"""Memory form "spans": ranking, indexes and answers."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from clara import Clara
from clara.backbone.adapters import QUERY_REASONER
from clara.index import MemoryIndex, MemoryIndexError
from clara.text.prompts import memory_slots
from clara.text.tokenizer import Marker

from ..random_adapters import draw_adapters
from .of_spans import QUESTIONS, TEXTS, draw_connectors, memory_of_one, spans_config


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """A Llama with random adapters and connectors; shared, so leave it as it is."""
    made = Clara.from_backbone(tiny_backbone("llama"), spans_config())
    return draw_connectors(draw_adapters(made, seed=0))


def cosines(model, found):
    """float64 cosines `[B, N]` of the questions' mean memory to that of each document."""
    queries = [memory_of_one(model, q, 1, QUERY_REASONER).double().mean(0) for q in QUESTIONS]
    documents = [
        found.memory[row, :count].double().mean(0) for row, count in enumerate(found.counts)
    ]
    return cosine_similarity(torch.stack(queries)[:, None], torch.stack(documents)[None], dim=-1)


@pytest.mark.parametrize("rate", [1, 4])
def test_ranking_is_by_the_cosine_of_means(model, rate):
    found = model.compress(TEXTS, compression_rate=rate)
    expected = cosines(model, found)
    queries = model.encode_queries(QUESTIONS)
    assert queries.shape == (2, 1, model.hidden_size)
    ranking = model.rank(QUESTIONS, found, top_k=4)
    values, order = expected.sort(descending=True)
    assert torch.equal(ranking.indices, order)
    torch.testing.assert_close(ranking.scores, values.float(), rtol=0, atol=1e-5)
    each = [found, found[[2, 0]]]
    ragged = model.rank(queries, each, top_k=4)
    assert torch.equal(ragged.indices[0], order[0])
    assert ragged.indices[1].tolist()[2:] == [-1, -1]
    with pytest.raises(ValueError, match=r"questions must be \[N, 1, 48\]"):
        model.rank(found.memory[:2], found)


def test_an_index_finds_and_answers_as_the_documents_do(model, tmp_path):
    found = model.compress(TEXTS)
    index = MemoryIndex.create(
        tmp_path / "index",
        fingerprint=model.fingerprint,
        memory_tokens=model.config.most_memory_tokens(),
        hidden_size=model.hidden_size,
        settings=model.config.index_settings(),
    )
    index.add(found[:3])
    index.add(found[3:])
    index = MemoryIndex.open(tmp_path / "index")
    expected = model.rank(QUESTIONS, found, top_k=3)
    for row, hits in enumerate(index.search(model.encode_queries(QUESTIONS), 3)):
        assert [hit.row for hit in hits] == expected.indices[row].tolist()
        assert [hit.score for hit in hits] == pytest.approx(expected.scores[row].tolist())
        for hit in hits:
            count = found.counts[hit.row]
            assert torch.equal(hit.memory, found.memory[hit.row, :count])
    read = index.get(["2", "0"])
    assert read.counts == [found.counts[2], found.counts[0]]
    info = index.info()
    assert info["effective_compression"] == pytest.approx(found.effective_compression)
    settings = info["settings"]
    assert (settings["memory_form"], settings["ranking"]) == ("spans", "mean")
    assert settings["compression_rate"] == 4
    for one, other in zip(
        model.answer(QUESTIONS, index, max_new_tokens=4, top_k=2),
        model.answer(QUESTIONS, found, max_new_tokens=4, top_k=2),
        strict=True,
    ):
        assert one.text == other.text
        assert one.prompt_tokens == other.prompt_tokens
        assert [d.id for d in one.documents] == [d.id for d in other.documents]


def test_what_an_index_of_another_rate_refuses(model, tmp_path):
    index = MemoryIndex.create(
        tmp_path / "index",
        fingerprint=model.fingerprint,
        memory_tokens=model.config.most_memory_tokens(8),
        hidden_size=model.hidden_size,
        settings=model.config.index_settings(8),
    )
    with pytest.raises(
        MemoryIndexError, match=r"document '0' has \d+ memory tokens for \d+ tokens"
    ):
        index.add(model.compress(TEXTS))
    index.add(model.compress(TEXTS, compression_rate=8))
    found = model.answer(QUESTIONS, index, max_new_tokens=2, top_k=2)
    assert all(len(each.documents) == 2 for each in found)


def test_forms_of_memory_to_answer_from(model):
    found = model.compress(TEXTS)
    listed = found.padded.documents()
    expected = model.generate(QUESTIONS, [listed[:2], listed[2:]], max_new_tokens=4)
    assert expected == model.generate(QUESTIONS, [found[:2], found[2:]], max_new_tokens=4)
    assert expected[0] == model.generate(QUESTIONS[:1], [found[:2]], max_new_tokens=4)[0]
    assert expected[0].startswith("".join(model.stream(QUESTIONS[0], found[:2], max_new_tokens=1)))
    whole = found.memory[:1, : found.counts[0]]
    assert model.generate(QUESTIONS[:1], whole[None], max_new_tokens=4) == model.generate(
        QUESTIONS[:1], [listed[:1]], max_new_tokens=4
    )
    loss = model.answer_loss(QUESTIONS, [listed[:2], listed[2:]], ["Ada", "The coast"])
    again = model.answer_loss(QUESTIONS, [found[:2], found[2:]], ["Ada", "The coast"])
    assert loss.item() == again.item()
    assert len(model.generate(QUESTIONS[:1], [[]], max_new_tokens=2)) == 1
    with pytest.raises(ValueError, match=r"memory of question 0, document 1, must be \[N, m, 48\]"):
        model.generate(QUESTIONS[:1], [[listed[0], torch.zeros(3, 9)]])
    with pytest.raises(TypeError, match="memory of question 0 must be a tensor, or one for each"):
        model.generate(QUESTIONS[:1], [["text"]])


def test_prompts_count_real_memory_tokens(model):
    found = model.compress(TEXTS)
    counts = found.counts[:2]
    assert counts[0] > 3
    assert counts[1] == 1
    slots = memory_slots(counts, True)
    assert slots.count(Marker.MEMORY) == sum(counts)
    (prompt,) = model.memory_prompts(QUESTIONS[:1], [counts])
    assert prompt.ids.count(Marker.MEMORY) == sum(counts)
    assert len(prompt.ids) == model.prompt_tokens(QUESTIONS[0], counts)
    (answer,) = model.answer(QUESTIONS[:1], [found[:2]], max_new_tokens=1, top_k=2)
    assert answer.prompt_tokens == len(prompt.ids)
    with pytest.raises(ValueError, match="documents must be the memory tokens of each document"):
        model.prompt_tokens(QUESTIONS[0], 2)


def test_memory_of_another_form_is_refused(model, tiny_model):
    with pytest.raises(ValueError, match="compressed by another model"):
        tiny_model.generate(QUESTIONS[:1], [model.compress(TEXTS)])
    with pytest.raises(ValueError, match="compressed by another model"):
        model.generate(QUESTIONS[:1], [tiny_model.compress(TEXTS)])


def test_logit_lens_takes_questions(model, tiny_model):
    words = model.logit_lens(QUESTIONS, top=3)
    tokens = [len(text.ids) for text in model.tokenizer.encode_texts(QUESTIONS)]
    assert [len(each) for each in words] == tokens
    with pytest.raises(ValueError, match="logit_lens needs questions"):
        model.logit_lens(model.encode_queries(QUESTIONS))
    queries = tiny_model.encode_queries(QUESTIONS)
    assert tiny_model.logit_lens(QUESTIONS) == tiny_model.logit_lens(queries)
