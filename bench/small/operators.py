"""Every operator once, forward and backward, on small odd sizes: what compute-sanitizer watches.

`python bench/small_calls.py --device cuda`. Results are compared with those of the CPU. Exits 1 if
one differs or fails; an operator that is not there is only named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.operators.case import Unavailable, operator

TOLERANCE = 2e-2  # of the norm; the GPU's inputs are half precision where they may be

Call = tuple[Callable[..., Any], tuple[Tensor, ...]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    # Halves, so that float16 and float32 start from the same numbers.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def calls() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Names, and what makes a function of floating-point tensors and those tensors, on CPU."""
    offsets = torch.tensor([0, 5, 6, 13], dtype=torch.int32)

    for columns in (1, 33, 1000, 40000):
        yield (
            f"sparsemax, {columns} columns",
            lambda columns=columns: (operator("sparsemax"), (randn(3, columns),)),
        )

    def dense() -> Call:
        return operator("cosine_scores"), (randn(3, 195), randn(3, 7, 195, seed=1))

    def ragged() -> Call:
        cosine = operator("cosine_scores")
        return (
            lambda queries, documents: cosine(queries, documents, offsets.to(queries.device)),
            (randn(3, 195), randn(13, 195, seed=1)),
        )

    yield "cosine_scores", dense
    yield "cosine_scores, ragged", ragged

    for options in (
        {},
        {"relaxation": "sparsemax", "mask": "reference"},
        {"noise": "gumbel", "seed": 3},
    ):

        def select(options: dict[str, Any] = options) -> Call:
            function = operator("select_topk")
            return (
                lambda scores, memory: function(scores, memory, 3, temperature=0.1, **options)[0],
                (randn(3, 7).float() / 4, randn(3, 7, 3, 65, seed=1)),
            )

        yield f"select_topk, {options}", select

    def ragged_select() -> Call:
        function = operator("select_topk")
        return (
            lambda scores, memory: function(
                scores, memory, 3, temperature=0.1, offsets=offsets.to(scores.device)
            )[0],
            (randn(13).float() / 4, randn(13, 3, 65, seed=1)),
        )

    yield "select_topk, ragged", ragged_select

    def ranked() -> Call:
        function = operator("rank_and_select")
        return (
            lambda query, memory: function(query, memory, 3, temperature=0.1)[0],
            (randn(3, 3, 65), randn(3, 7, 3, 65, seed=1)),
        )

    yield "rank_and_select", ranked

    for per_document in (False, True):

        def aligned(per_document: bool = per_document) -> Call:
            function = operator("memory_alignment_loss")
            documents = torch.tensor([0, 5, 8, 24], dtype=torch.int32)
            counts = torch.tensor([2, 1, 3], dtype=torch.int32)

            def loss(hidden: Tensor) -> Tensor:
                n_memory = counts.to(hidden.device) if per_document else 2
                return function(hidden, documents.to(hidden.device), n_memory)

            return loss, (randn(24, 65),)

        yield f"memory_alignment_loss, counts per document: {per_document}", aligned

    for head_dim in (64, 80):
        for memory_only in (False, True):

            def attended(head_dim: int = head_dim, memory_only: bool = memory_only) -> Call:
                function = operator("memory_attention")
                documents = torch.tensor([0, 5, 9, 150], dtype=torch.int32)
                rows = 6 if memory_only else 150
                return (
                    lambda q, k, v: function(
                        q, k, v, documents.to(q.device), 2, memory_only=memory_only
                    ),
                    (
                        randn(rows, 4, head_dim),
                        randn(150, 2, head_dim, seed=1),
                        randn(150, 2, head_dim, seed=2),
                    ),
                )

            yield f"memory_attention, head_dim {head_dim}, memory_only={memory_only}", attended

    for bits in (8, 4):

        def roundtrip(bits: int = bits) -> Call:
            quantize, dequantize = operator("quantize_memory"), operator("dequantize_memory")

            def function(memory: Tensor) -> Tensor:
                return dequantize(*quantize(memory, bits), width=memory.shape[-1])

            return function, (randn(5, 333),)

        yield f"quantize_memory, {bits} bits", roundtrip


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args(arguments).device)
    failed = 0
    for name, make in calls():
        try:
            function, inputs = make()
            expected = compute(function, tuple(each.float() for each in inputs))
            apart = difference(compute(function, tuple(x.to(device) for x in inputs)), expected)
        except Unavailable as missing:
            print(f"{name}: missing, {missing}")
            continue
        except Exception as error:
            print(f"{name}: FAILED, {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        ok = apart <= TOLERANCE
        failed += not ok
        print(f"{name}: {'ok' if ok else 'FAILED'}, differs by {apart:.1e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
