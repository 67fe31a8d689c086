"""Memory form "spans": a memory token for every span of a text."""

import json
import subprocess
import warnings

import pytest
import torch
from transformers import GemmaConfig, GraniteConfig, LlamaConfig

from clara import Clara, ClaraConfig, CompressedDocuments
from clara.model.connector import weighted_means
from clara.text.packing import compressor_input, pack
from clara.text.tokenizer import Marker

from ..random_adapters import draw_adapters
from .of_spans import (
    QUESTIONS,
    TEXTS,
    draw_connectors,
    embedding,
    memory_of_one,
    spans_config,
)


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """A Llama with random adapters and connectors; shared, so leave it as it is."""
    made = Clara.from_backbone(tiny_backbone("llama"), spans_config())
    return draw_connectors(draw_adapters(made, seed=0))


@pytest.fixture(scope="module")
def untrained(tiny_backbone):
    return Clara.from_backbone(tiny_backbone("llama"), spans_config())


# Memory


@pytest.mark.parametrize("rate", [1, 2, 4, 32])
@pytest.mark.parametrize(
    "form", [{}, {"connector_rank": 3}, {"span_slope": 0.15}], ids=lambda form: str(*form)
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (LlamaConfig, {"tie_word_embeddings": True}),
        (LlamaConfig, {"tie_word_embeddings": False}),
        (GemmaConfig, {"head_dim": 12}),  # which scales embeddings
    ],
)
def test_memory_is_that_of_a_loop_over_documents(random_backbone, kind, settings, form, rate):
    model = Clara.from_backbone(random_backbone(kind, **settings), spans_config(**form))
    draw_connectors(draw_adapters(model, seed=1)).to(torch.float64)
    found = model.compress(TEXTS, compression_rate=rate)
    tokens = [len(text.ids) for text in model.tokenizer.encode_texts(TEXTS)]
    assert found.token_counts == tokens
    assert found.counts == [-(-count // rate) for count in tokens]
    assert found.memory.dtype == torch.float64
    for row, text in enumerate(TEXTS):
        expected = memory_of_one(model, text, rate)
        assert len(expected) == found.counts[row]
        torch.testing.assert_close(
            found.memory[row, : len(expected)], expected, rtol=1e-10, atol=1e-10
        )
        assert not found.memory[row, len(expected) :].any()


def test_memory_on_a_quantized_backbone(random_backbone):
    folder = random_backbone(LlamaConfig, hidden_size=64, intermediate_size=128)
    model = Clara.from_backbone(folder, spans_config(quantization="nf4"))
    draw_connectors(draw_adapters(model, seed=1))
    found = model.compress(TEXTS)
    for row, text in enumerate(TEXTS):
        expected = memory_of_one(model, text, 4)
        torch.testing.assert_close(
            found.memory[row, : len(expected)], expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("slope", [0, 0.1])
def test_a_slope_tells_the_order_of_a_spans_tokens(tiny_backbone, slope):
    model = Clara.from_backbone(tiny_backbone("llama"), spans_config(span_slope=slope))
    inputs = [compressor_input(ids, bos=1, eos=2, rate=4) for ids in ([50, 60, 70], [70, 50, 60])]
    (batch,) = pack(inputs, batch_tokens=99, device=model.device)
    one, other = model.span_means(batch)
    assert torch.allclose(one, other, atol=1e-5) is not bool(slope)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [1.0]),
        (2, [1.1, 0.9]),
        (4, [1.3, 1.1, 0.9, 0.7]),
        (13, [1.6 - 0.1 * place for place in range(13)]),  # as steep as it gets
    ],
)
def test_weights_fall_from_token_to_token_and_their_mean_is_one(count, expected):
    tokens = torch.eye(16, dtype=torch.float64)[None]
    real = torch.arange(16)[None] < count
    found = weighted_means(tokens, real, 0.2)[0] * count
    torch.testing.assert_close(found[:count], torch.tensor(expected, dtype=torch.float64))
    assert not found[count:].any()
    assert torch.equal(weighted_means(tokens, real), (tokens * real[..., None]).sum(1) / count)


def test_a_slope_is_saved_and_belongs_to_the_model(tiny_backbone, tmp_path):
    made = Clara.from_backbone(tiny_backbone("llama"), spans_config(span_slope=0.1), seed=3)
    made.save_pretrained(tmp_path)
    loaded = Clara.from_pretrained(tmp_path)
    assert torch.equal(loaded.compress(TEXTS).memory, made.compress(TEXTS).memory)
    assert loaded.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match=r"span_slope=0\.0 contradicts the checkpoint"):
        Clara.from_pretrained(tmp_path, span_slope=0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untrained_model_averages_and_at_rate_one_is_the_text(tiny_backbone, dtype):
    model = Clara.from_backbone(tiny_backbone("llama"), spans_config(dtype=dtype))
    found = model.compress(TEXTS, compression_rate=1)
    for row, text in enumerate(model.tokenizer.encode_texts(TEXTS)):
        assert torch.equal(found.memory[row, : len(text.ids)], embedding(model, text.ids))
    assert found.effective_compression == 1
    halved = model.compress(TEXTS, compression_rate=2)
    ids = model.tokenizer.encode_texts(TEXTS)[0].ids
    mean = embedding(model, ids[2:4]).float().mean(0).to(model.dtype)
    assert torch.equal(halved.memory[0, 1], mean)


def test_at_rate_one_the_generator_reads_the_text(untrained):
    draw_adapters(untrained, seed=3)
    try:
        check_the_generator_reads_the_text(untrained)
    finally:
        for name in ("compressor", "query_reasoner", "generator"):
            for key, value in untrained.adapters.parameters(name).items():
                if "lora_B" in key:
                    value.data.zero_()


def test_a_multiplier_of_the_backbone_reaches_memory_as_it_does_text(random_backbone):
    """Granite multiplies what its embedding layer returns, memory among it."""
    folder = random_backbone(GraniteConfig, embedding_multiplier=3.0)
    model = draw_adapters(Clara.from_backbone(folder, spans_config()), seed=3)
    found = model.compress(TEXTS[:1], compression_rate=1)
    ids = model.tokenizer.encode_texts(TEXTS[:1])[0].ids
    assert torch.equal(found.memory[0], embedding(model, ids))
    check_the_generator_reads_the_text(model)


def check_the_generator_reads_the_text(model):
    """The generator's logits are those of the same prompt with tokens in place of memory."""
    found = model.compress(TEXTS[:1], compression_rate=1)
    (prompt,) = model.memory_prompts(QUESTIONS[:1], [found.counts], ["Ada"])
    ids = model.tokenizer.encode_texts(TEXTS[:1])[0].ids
    at = prompt.first_slot
    replaced = [*prompt.ids[:at], *ids, *prompt.ids[at + len(ids) :]]
    assert Marker.MEMORY not in replaced
    ours = model.embed(torch.tensor(prompt.ids), found.memory[0])
    theirs = model.embed(torch.tensor(replaced), found.memory[0, :0])
    with torch.no_grad(), model.adapters.active("generator"):
        logits = [model.backbone(inputs_embeds=each[None]).logits for each in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_a_documents_memory_does_not_depend_on_its_neighbours(model):
    together = model.compress(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = model.compress([text], batch_tokens=1)
        assert alone.counts == [together.counts[row]]
        torch.testing.assert_close(
            alone.memory[0], together.memory[row, : alone.counts[0]], rtol=1e-5, atol=1e-5
        )


def test_short_texts_cost_what_they_are_and_long_ones_are_not_cut(model, tiny_backbone):
    assert model.compress(["Salt"]).counts == [1]
    long = "The river has a long course. " * 40
    wide = Clara.from_backbone(tiny_backbone("llama"), spans_config(document_length=1500))
    found = wide.compress([long], compression_rate=128)
    assert found.ids == ["0"]
    assert found.token_counts[0] > 200
    assert found.counts == [-(-found.token_counts[0] // 128)]


def test_a_text_that_is_cut_has_exactly_the_limit(model):
    long = "The river has a long course. " * 20
    cut = model.compress([long], overflow="truncate")
    assert (cut.token_counts, cut.counts) == ([64], [16])
    chunks = model.compress([long], overflow="chunk")
    assert len(chunks) > 2
    assert max(chunks.token_counts) <= 64
    with pytest.raises(ValueError, match=r"document '0' has .* tokens, the limit is 64"):
        model.compress([long], overflow="error")


def test_a_text_that_does_not_fit_the_positions_is_named(tiny_backbone):
    model = Clara.from_backbone(tiny_backbone("llama"), spans_config(document_length=4000))
    long = "The river has a long course. " * 260
    with pytest.raises(ValueError, match=r"document '1' has \d+ tokens and \d+ memory tokens, w"):
        model.compress(["Short.", long])
    assert model.compress([long[:3000]], compression_rate=32).counts[0] > 30


def test_the_scale_brings_states_to_the_length_of_embeddings(model):
    ids = model.tokenizer.encode_texts([" ".join(TEXTS)])[0].ids
    with torch.no_grad():
        states = model.backbone.base_model(torch.tensor([ids])).last_hidden_state[0]
    ratio = states.norm(dim=1).mean() / embedding(model, ids).norm(dim=1).mean()
    assert 0.5 < (model.connectors["compressor"].scale / ratio).item() < 2


# Rates


def test_a_rate_that_was_not_trained(tiny_backbone):
    model = Clara.from_backbone(tiny_backbone("llama"), spans_config(rates=[4, 8, 1]))
    assert model.config.rates == (1, 4, 8)
    refusal = r"compression_rate must be one of the rates .* \(1, 4, 8\), got 16"
    with pytest.raises(ValueError, match=refusal):
        model.compress(TEXTS, compression_rate=16)
    with pytest.warns(UserWarning, match="not trained for compression rate 16, only for 1, 4, 8"):
        assert model.compress(TEXTS[1:2], compression_rate=16, any_rate=True).counts == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.compress(TEXTS[1:2], compression_rate=8, any_rate=True)
    with pytest.raises(ValueError, match=refusal):
        spans_config(rates=[4, 8, 1], compression_rate=16)
    with pytest.raises(ValueError, match="question_rate must be one of"):
        spans_config(rates=[4], question_rate=1)
    with pytest.raises(TypeError, match="compression_rate must be an integer"):
        model.compress(TEXTS, compression_rate=4.0)
    for wrong in (4, [], "4"):
        with pytest.raises(TypeError, match="rates must be a list of compression rates"):
            spans_config(rates=wrong)


def test_learned_memory_has_one_rate(tiny_model):
    with pytest.raises(ValueError, match=r"compression_rate must be 16, the only one .* got 4"):
        tiny_model.compress(TEXTS, compression_rate=4)
    assert tiny_model.compress(TEXTS[:1], compression_rate=16).counts == [4]


def test_flattened_ranking_needs_equal_lengths():
    with pytest.raises(ValueError, match='ranking must be "mean" with memory_form "spans"'):
        spans_config(ranking="flattened")
    assert spans_config().ranking_rule == "mean"
    assert ClaraConfig().ranking_rule == "flattened"


# Saving, fingerprints


@pytest.mark.slow
def test_another_process_computes_the_same(model, warm, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    code = """
import json, sys
from safetensors.torch import save_file
from clara import Clara
folder, texts, questions = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = Clara.from_pretrained(folder, compression_rate=8, document_length=60)
found = model.compress(texts, compression_rate=4)
queries = model.encode_queries(questions)
tensors = {"memory": found.memory, "queries": queries.contiguous()}
save_file(tensors, folder + "/found.safetensors")
print(json.dumps([model.fingerprint, found.counts, model.config.compression_rate]))
"""
    command = [warm().python, "-c", code, str(folder), json.dumps(TEXTS), json.dumps(QUESTIONS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = model.compress(TEXTS)
    assert json.loads(printed) == [model.fingerprint, found.counts, 8]
    from safetensors.torch import load_file

    theirs = load_file(folder / "found.safetensors")
    assert torch.equal(theirs["memory"], found.memory)
    assert torch.equal(theirs["queries"], model.encode_queries(QUESTIONS))


def test_a_checkpoint_without_connectors(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "connectors.safetensors").unlink()
    with pytest.raises(ValueError, match=r"connectors\.safetensors: cannot read the connectors"):
        Clara.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="memory_form='learned' contradicts the checkpoint"):
        Clara.from_pretrained(tmp_path, memory_form="learned")


def test_fingerprints(tiny_backbone):
    made = {
        name: Clara.from_backbone(tiny_backbone("llama"), spans_config(**settings))
        for name, settings in {
            "one": {},
            "other rate": {"compression_rate": 16, "document_length": 50, "rates": [1, 16]},
            "thin": {"connector_rank": 2},
            "slope": {"span_slope": 0.1},
            "learned": {"memory_form": "learned", "distinct_memory_tokens": False},
        }.items()
    }
    fingerprints = {name: model.fingerprint for name, model in made.items()}
    assert fingerprints["other rate"] == fingerprints["one"]
    assert len(set(fingerprints.values())) == 4
    one = made["one"]
    with torch.no_grad():
        one.connectors["query_reasoner"].up[0, 0] = 1
        assert one.fingerprint == fingerprints["one"]
        one.connectors["compressor"].up[0, 0] = 1
        assert one.fingerprint != fingerprints["one"]


def test_compressed_documents_of_unequal_length(model):
    found = model.compress(TEXTS)
    assert found.memory.shape == (4, max(found.counts), 48)
    joined = CompressedDocuments.concatenate([found[1:2], found[[3, 0]]])
    assert joined.counts == [found.counts[row] for row in (1, 3, 0)]
    parts = [model.compress([text]) for text in TEXTS]
    joined = CompressedDocuments.concatenate(parts)
    assert joined.counts == found.counts
    assert joined.memory.shape == found.memory.shape
    torch.testing.assert_close(joined.memory, found.memory, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"counts\[1\] must be at least 1 and at most"):
        CompressedDocuments(**{**vars(found), "counts": [1, 0, 1, 1]})
    with pytest.raises(ValueError, match="counts has 3 entries for 4 memories"):
        CompressedDocuments(**{**vars(found), "counts": [1, 1, 1]})
