"""A step of the compiled decoder against PyTorch's in float64, and what it refuses."""

import dataclasses

import pytest
import torch
from decoder_cases import HEAD_DIM, HIDDEN, decoder_weights, filled_cache, tokens

from clara_kernels import build_info
from clara_kernels.decoding import Decoder, DecoderCache, LinearWeights, decoder

SIMD = build_info()["simd_available"]
KINDS = {
    "float32": ({}, 2e-6),
    "bfloat16": ({"dtype": torch.bfloat16}, 2e-6),
    "float16, adapters, biases": ({"dtype": torch.float16, "rank": 5, "bias": True}, 2e-6),
    "int8, adapters": ({"dtype": torch.int8, "rank": 8}, 1e-3),  # inputs have 16 bits
    "norms of heads": ({"head_norms": True, "rank": 3}, 2e-6),
}
LENGTHS = {1: [0], 3: [7, 0, 19], 8: [0, 1, 2, 3, 16, 17, 31, 32]}


@pytest.fixture(params=SIMD)
def simd(request, monkeypatch):
    monkeypatch.setenv("CLARA_SIMD", request.param)


def worst_error(weights, lengths, steps=5):
    found = filled_cache(weights, lengths, 40)
    expected = filled_cache(weights, lengths, 40, torch.float64)
    compiled, errors = Decoder(weights), []
    for step in range(steps):
        given = tokens(len(lengths), seed=step)
        logits = compiled.step(found, *given)
        wanted = compiled.step(expected, *given)  # in float64 PyTorch computes it
        errors.append(((logits - wanted).abs().max() / wanted.abs().max()).item())
    assert torch.equal(found.lengths, expected.lengths)
    assert found.lengths.tolist() == [length + steps for length in lengths]
    return max(errors)


def with_wide_network(weights, wide):
    """The same with networks of another width in all layers."""
    generator = torch.Generator().manual_seed(0)
    dtype = weights.head.weight.dtype

    def linear(outputs, inputs):
        values = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        if dtype != torch.int8:
            return LinearWeights(values.to(dtype))
        scales = values.abs().amax(1) / 127
        return LinearWeights((values / scales[:, None]).round().to(dtype), row_scales=scales)

    network = {
        "gate": linear(wide, HIDDEN),
        "up": linear(wide, HIDDEN),
        "down": linear(HIDDEN, wide),
    }
    layers = [dataclasses.replace(layer, **network) for layer in weights.layers]
    return dataclasses.replace(weights, layers=layers)


@pytest.mark.parametrize("sequences", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_float64(simd, kind, sequences):
    options, tolerance = KINDS[kind]
    assert worst_error(decoder_weights(**options), LENGTHS[sequences]) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_more_threads_compute_the_same(kind, set_threads):
    """Bit for bit: threads share rows, and a row's sum is that of one thread."""
    weights = with_wide_network(decoder_weights(**KINDS[kind][0]), 12_000)  # enough for three
    given = tokens(8, seed=0)
    set_threads(3)
    several = Decoder(weights).step(filled_cache(weights, LENGTHS[8], 40), *given)
    set_threads(1)
    alone = Decoder(weights).step(filled_cache(weights, LENGTHS[8], 40), *given)
    assert torch.equal(alone, several)


def test_sequences_do_not_see_each_other():
    weights, lengths = decoder_weights(), LENGTHS[8]
    given = tokens(len(lengths), seed=0)
    together = Decoder(weights).step(filled_cache(weights, lengths, 40), *given)
    cache = filled_cache(weights, lengths, 40)
    for row, length in enumerate(lengths):
        alone = DecoderCache(
            cache.keys[:, row : row + 1].clone(), cache.values[:, row : row + 1].clone()
        )
        alone.lengths[0] = length
        logits = Decoder(weights).step(alone, *(each[row : row + 1] for each in given))
        torch.testing.assert_close(logits[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_wide_layer_is_read_in_parts(dtype):
    """Over 2,048 columns, where int8 sums are made in parts, and over 1,024, where others are."""
    weights = with_wide_network(decoder_weights(dtype), 4_500)
    for lengths in LENGTHS.values():
        assert worst_error(weights, lengths, steps=1) < (1e-3 if dtype == torch.int8 else 2e-6)


def test_many_sequences_beside_each_other(simd):
    """More than are multiplied together, with adapters of bfloat16 too."""
    weights = decoder_weights(dtype=torch.bfloat16, rank=5)
    assert worst_error(weights, [row % 7 for row in range(35)], steps=1) < 2e-6


@pytest.mark.parametrize("ranks", [(64, 16), (33, 20)])
def test_layers_may_have_adapters_of_other_ranks(simd, ranks):
    """All of bfloat16, so that inputs are packed for the rank of each layer in turn."""
    several = [decoder_weights(dtype=torch.bfloat16, rank=rank) for rank in ranks]
    layers = [in_bfloat16(several[i % 2].layers[i]) for i in range(len(several[0].layers))]
    weights = dataclasses.replace(several[0], layers=layers)
    assert worst_error(weights, LENGTHS[8], steps=3) < 1e-5  # adapters this large enlarge roundings


def in_bfloat16(layer):
    """The layer with its adapters rounded."""
    names = ("query", "key", "value", "output", "gate", "up", "down")
    return dataclasses.replace(
        layer,
        **{
            name: dataclasses.replace(found, down=found.down.bfloat16(), up=found.up.bfloat16())
            for name in names
            for found in [getattr(layer, name)]
        },
    )


def head_with(values):
    """Weights of bfloat16 whose head has `values` in row 9, from column 3 on."""
    weights = decoder_weights(dtype=torch.bfloat16)
    head = weights.head.weight.clone()
    head[9, 3 : 3 + len(values)] = torch.tensor(values, dtype=torch.bfloat16)
    return dataclasses.replace(weights, head=LinearWeights(head))


@pytest.mark.parametrize("sequences", [1, 8])
def test_infinite_weights_stay_infinite(simd, sequences):
    weights, lengths = head_with([torch.inf]), LENGTHS[sequences]
    given = tokens(sequences, seed=0)
    logits = Decoder(weights).step(filled_cache(weights, lengths, 40), *given)
    expected = Decoder(weights).step(filled_cache(weights, lengths, 40, torch.float64), *given)
    assert expected[:, 9].isinf().all()
    assert torch.equal(logits[:, 9].double(), expected[:, 9])
    others = [column for column in range(logits.shape[1]) if column != 9]
    assert logits[:, others].isfinite().all()


@pytest.mark.parametrize("sequences", [1, 8])
def test_tiny_weights_change_nothing(simd, sequences):
    """Below the normal numbers: some instructions read them as zero."""
    values = [1e-40, -3e-39, 1e-38, 2.0**-133]
    weights, without = head_with(values), head_with([0.0] * len(values))
    found, expected = (
        Decoder(each).step(filled_cache(each, LENGTHS[sequences], 40), *tokens(sequences, seed=0))
        for each in (weights, without)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-30)


def test_weights_are_read_where_they_are():
    weights = decoder_weights()
    compiled, given = Decoder(weights), tokens(1, seed=0)
    before = compiled.step(filled_cache(weights, [3], 9), *given)
    weights.layers[1].gate.weight.mul_(2)
    after = compiled.step(filled_cache(weights, [3], 9), *given)
    assert not torch.equal(before, after)
    assert torch.equal(Decoder(weights).step(filled_cache(weights, [3], 9), *given), after)


def test_rows_may_be_apart():
    weights = decoder_weights()
    wider = torch.randn(len(weights.head.weight), HIDDEN + 7)
    apart = dataclasses.replace(weights, head=LinearWeights(wider[:, 3:-4]))
    together = dataclasses.replace(weights, head=LinearWeights(wider[:, 3:-4].contiguous()))
    found, expected = (
        Decoder(each).step(filled_cache(weights, [3], 9), *tokens(1, seed=0))
        for each in (apart, together)
    )
    assert torch.equal(found, expected)


def test_without_the_compiled_module_pytorch_computes_it(monkeypatch):
    weights, given = decoder_weights(rank=4), tokens(2, seed=0)
    expected = Decoder(weights).step(filled_cache(weights, [3, 5], 9), *given)
    monkeypatch.setattr(decoder, "native", None)
    found = Decoder(weights).step(filled_cache(weights, [3, 5], 9), *given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_full_cache_is_refused():
    weights = decoder_weights()
    cache = filled_cache(weights, [3, 16], 9)
    assert cache.capacity == 16
    before = cache.keys.clone()
    with pytest.raises(ValueError, match="the cache holds 16 tokens, and sequence 1 has as many"):
        Decoder(weights).step(cache, *tokens(2, seed=0))
    assert torch.equal(cache.keys.nan_to_num(), before.nan_to_num())
    assert cache.lengths.tolist() == [3, 16]
    Decoder(weights).step(cache.grown(weights, 17), *tokens(2, seed=0))


def test_a_grown_cache_holds_the_same():
    weights, given = decoder_weights(), tokens(3, seed=0)
    cache = filled_cache(weights, LENGTHS[3], 20)
    grown = cache.grown(weights, 100)
    assert grown.capacity >= 100
    assert torch.equal(Decoder(weights).step(cache, *given), Decoder(weights).step(grown, *given))


def test_what_changes_nothing_in_attention_is_left_out():
    """Scores a hundred apart: exp of the difference is no normal number."""
    weights = decoder_weights()
    found, expected = (
        filled_cache(weights, [30], 40, dtype) for dtype in (torch.float32, torch.float64)
    )
    for cache in (found, expected):
        cache.keys[:, :, :, :30] *= 300
    logits, wanted = (Decoder(weights).step(c, *tokens(1, seed=0)) for c in (found, expected))
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sequences", [3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_not_a_number_is_passed_on(simd, dtype, sequences):
    weights, given = decoder_weights(dtype), tokens(sequences, seed=0)
    given[0][1, 7] = torch.nan
    logits = Decoder(weights).step(filled_cache(weights, LENGTHS[sequences], 40), *given)
    assert logits[1].isnan().all()
    assert logits[[row for row in range(sequences) if row != 1]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "keys", c.keys[:1]), r"keys must be \[3, 2, 2, 16, 10\]"),
        (lambda c: setattr(c, "values", c.values.mT), "values must be"),
        (lambda c: setattr(c, "values", c.values.mT.contiguous().mT), "must be contiguous"),
        (lambda c: setattr(c, "values", c.values.double()), "one dtype"),
        (lambda c: setattr(c, "lengths", c.lengths.int()), "lengths must be int64 on the CPU"),
        (lambda c: setattr(c, "lengths", c.lengths[:1]), r"lengths must be \[2\]"),
    ],
)
def test_another_cache_is_refused(change, message):
    weights = decoder_weights()
    cache = filled_cache(weights, [3, 1], 9)
    change(cache)
    with pytest.raises(ValueError, match=message):
        Decoder(weights).step(cache, *tokens(2, seed=0))


@pytest.mark.parametrize("place", range(3))
def test_another_shape_is_refused(place):
    weights = decoder_weights()
    given = tokens(2, seed=0)
    given[place] = given[place][:, 1:]
    name, width = (("embeddings", HIDDEN), ("cosines", HEAD_DIM), ("sines", HEAD_DIM))[place]
    with pytest.raises(ValueError, match=rf"{name} must be \[2, {width}\], got"):
        Decoder(weights).step(filled_cache(weights, [3, 1], 9), *given)


def test_weights_that_do_not_belong_together_are_refused():
    weights = decoder_weights()
    layer = dataclasses.replace(weights.layers[0], key=weights.layers[0].gate)
    with pytest.raises(ValueError, match=r"key must be \[20, 50\], got \[77, 50\]"):
        Decoder(dataclasses.replace(weights, layers=[layer]))
    with pytest.raises(ValueError, match="heads must be a multiple of key_heads"):
        Decoder(dataclasses.replace(weights, key_heads=4))
    with pytest.raises(ValueError, match="layers must not be empty"):
        Decoder(dataclasses.replace(weights, layers=[]))
    with pytest.raises(ValueError, match="row_scales belong to an int8 weight"):
        LinearWeights(torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"bias must be \[9\], got \[8\]"):
        LinearWeights(torch.ones(9, 2), torch.ones(8))
    with pytest.raises(ValueError, match=r"final_norm must be \[50\], got \[4\]"):
        dataclasses.replace(weights, final_norm=torch.ones(4))
    with pytest.raises(ValueError, match="down and up belong together"):
        LinearWeights(torch.ones(2, 2), up=torch.ones(2, 1))
    head = LinearWeights(torch.ones(9, HIDDEN), None, None, torch.ones(2, 7), torch.ones(9, 2))
    with pytest.raises(ValueError, match="down must have the weight's columns"):
        Decoder(dataclasses.replace(weights, head=head))
