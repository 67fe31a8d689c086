"""Documents ordered again, vector by vector."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from clara import Clara, ClaraConfig, Document
from clara.index import MemoryIndex
from clara.model.answers import Found
from clara.model.reranking import max_similarity

from ..random_adapters import draw_adapters

TEXTS = [
    "Salt",
    "The coast is long. It has cliffs.",
    "The mill on the river was built of stone by Ada, and it grinds the grain of four towns.",
    "A bridge leads to the north, where there is a town with a market and two churches.",
]
QUESTIONS = ["Who built the mill?", "What is long?"]


CONFIG = ClaraConfig(
    memory_form="spans", compression_rate=4, document_length=64, lora_rank=4, dtype="float32"
)


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """With random adapters and connectors. Leave it as it is."""
    made = draw_adapters(Clara.from_backbone(tiny_backbone("llama"), CONFIG), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.connectors.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return made


def by_loops(question, document):
    """The mean over the question's vectors of the greatest cosine, in float64."""
    best = [
        max(cosine_similarity(one.double(), other.double(), dim=0).item() for other in document)
        for one in question
    ]
    return sum(best) / len(best)


@pytest.mark.parametrize(("q", "m"), [(1, 1), (3, 1), (1, 4), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_similarity_is_that_of_loops(q, m, dtype):
    question, document = torch.randn(q, 19).to(dtype), torch.randn(m, 19).to(dtype)
    found = max_similarity(question, document)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(by_loops(question, document), abs=1e-6)
    assert max_similarity(question, question).item() == pytest.approx(1)
    assert max_similarity(question * 0, document) == 0


def test_it_sees_words_that_the_mean_hides(tiny_backbone):
    """At rate 1 the memory of an untrained model is the embeddings of the text."""
    model = Clara.from_backbone(tiny_backbone("llama"), CONFIG)
    question = "The mill of stone"
    texts = [f"{question} grinds the grain of four towns", "The mill of salt"]
    compressed = model.compress(texts, compression_rate=1)
    (found,) = model.find(model.encode_queries([question]), compressed, 2)
    assert [each.id for each in found.documents] == ["1", "0"]
    (best,) = model.rerank([question], [found])
    assert [each.id for each in best.documents] == ["0", "1"]
    assert best.documents[0].score == pytest.approx(1)
    assert best.documents[1].score < 0.99


def test_documents_are_ordered_again(model):
    compressed = model.compress(TEXTS)
    found = model.find(model.encode_queries(QUESTIONS), compressed, 4)
    asked = model._question_memory(QUESTIONS).documents()
    for question, before, after in zip(asked, found, model.rerank(QUESTIONS, found, 3)):
        scores = {
            each.id: by_loops(question, memory)
            for each, memory in zip(before.documents, before.memory)
        }
        order = sorted(scores, key=scores.get, reverse=True)[:3]
        assert [each.id for each in after.documents] == order
        assert [each.score for each in after.documents] == pytest.approx(
            [scores[name] for name in order], abs=1e-5
        )
        for document, memory in zip(after.documents, after.memory):
            row = int(document.id)
            assert torch.equal(memory, compressed.memory[row, : compressed.counts[row]])
            assert document.text == TEXTS[row]
    assert len(model.rerank(QUESTIONS, found)[0].documents) == 4  # up to the model's top_k, 5
    alone = [Found(each.memory, []) for each in found]  # as of candidates given as memory
    for one, other in zip(model.rerank(QUESTIONS, alone, 2), model.rerank(QUESTIONS, found, 2)):
        assert one.documents == []
        assert all(torch.equal(a, b) for a, b in zip(one.memory, other.memory, strict=True))


def test_the_published_form_is_reranked_too(tiny_backbone):
    """Its documents have the same number of vectors each; more are asked for than there are."""
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, dtype="float32")
    model = draw_adapters(Clara.from_backbone(tiny_backbone("llama"), config), seed=0)
    compressed = model.compress(TEXTS)
    asked = model._question_memory(QUESTIONS).documents()
    laps = []
    found = model.retrieve(QUESTIONS, compressed, top_k=2, rerank=50, lap=laps.append)
    assert laps == ["query", "rank"]
    for question, each in zip(asked, found, strict=True):
        scores = [by_loops(question, memory) for memory in compressed.memory]
        best = sorted(range(len(TEXTS)), key=scores.__getitem__, reverse=True)[:2]
        assert [document.id for document in each.documents] == [str(row) for row in best]


def test_a_question_without_documents_stays_without(model):
    (found,) = model.find(model.encode_queries(QUESTIONS[:1]), model.compress(TEXTS), 2)
    first, second = model.rerank(QUESTIONS, [Found([], []), found])
    assert (first.memory, first.documents) == ([], [])
    assert len(second.documents) == 2
    assert model.rerank([], []) == []


def test_equals_stay_in_the_order_they_were_found(model):
    twins = [Document(id=name, text=TEXTS[1]) for name in "badc"]
    (found,) = model.find(model.encode_queries(QUESTIONS[:1]), model.compress(twins), 4)
    (after,) = model.rerank(QUESTIONS[:1], [found])
    assert [each.id for each in after.documents] == [each.id for each in found.documents]


def test_answers_come_from_reranked_documents(model, tmp_path):
    compressed = model.compress(TEXTS)
    index = MemoryIndex.create(
        tmp_path / "index",
        fingerprint=model.fingerprint,
        memory_tokens=model.config.most_memory_tokens(),
        hidden_size=model.hidden_size,
        settings=model.config.index_settings(),
    )
    index.add(compressed)
    found = model.find(model.encode_queries(QUESTIONS), compressed, 4)
    expected = model.rerank(QUESTIONS, found, 2)
    written = model.generate(QUESTIONS, [each.memory for each in expected], max_new_tokens=3)
    for documents in (compressed, MemoryIndex.open(tmp_path / "index")):
        answers = model.answer(QUESTIONS, documents, top_k=2, rerank=4, max_new_tokens=3)
        assert [each.text for each in answers] == [text.strip() for text in written]
        for answer, each in zip(answers, expected):
            assert [d.id for d in answer.documents] == [d.id for d in each.documents]
            assert [d.score for d in answer.documents] == pytest.approx(
                [d.score for d in each.documents], abs=1e-5
            )


def test_bad_arguments(model):
    compressed = model.compress(TEXTS)
    with pytest.raises(ValueError, match=r"rerank must be at least top_k \(3\), got 2"):
        model.answer(QUESTIONS, compressed, top_k=3, rerank=2)
    with pytest.raises(TypeError, match=r"rerank must be an integer, got 4\.0"):
        model.answer(QUESTIONS, compressed, rerank=4.0)
    found = model.find(model.encode_queries(QUESTIONS), compressed)
    with pytest.raises(ValueError, match="documents are given for 2 questions, there are 1"):
        model.rerank(QUESTIONS[:1], found)
    with pytest.raises(TypeError, match="questions must be a list of strings"):
        model.rerank(QUESTIONS[0], found)
