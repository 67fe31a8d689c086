"""Straight-through top-k, forward and backward together, documents without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.baselines.selection import straight_through_loop

from .case import Case, Prepare, Run, Setting, Target, gradients, memory_tokens, operator

TEMPERATURE = 0.02
EAGER = Target("5 times the eager loop", "ratio", "loop", 5.0)
GRAPH = Target("1.3 times the loop, both in a CUDA graph", "ratio", "loop", 1.3)
MEMORY = Target("extra memory within 1% of the candidates", "extra memory", at_most=0.01)


def cases(setting: Setting) -> Iterator[Case]:
    batch, count, k = setting.size(64, 3), setting.size(20, 6), setting.size(5, 3)
    m, hidden = setting.size(16, 2), setting.size(2048, 24)
    item = setting.dtype.itemsize
    candidate_bytes = batch * count * m * hidden * item

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        memory, grad = setting.randn(seed, (batch, count, m, hidden), (batch, k, m, hidden))
        scores = setting.randn(seed + 1, (batch, count), dtype=torch.float32)
        return scores * 0.05, memory, grad

    for mask in ("reference", "exact"):
        for timing, target in (("events", EAGER), ("graph", GRAPH)):
            eager = timing == "events"
            yield Case(
                operator="select_topk",
                name=f'mask="{mask}", forward and backward, {"eager" if eager else "graph"}',
                inputs=inputs,
                ours=_prepare(_ours, k, mask),
                baselines={"loop": _prepare(straight_through_loop, k, mask)},
                # Candidates are read once; k of them are gathered, written, and multiplied.
                bytes=batch * (count + 3 * k) * m * hidden * item,
                timing=timing,
                targets=(target, MEMORY) if eager else (target,),
                candidate_bytes=candidate_bytes if eager else 0,
            )


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`, the mask exact."""
    batch, count, k = setting.size(64, 3, 32), setting.size(20, 6, 20), setting.size(5, 3, 5)
    m, hidden = memory_tokens(rate), setting.hidden
    width, item = m * hidden, setting.dtype.itemsize

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        memory, grad = setting.randn(seed, (batch, count, m, hidden), (batch, k, m, hidden))
        scores = setting.randn(seed + 1, (batch, count), dtype=torch.float32)
        return scores * 0.05, memory, grad

    ways = {
        "eager": straight_through_loop,
        "torch.compile": setting.compiled(straight_through_loop),
    }
    for backward in (False, True):
        # Forward k candidates are read and written; backward all are multiplied with k gradients.
        rows = count + k if backward else 2 * k
        yield Case(
            operator="select_topk",
            name="backward to the scores" if backward else "forward",
            inputs=inputs,
            ours=_alone(_ours, k, backward),
            baselines={name: _alone(way, k, backward) for name, way in ways.items()},
            bytes=batch * (rows * width * item + count * 4),
            operations=2 * batch * k * count * width if backward else 0,
            tolerance=setting.tolerance,
        )


def _alone(function: Callable[..., Any], k: int, backward: bool) -> Prepare:
    """One direction."""

    def prepare(inputs: tuple[Tensor, Tensor, Tensor]) -> Run:
        scores, memory, grad = inputs

        def forward(scores: Tensor) -> tuple[Tensor, Tensor]:
            return function(scores, memory, k, TEMPERATURE, "exact")

        if backward:
            return Run(gradients(lambda scores: forward(scores)[0], (scores,), grad))
        return Run(lambda: forward(scores))

    return prepare


def _ours(scores: Tensor, memory: Tensor, k: int, temperature: float, mask: str) -> Any:
    return operator("select_topk")(scores, memory, k, temperature=temperature, mask=mask)


def _prepare(function: Callable[..., Any], k: int, mask: str) -> Prepare:
    def prepare(inputs: tuple[Tensor, Tensor, Tensor]) -> Run:
        scores, memory, grad = inputs
        scores = scores.detach().requires_grad_()

        def call() -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                selected, indices = function(scores, memory, k, TEMPERATURE, mask)
            (grad_scores,) = torch.autograd.grad(selected, scores, grad)
            return selected.detach(), indices, grad_scores

        return Run(call)

    return prepare
