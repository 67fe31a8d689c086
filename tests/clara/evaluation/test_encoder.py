"""Vectors of texts have the cosines that `Clara.rank` ranks by."""

from enum import Enum

import numpy as np
import pytest
import torch

from clara import Clara, ClaraConfig
from clara.evaluation.encoder import ClaraEncoder

from ..model.of_spans import QUESTIONS, TEXTS, draw_connectors, spans_config
from ..random_adapters import draw_adapters


@pytest.fixture(scope="module")
def model_of_spans(tiny_backbone):
    made = Clara.from_backbone(tiny_backbone(), spans_config(), device="cpu")
    return draw_connectors(draw_adapters(made, seed=0))


@pytest.fixture(scope="module")
def model_by_mean(tiny_backbone):
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, dtype="float32", ranking="mean"
    )
    return draw_adapters(Clara.from_backbone(tiny_backbone(), config, device="cpu"), seed=0)


@pytest.fixture(params=["learned", "spans", "mean"])
def model(request, tiny_model):
    if request.param == "learned":
        return tiny_model
    name = "model_of_spans" if request.param == "spans" else "model_by_mean"
    return request.getfixturevalue(name)


def ranked(model, rate=None):
    """Cosines `[B, N]` in the order of the texts, of `Clara.rank`."""
    documents = model.compress(TEXTS, compression_rate=rate)
    ranking = model.rank(QUESTIONS, documents, top_k=len(TEXTS))
    return torch.empty_like(ranking.scores).scatter_(1, ranking.indices, ranking.scores)


@pytest.mark.parametrize("normalised", [True, False])
def test_similarity_is_what_rank_ranks_by(model, normalised):
    encoder = ClaraEncoder(model)
    queries = encoder.encode_query(QUESTIONS, normalize_embeddings=normalised)
    documents = encoder.encode_document(TEXTS, batch_size=2, normalize_embeddings=normalised)
    found = encoder.similarity(queries, documents)
    torch.testing.assert_close(found, ranked(model), rtol=1e-4, atol=1e-5)
    lengths = np.linalg.norm(documents, axis=1)
    assert (lengths == pytest.approx(1, rel=1e-4)) == normalised


@pytest.mark.parametrize("rate", [1, 16])
def test_documents_are_compressed_at_the_rate(model_of_spans, rate):
    encoder = ClaraEncoder(model_of_spans, rate)
    found = encoder.similarity(encoder.encode_query(QUESTIONS), encoder.encode_document(TEXTS))
    torch.testing.assert_close(found, ranked(model_of_spans, rate), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="compression_rate must be one of"):
        ClaraEncoder(model_of_spans, 3)


def test_vectors_are_the_memory_itself(tiny_model, model_of_spans):
    memory = tiny_model.compress(TEXTS).memory
    vectors = ClaraEncoder(tiny_model).encode_document(
        TEXTS, convert_to_tensor=True, normalize_embeddings=False
    )
    torch.testing.assert_close(vectors, memory.flatten(1), rtol=1e-4, atol=1e-5)
    kept = model_of_spans.compress(TEXTS).padded.documents()
    vectors = ClaraEncoder(model_of_spans).encode_document(
        TEXTS, convert_to_tensor=True, normalize_embeddings=False
    )
    means = torch.stack([each.mean(0) for each in kept])
    torch.testing.assert_close(vectors, means, rtol=1e-4, atol=1e-5)


def test_dimensions(tiny_model, model_of_spans, model_by_mean):
    assert ClaraEncoder(tiny_model).get_sentence_embedding_dimension() == 4 * 48
    assert ClaraEncoder(model_of_spans).get_sentence_embedding_dimension() == 48
    assert ClaraEncoder(model_by_mean).get_sentence_embedding_dimension() == 48
    assert ClaraEncoder(tiny_model).max_seq_length == 64


def test_kinds_of_results(model):
    encoder = ClaraEncoder(model)
    size = encoder.get_sentence_embedding_dimension()
    array = encoder.encode_document(TEXTS)
    assert (array.dtype, array.shape) == (np.float32, (4, size))
    tensor = encoder.encode_document(TEXTS, convert_to_tensor=True)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (4, size))
    np.testing.assert_array_equal(tensor.numpy(), array)
    listed = encoder.encode_document(TEXTS, convert_to_numpy=False)
    torch.testing.assert_close(torch.stack(listed), tensor)
    torch.testing.assert_close(encoder.similarity(listed, array), encoder.similarity(array, array))
    single = encoder.encode_document(TEXTS[1])
    assert single.shape == (size,)
    np.testing.assert_allclose(single, array[1], rtol=1e-4, atol=1e-5)
    assert encoder.similarity(single, array).shape == (1, 4)
    assert encoder.encode_query([]).shape == (0, size)


def test_the_order_of_texts_stays(model):
    encoder = ClaraEncoder(model)
    once = encoder.encode_document(TEXTS)
    back = encoder.encode_document(TEXTS[::-1], batch_size=1)
    np.testing.assert_allclose(back[::-1], once, rtol=1e-4, atol=1e-5)


def test_corpora_of_harnesses(tiny_model):
    encoder = ClaraEncoder(tiny_model)
    plain = encoder.encode_document(["Mill It grinds.", "Salt"])
    corpus = [{"title": "Mill", "text": "It grinds.", "_id": "4"}, {"title": "", "text": "Salt"}]
    np.testing.assert_array_equal(encoder.encode_corpus(corpus, batch_size=8), plain)
    np.testing.assert_array_equal(encoder.encode(corpus, task_name="Salt"), plain)
    kind = Enum("PromptType", {"query": "query", "document": "document"})
    np.testing.assert_array_equal(encoder.encode(corpus, prompt_type=kind.document), plain)
    asked = encoder.encode_query(QUESTIONS)
    np.testing.assert_array_equal(encoder.encode(QUESTIONS, prompt_type=kind.query), asked)
    np.testing.assert_array_equal(encoder.encode_queries(QUESTIONS, batch_size=8), asked)
    batches = [{"text": ["Mill It grinds."], "id": ["4"]}, {"text": ["Salt"], "id": ["5"]}]
    np.testing.assert_array_equal(encoder.encode(iter(batches), hf_split="test"), plain)
    pairs = encoder.similarity_pairwise(asked, plain)
    torch.testing.assert_close(pairs, encoder.similarity(asked, plain).diagonal())
    with pytest.raises(ValueError, match="prompt_type must be one of 'query', 'document'"):
        encoder.encode(corpus, prompt_type="answer")


def test_a_document_without_text_is_like_nothing(model):
    encoder = ClaraEncoder(model)
    vectors = encoder.encode_document(["", TEXTS[0], " \n"])
    assert not vectors[[0, 2]].any()
    np.testing.assert_allclose(vectors[1], encoder.encode_document(TEXTS[0]), rtol=1e-4, atol=1e-5)
    scores = encoder.similarity(encoder.encode_query(QUESTIONS), vectors)
    assert scores[:, [0, 2]].tolist() == [[0, 0], [0, 0]]


def test_long_documents_are_cut_or_refused(model):
    long = "The mill on the river was built of stone. " * 20
    cut = model.compress([long], overflow="truncate")
    expected = cut.padded.vectors(model.config.ranking_rule)
    encoder = ClaraEncoder(model)
    found = encoder.encode_document([TEXTS[1], long], normalize_embeddings=False)
    np.testing.assert_allclose(found[1:], expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"document 'texts\[1\]' has \d+ tokens, the limit is 64"):
        ClaraEncoder(model, overflow="error").encode_document([TEXTS[1], long])
    with pytest.raises(ValueError, match=r"texts\[1\] has \d+ tokens, the limit is 64"):
        encoder.encode_query([QUESTIONS[0], long])


def test_hostile_text_is_text(model):
    encoder = ClaraEncoder(model)
    plain, hostile = encoder.encode_document(["salt", "salt</s><|im_end|>\x00"])
    assert np.isfinite(hostile).all()
    assert not np.allclose(plain, hostile)


def test_wrong_arguments(tiny_model):
    encoder = ClaraEncoder(tiny_model)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int"):
        encoder.encode_query([QUESTIONS[0], 4])
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        encoder.encode_query([QUESTIONS[0], " "])
    with pytest.raises(ValueError, match=r"texts\[0\] holds half a surrogate pair"):
        encoder.encode_document(["\ud83d"])
    with pytest.raises(TypeError, match=r'texts\[0\] must have "text", a string'):
        encoder.encode_document([{"title": "Mill"}])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        encoder.encode_query(QUESTIONS, batch_size=0)
    with pytest.raises(ValueError, match="vectors of 3 and 192 numbers have no cosine"):
        encoder.similarity(np.zeros((1, 3)), encoder.encode_query(QUESTIONS))
    with pytest.raises(ValueError, match='overflow must be "truncate" or "error"'):
        ClaraEncoder(tiny_model, overflow="chunk")
