"""The noise of `select_topk`: its generator, and every implementation of it."""

from importlib import import_module

import pytest
import torch
from comparison import offsets_of
from selection_cases import EACH

from clara_kernels import select_topk
from clara_kernels.select_topk.noise import gumbel_noise, philox4x32
from clara_kernels.select_topk.options import Options


def word(value):
    return torch.tensor([value], dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors that Random123 publishes for philox4x32-10."""
    result = philox4x32(tuple(word(value) for value in counter), key)
    assert tuple(value.item() for value in result) == expected


def test_noise_follows_its_written_definition():
    seed, row, column = 0x1234_5678_9ABC_DEF0, 3, 5
    bits = philox4x32((word(column), word(row), word(0), word(0)), (0x9ABCDEF0, 0x12345678))[0]
    uniform = ((bits >> 9).double() + 0.5) / 2**23
    expected = -(-uniform.log()).log()
    noise = gumbel_noise(seed, 4, 6, torch.device("cpu"))
    assert noise.dtype == torch.float32
    assert noise[row, column] == expected.float()


def test_noise_depends_on_seed_row_and_column_only():
    cpu = torch.device("cpu")
    noise = gumbel_noise(11, 6, 9, cpu)
    assert torch.equal(noise[:2, :4], gumbel_noise(11, 2, 4, cpu))
    assert torch.equal(noise, gumbel_noise(torch.tensor(11), 6, 9, cpu))
    assert noise.unique().numel() == noise.numel()
    for other in (12, 11 + 2**32, 2**64 - 1):
        assert not torch.isclose(noise, gumbel_noise(other, 6, 9, cpu)).any()
    assert torch.equal(gumbel_noise(2**64 - 1, 2, 2, cpu), gumbel_noise(word(-1)[0], 2, 2, cpu))


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(2024, 1000, 1000, torch.device("cpu")).double().flatten()
    assert torch.isfinite(noise).all()
    # Mean: Euler's constant, variance: pi² / 6; a million draws leave 1.3e-3 and 4e-3 of error.
    assert abs(noise.mean().item() - 0.5772157) < 6e-3
    assert abs(noise.var().item() - torch.pi**2 / 6) < 2e-2
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is the 0.1% level.
    uniform = (-(-noise.sort().values).exp()).exp()
    steps = torch.arange(1, noise.numel() + 1, dtype=torch.float64) / noise.numel()
    assert (uniform - steps).abs().max() < 1.95e-3
    rows = noise.view(1000, 1000)
    for lagged in (rows[1:] * rows[:-1], rows[:, 1:] * rows[:, :-1]):
        assert abs(lagged.mean().item() - noise.mean().item() ** 2) < 1e-2


def test_the_extreme_uniforms_give_finite_noise():
    for bits in (0, 2**32 - 1):
        uniform = torch.tensor(((bits >> 9) + 0.5) * 2.0**-23, dtype=torch.float32)
        assert 0 < uniform < 1
        assert torch.isfinite(-(-uniform.log()).log())


def test_noise_samples_the_softmax():
    scores = torch.tensor([0.0, 0.5, 1.0, -1.0]).expand(20_000, 4)
    _, indices = select_topk(
        scores, torch.zeros(20_000, 4, 1), 1, temperature=0.7, noise="gumbel", seed=7
    )
    frequencies = indices.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(frequencies, (scores[0] / 0.7).softmax(-1), rtol=0, atol=0.015)


def test_the_same_seed_selects_the_same_for_every_dtype():
    scores = torch.randint(-8, 9, (64, 12)).double() / 8
    memory = torch.randn(64, 12, 2)
    chosen = [
        select_topk(scores.to(dtype), memory, 4, temperature=0.5, noise="gumbel", seed=3)[1]
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ]
    assert all(torch.equal(chosen[0], other) for other in chosen)
    _, other_seed = select_topk(scores, memory, 4, temperature=0.5, noise="gumbel", seed=4)
    assert not torch.equal(chosen[0], other_seed)
    _, quiet = select_topk(scores, memory, 4, temperature=0.5, seed=3)
    assert torch.equal(quiet, select_topk(scores, memory, 4, temperature=0.5)[1])


def test_masked_candidates_stay_masked_under_noise():
    scores = torch.full((200, 5), -torch.inf)
    scores[:, 2:4] = 0
    _, indices = select_topk(
        scores, torch.randn(200, 5, 1), 3, temperature=1.0, noise="gumbel", seed=1
    )
    assert set(indices[:, :2].flatten().tolist()) == {2, 3}
    assert (indices[:, 2] == -1).all()


@EACH
@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63, 2**64 - 1])
def test_noise_is_that_of_its_definition(seed):
    # Of zeros, the k best candidates are those with the most noise; p tells it to the last digits.
    lengths = [3, 0, 20]
    noise = gumbel_noise(seed, 3, 20, torch.device("cpu"))
    present = torch.arange(20) < torch.tensor(lengths)[:, None]
    expected = noise.masked_fill(~present, -torch.inf)
    signed = torch.tensor(seed if seed < 2**63 else seed - 2**64)
    for given_seed in (seed, signed):
        _, indices, p = select_topk(
            torch.zeros(sum(lengths)),
            torch.randn(sum(lengths), 3),
            2,
            temperature=0.7,
            noise="gumbel",
            seed=given_seed,
            offsets=offsets_of(lengths),
            return_probabilities=True,
        )
        ordered = expected.sort(dim=1, descending=True, stable=True)
        order = torch.where(ordered.values == -torch.inf, -1, ordered.indices)
        assert torch.equal(indices, order[:, :2])
        torch.testing.assert_close(p[0], expected.softmax(-1)[present], rtol=1e-6, atol=1e-7)


def test_noise_of_the_kernels_to_the_bit():
    module = import_module("clara_kernels.select_topk.triton")
    scores, temperature = torch.randn(3, 200), torch.tensor(0.3)
    for seed in (0, 77, 2**40 + 1, 2**64 - 3):
        signed = torch.tensor(seed if seed < 2**63 else seed - 2**64)
        options = Options(temperature, signed, sparse=False, leaky=False)
        expected = scores / temperature + gumbel_noise(seed, 3, 200, scores.device)
        assert torch.equal(module._Problem(scores, None, options).keys, expected)
