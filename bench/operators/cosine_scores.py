"""Cosines of queries with their own candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.baselines.cosine import empty_scores, normalise_and_bmm

from .case import Case, Prepare, Run, Setting, Target, gradients, memory_tokens, operator

BANDWIDTH = Target("B >= 64: 85% of copy bandwidth", "bandwidth", at_least=0.85)
BMM = Target("B >= 64: 4 times normalise and bmm", "ratio", "normalise and bmm", 4.0)
CALL = Target(
    "B <= 8: an empty kernel and 1.5 times bytes/bandwidth", "beyond", "empty kernel", at_most=1.5
)


def cases(setting: Setting) -> Iterator[Case]:
    candidates, width = setting.size(20, 3), setting.size(32768, 160)
    for batch in (1, 3) if setting.tiny else (1, 2, 4, 8, 64, 256):
        documents = batch * candidates * width * setting.dtype.itemsize
        queries = batch * width * setting.dtype.itemsize
        for timing in ("latency", "graph") if batch <= 8 else ("graph",):
            baselines: dict[str, Prepare] = {"normalise and bmm": _prepare(normalise_and_bmm)}
            targets: tuple[Target, ...] = (BANDWIDTH, BMM) if batch >= 64 else ()
            if timing == "latency":
                baselines["empty kernel"] = _empty
                targets = (CALL,)
            yield Case(
                operator="cosine_scores",
                name=f"B={batch}, forward" + (", one call" if timing == "latency" else ""),
                inputs=_inputs(setting, batch, candidates, width),
                ours=_prepare(_ours),
                baselines=baselines,
                bytes=documents + queries + batch * candidates * 4,
                timing=timing,
                targets=targets,
            )
        yield Case(
            operator="cosine_scores",
            name=f"B={batch}, backward to the queries",
            inputs=_inputs(setting, batch, candidates, width),
            ours=_backward(_ours),
            baselines={"normalise and bmm": _backward(normalise_and_bmm)},
            bytes=documents + 2 * queries + batch * candidates * 8,
            timing="graph",
            tolerance=5e-2,  # bfloat16 throughout, on their side
        )


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`."""
    batch, candidates = setting.size(64, 3, 32), setting.size(20, 6, 20)
    width = memory_tokens(rate) * setting.hidden
    documents, queries = batch * candidates * width, batch * width
    for backward in (False, True):
        prepare = _backward if backward else _prepare
        # Backward documents are read, queries read and their gradients written.
        values = documents + queries * (2 if backward else 1)
        yield Case(
            operator="cosine_scores",
            name="backward to the queries" if backward else "forward",
            inputs=_inputs(setting, batch, candidates, width),
            ours=prepare(_ours),
            baselines={
                "eager": prepare(normalise_and_bmm),
                "torch.compile": prepare(setting.compiled(normalise_and_bmm)),
            },
            bytes=values * setting.dtype.itemsize + batch * candidates * (8 if backward else 4),
            # Two inner products forward; backward a weighted sum, along the query taken away.
            operations=2 * documents + 4 * queries if backward else 4 * documents + 2 * queries,
            tolerance=setting.tolerance if setting.dtype == torch.float32 else 5e-2,
        )


def _inputs(setting: Setting, batch: int, candidates: int, width: int) -> Callable[[int], Any]:
    def inputs(seed: int) -> Any:
        queries, documents = setting.randn(seed, (batch, width), (batch, candidates, width))
        return queries, documents + queries[:, None]  # cosines about 0.7

    return inputs


def _ours(queries: Any, documents: Any) -> Any:
    return operator("cosine_scores")(queries, documents)


def _prepare(function: Callable[..., Any]) -> Prepare:
    return lambda inputs: Run(lambda: function(*inputs))


def _backward(function: Callable[..., Any]) -> Prepare:
    def prepare(inputs: Any) -> Run:
        queries, documents = inputs
        scores = function(queries, documents)
        grad = (scores.detach() * 10).sin().to(scores.dtype)
        return Run(gradients(lambda query: function(query, documents), (queries,), grad))

    return prepare


def _empty(inputs: Any) -> Run:
    return Run(lambda: empty_scores(*inputs), result=lambda scores: None)
