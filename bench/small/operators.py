"""Every operator once, forward and backward, on small odd sizes.

Results are compared with those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bench.operators.case import operator

TOLERANCE = 2e-2  # of the norm; the GPU's inputs are half precision where they may be

Call = tuple[Callable[..., Any], tuple[Tensor, ...]]
Calls = Iterator[tuple[str, Callable[[], Call]]]
"""Names, and what makes a function of floating-point tensors and those tensors, on CPU."""


def checks() -> Iterator[tuple[str, Callable[[torch.device], str | None]]]:
    """Names of calls, and what tells what is wrong with them on a device."""
    for name, make in calls():
        yield name, partial(problem, make)


def problem(make: Callable[[], Call], device: torch.device) -> str | None:
    function, inputs = make()
    expected = compute(function, tuple(each.float() for each in inputs))
    apart = difference(compute(function, tuple(x.to(device) for x in inputs)), expected)
    return None if apart <= TOLERANCE else f"differs by {apart:.1e}"


def calls() -> Calls:
    return chain(
        _sparsemax(),
        _cosine_scores(),
        _select_topk(),
        _rank_and_select(),
        _memory_alignment_loss(),
        _memory_attention(),
        _quantization(),
    )


def randn(*shape: int, seed: int = 0) -> Tensor:
    # Halves, so that float16 and float32 start from the same numbers.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def _offsets(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


_RAGGED = (0, 5, 6, 13)


def _sparsemax() -> Calls:
    for columns in (1, 33, 1000, 40000):

        def call(columns: int = columns) -> Call:
            return operator("sparsemax"), (randn(3, columns),)

        yield f"sparsemax, {columns} columns", call


def _cosine_scores() -> Calls:
    def dense() -> Call:
        return operator("cosine_scores"), (randn(3, 195), randn(3, 7, 195, seed=1))

    def ragged() -> Call:
        function, offsets = operator("cosine_scores"), _offsets(*_RAGGED)
        return (
            lambda queries, documents: function(queries, documents, offsets.to(queries.device)),
            (randn(3, 195), randn(13, 195, seed=1)),
        )

    yield "cosine_scores", dense
    yield "cosine_scores, ragged", ragged


def _select_topk() -> Calls:
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"relaxation": "sparsemax", "mask": "reference"},
        {"noise": "gumbel", "seed": 3},
    )
    for options in choices:

        def dense(options: dict[str, Any] = options) -> Call:
            function = operator("select_topk")
            return (
                lambda scores, memory: function(scores, memory, 3, temperature=0.1, **options)[0],
                (randn(3, 7).float() / 4, randn(3, 7, 3, 65, seed=1)),
            )

        yield f"select_topk, {options}", dense

    def ragged() -> Call:
        function, offsets = operator("select_topk"), _offsets(*_RAGGED)
        return (
            lambda scores, memory: function(
                scores, memory, 3, temperature=0.1, offsets=offsets.to(scores.device)
            )[0],
            (randn(13).float() / 4, randn(13, 3, 65, seed=1)),
        )

    yield "select_topk, ragged", ragged


def _rank_and_select() -> Calls:
    def call() -> Call:
        function = operator("rank_and_select")
        return (
            lambda query, memory: function(query, memory, 3, temperature=0.1)[0],
            (randn(3, 3, 65), randn(3, 7, 3, 65, seed=1)),
        )

    yield "rank_and_select", call


def _memory_alignment_loss() -> Calls:
    for per_document in (False, True):

        def call(per_document: bool = per_document) -> Call:
            function = operator("memory_alignment_loss")
            documents, counts = _offsets(0, 5, 8, 24), _offsets(2, 1, 3)

            def loss(hidden: Tensor) -> Tensor:
                n_memory = counts.to(hidden.device) if per_document else 2
                return function(hidden, documents.to(hidden.device), n_memory)

            return loss, (randn(24, 65),)

        yield f"memory_alignment_loss, counts per document: {per_document}", call


def _memory_attention() -> Calls:
    for head_dim in (64, 80):
        for memory_only in (False, True):

            def call(head_dim: int = head_dim, memory_only: bool = memory_only) -> Call:
                function, documents = operator("memory_attention"), _offsets(0, 5, 9, 150)
                rows = 6 if memory_only else 150
                q = randn(rows, 4, head_dim)
                k, v = (randn(150, 2, head_dim, seed=seed) for seed in (1, 2))

                def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                    offsets = documents.to(q.device)
                    return function(q, k, v, offsets, 2, memory_only=memory_only)

                return attend, (q, k, v)

            yield f"memory_attention, head_dim {head_dim}, memory_only={memory_only}", call


def _quantization() -> Calls:
    for bits in (8, 4):

        def call(bits: int = bits) -> Call:
            quantize, dequantize = operator("quantize_memory"), operator("dequantize_memory")

            def roundtrip(memory: Tensor) -> Tensor:
                return dequantize(*quantize(memory, bits), width=memory.shape[-1])

            return roundtrip, (randn(5, 333),)

        yield f"quantize_memory, {bits} bits", call


def compute(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The result and the gradients of all inputs, as float32 on CPU."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    result = function(*leaves)
    found = [result.detach()]
    if result.requires_grad:
        grad = torch.cos(torch.arange(result.numel()).float()).view(result.shape)
        found += torch.autograd.grad(result, leaves, grad.to(result))
    return [each.float().cpu() for each in found]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    apart = 0.0
    for one, other in zip(found, expected, strict=True):
        norm = max(other.norm().item(), 1e-3)
        apart = max(apart, ((one - other).norm() / norm).nan_to_num(nan=torch.inf).item())
    return apart
