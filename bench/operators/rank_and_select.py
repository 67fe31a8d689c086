"""Ranking and selection in one, against the two operators one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.baselines.selection import rank_and_select_loop

from .case import Case, Prepare, Run, Setting, gradients, memory_tokens, operator

TEMPERATURE = 0.02


def cases(setting: Setting) -> Iterator[Case]:
    count, k = setting.size(20, 6), setting.size(5, 3)
    m, hidden = setting.size(16, 2), setting.size(2048, 24)
    for batch in (2,) if setting.tiny else (1, 8, 64):
        document = m * hidden * setting.dtype.itemsize
        for backward in (False, True):
            reads = count * (2 if backward else 1) + 1 + 2 * k + (k + 1 if backward else 0)
            yield Case(
                operator="rank_and_select",
                name=f"B={batch}, " + ("forward and backward" if backward else "forward"),
                inputs=_inputs(setting, batch, count, k, m, hidden),
                ours=_prepare(_ours, k, backward),
                baselines={"two operators": _prepare(_composition, k, backward)},
                bytes=batch * reads * document,
                timing="graph",
            )


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`."""
    batch, count, k = setting.size(64, 3, 32), setting.size(20, 6, 20), setting.size(5, 3, 5)
    m, hidden = memory_tokens(rate), setting.hidden
    width = m * hidden
    compiled = setting.compiled(rank_and_select_loop)
    for backward in (False, True):
        # Forward all candidates are read, k again, and written; backward all twice, and k
        # gradients. Then the query, and its gradient.
        rows = 2 * count + k + 2 if backward else count + 2 * k + 1
        # Inner products: two of each candidate forward, k + 1 backward.
        products = k + 1 if backward else 2
        yield Case(
            operator="rank_and_select",
            name="backward to the query" if backward else "forward",
            inputs=_ranked_inputs(setting, batch, count, k, m, hidden),
            ours=_alone(_ours, k, backward),
            baselines={
                "eager": _alone(_loop, k, backward),
                "torch.compile": _alone(
                    lambda query, memory, k: compiled(query, memory, k, TEMPERATURE), k, backward
                ),
            },
            bytes=batch * rows * width * setting.dtype.itemsize,
            operations=2 * products * batch * count * width,
            tolerance=setting.tolerance,
        )


def _ranked_inputs(setting: Setting, batch: int, *sizes: int) -> Callable[[int], Any]:
    """Cosines 0.005 apart, so that no rounding orders candidates otherwise."""
    count, k, m, hidden = sizes

    def inputs(seed: int) -> Any:
        shapes = (batch, m, hidden), (batch, count, m, hidden), (batch, k, m, hidden)
        query, memory, grad = setting.randn(seed, *shapes)
        order = setting.randn(seed + 1, (batch, count), dtype=torch.float32).argsort(1)
        cosines = 0.6 + 0.005 * order[..., None]
        along = normalize(query.float().flatten(1), dim=1)[:, None]  # [B, 1, D]
        across = memory.float().flatten(2)
        across = normalize(across - (across * along).sum(-1, keepdim=True) * along, dim=-1)
        mixed = cosines * along + (1 - cosines.square()).sqrt() * across
        return query, (mixed * (m * hidden) ** 0.5).view_as(memory).to(memory.dtype), grad

    return inputs


def _inputs(setting: Setting, batch: int, *sizes: int) -> Callable[[int], Any]:
    count, k, m, hidden = sizes

    def inputs(seed: int) -> Any:
        query, memory, grad = setting.randn(
            seed, (batch, m, hidden), (batch, count, m, hidden), (batch, k, m, hidden)
        )
        return query, memory + query[:, None], grad

    return inputs


def _ours(query: Tensor, memory: Tensor, k: int) -> Any:
    return operator("rank_and_select")(query, memory, k, temperature=TEMPERATURE)


def _composition(query: Tensor, memory: Tensor, k: int) -> Any:
    scores = operator("cosine_scores")(query.flatten(1), memory.flatten(2))
    return operator("select_topk")(scores, memory, k, temperature=TEMPERATURE)


def _loop(query: Tensor, memory: Tensor, k: int) -> Any:
    return rank_and_select_loop(query, memory, k, TEMPERATURE)


def _alone(function: Callable[..., Any], k: int, backward: bool) -> Prepare:
    """One direction."""

    def prepare(inputs: Any) -> Run:
        query, memory, grad = inputs
        if backward:
            return Run(gradients(lambda query: function(query, memory, k)[0], (query,), grad))
        return Run(lambda: function(query, memory, k)[:2])

    return prepare


def _prepare(function: Callable[..., Any], k: int, backward: bool) -> Prepare:
    def prepare(inputs: Any) -> Run:
        query, memory, grad = inputs
        if not backward:
            return Run(lambda: function(query, memory, k)[:2])
        query = query.detach().requires_grad_()

        def call() -> tuple[Tensor, ...]:
            with torch.enable_grad():
                selected, indices = function(query, memory, k)[:2]
            return selected.detach(), indices, *torch.autograd.grad(selected, query, grad)

        return Run(call)

    return prepare
