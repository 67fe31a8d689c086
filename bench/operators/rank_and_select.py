"""Ranking and selection in one, against the two operators one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .case import Case, Prepare, Run, Setting, operator

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
