"""`select_topk` under `torch.compile`, and its registration."""

import pytest
import torch
from selection_cases import (
    leaves,
    opchecks,
    randoms,
)

from clara_kernels import select_topk
from clara_kernels.dispatch import cpu_tensors_use


def test_opcheck():
    inputs = *randoms([2, 0, 1], 6, memory=torch.float16), torch.tensor(5), (True, True)
    opchecks(*inputs, False, True)
    with cpu_tensors_use("triton"):
        opchecks(*inputs, False, True, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_opcheck_without_noise(needs):
    opchecks(*randoms([3, 3], 6), None, needs, True, False)


@pytest.mark.parametrize(
    ("backend", "ragged"),
    [
        ("aot_eager", False),
        ("aot_eager", True),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("numbers", [True, False])
def test_one_compiled_graph_serves_all_lengths_temperatures_and_seeds(backend, ragged, numbers):
    torch._dynamo.reset()
    compiled = torch.compile(select_topk, fullgraph=True, dynamic=True, backend=backend)
    lengths = [[2, 3, 0, 4], [5, 7, 1], [0, 1, 8, 9, 2]] if ragged else [[3] * 4, [7] * 3, [9] * 5]
    values = [(0.02, 1), (0.5, 2**40), (3.0, 77)]
    for number, (each, (temperature, seed)) in enumerate(zip(lengths, values, strict=True)):
        scores, memory, offsets = randoms(each, 20)
        if not numbers:
            temperature, seed = torch.tensor(temperature), torch.tensor(seed)
        options = {"temperature": temperature, "noise": "gumbel", "seed": seed}
        grad = torch.randn(len(each), 2, 20)
        results = []
        for function in (compiled, select_topk):
            inputs = leaves(scores, memory)
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                selected, indices, p = function(
                    *inputs, 2, offsets=offsets, return_probabilities=True, **options
                )
            ((selected * grad).sum() + p.square().sum()).backward()
            results.append((selected, indices, p, *(leaf.grad for leaf in inputs)))
        torch.testing.assert_close(*results)


def test_a_compiled_graph_takes_seeds_of_64_bits():
    scores, memory, _ = randoms([5, 5], 4)
    torch._dynamo.reset()
    compiled = torch.compile(select_topk, fullgraph=True, backend="aot_eager")
    options = {"temperature": 0.3, "noise": "gumbel", "seed": 2**64 - 1}
    expected = select_topk(scores, memory, 2, **options)
    torch.testing.assert_close(compiled(scores, memory, 2, **options), expected)
