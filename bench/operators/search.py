"""What cases of exact search share: inputs, ours, and PyTorch's product and topk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.baselines.search import FaissSearch, faiss, torch_codes_topk, torch_int8_topk, torch_topk
from clara_kernels.cosine_topk import reference

from .case import Case, Prepare, Run, Setting, Target, Unavailable, operator

K = 10
WORKSPACE_BYTES = 64 << 20
WORKSPACE = Target("workspace of at most 64 MiB", "extra memory", at_most=1.0)
BASELINE = "matmul and topk"

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
# Theirs is checked by cosines of the rows that it found, by scores rounded to its dtype; for int8
# by queries of 8 bits, too.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3, torch.int8: 2e-2}

Search = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Inputs:
    """Queries `[B, D]`, in the rows' dtype or float32 for int8, and rows `[N, D]`."""

    queries: Tensor
    rows: Tensor

    @cached_property
    def unit_rows(self) -> Tensor:
        return normalize(self.rows, dim=1)

    def cosines(self, found: Tensor) -> Tensor:
        """The cosines of each query and the rows `[B, k]`, in float32."""
        rows = normalize(self.rows[found].float(), dim=-1)
        return torch.einsum("bd,bkd->bk", normalize(self.queries.float(), dim=1), rows)


def search_case(
    setting: Setting,
    module: str,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    targets: tuple[Target, ...],
) -> Case:
    """A search by B queries in N rows of D columns."""
    batch, count, width = sizes
    item = dtype.itemsize
    query_item = 4 if dtype == torch.int8 else item
    # Integer products on a GPU take more than 16 queries.
    has_baseline = dtype != torch.int8 or batch > 16
    return Case(
        operator=module,
        name=f"{str(dtype).removeprefix('torch.')}, B={batch}, N={count}, D={width}",
        inputs=lambda seed: _inputs(setting, seed, sizes, dtype),
        ours=_ours,
        baselines={BASELINE: _int8_baseline if dtype == torch.int8 else _baseline(torch_topk)}
        if has_baseline
        else {},
        bytes=count * (width * item + 4) + batch * (width * query_item + K * 12),
        flops=2 * batch * count * width,
        timing="graph",
        tolerance=TOLERANCES[dtype],
        targets=(*targets, WORKSPACE),
        candidate_bytes=WORKSPACE_BYTES,
    )


def rate_case(setting: Setting, sizes: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """A search of `pytest bench/`: beside PyTorch, eager and compiled, and FAISS."""
    whole, codes = search_case(setting, "cosine_topk", sizes, dtype, ()), dtype == torch.int8
    search = torch_codes_topk if codes else torch_topk
    prepare = _codes_baseline if codes else _baseline
    baselines: dict[str, Prepare] = {
        "eager": prepare(search),
        "torch.compile": prepare(setting.compiled(search)),
    }
    if not codes:  # FAISS' codes are others, of a quantizer that it trains
        baselines["FAISS"] = _faiss
    return replace(
        whole,
        name="int8 rows" if codes else "unquantized rows",
        baselines=baselines,
        reference=_reference,
        tolerance=1e-4 if codes else whole.tolerance,
        candidate_bytes=0,
        targets=(),
        timing="events",
    )


def _inputs(setting: Setting, seed: int, sizes: tuple[int, int, int], dtype: torch.dtype) -> Inputs:
    batch, count, width = sizes
    if dtype != torch.int8:
        return Inputs(*setting.randn(seed, (batch, width), (count, width), dtype=dtype))
    generator = torch.Generator(setting.device).manual_seed(seed)
    options = {"dtype": dtype, "device": setting.device, "generator": generator}
    codes = torch.randint(-127, 128, (count, width), **options)
    return Inputs(setting.randn(seed, (batch, width), dtype=torch.float32), codes)


def _ours(inputs: Inputs) -> Run:
    if inputs.rows.is_cuda and operator("build_info")()["cuda"] is None:
        raise Unavailable("clara_kernels was built without CUDA")
    search, corpus = operator("cosine_topk"), operator("Corpus")(inputs.rows)
    return Run(
        lambda: search(inputs.queries, corpus, K),
        result=lambda found: (found[0], inputs.cosines(found[1])),
    )


def _baseline(search: Callable[..., tuple[Tensor, Tensor]]) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        queries = normalize(inputs.queries, dim=1)
        return _checked(inputs, lambda: search(queries, inputs.unit_rows, K))

    return prepare


def _codes_baseline(search: Callable[..., tuple[Tensor, Tensor]]) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        queries = normalize(inputs.queries, dim=1)
        inverse_norms = operator("Corpus")(inputs.rows).inverse_norms
        return _checked(inputs, lambda: search(queries, inputs.rows, inverse_norms, K))

    return prepare


def _faiss(inputs: Inputs) -> Run:
    if inputs.rows.is_cuda:
        raise Unavailable("FAISS is compared with on the CPU")
    if faiss(torch.get_num_threads()) is None:
        raise Unavailable("FAISS is not installed")
    index, queries = FaissSearch(inputs.unit_rows), normalize(inputs.queries, dim=1)
    return _checked(inputs, lambda: index(queries, K))


def _reference(inputs: Inputs) -> Run:
    return Run(
        lambda: reference.cosine_topk(inputs.queries, inputs.rows, None, None, K),
        result=lambda found: (found[0], inputs.cosines(found[1])),
    )


def _int8_baseline(inputs: Inputs) -> Run:
    """By queries of 8 bits: less exact, and less to compute."""
    queries = operator("quantize_memory")(inputs.queries)[0]
    inverse_norms = operator("Corpus")(inputs.rows).inverse_norms
    return _checked(inputs, lambda: torch_int8_topk(queries, inputs.rows, inverse_norms, K))


def _checked(inputs: Inputs, search: Search) -> Run:
    def cosines(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        exact = inputs.cosines(found[1]).sort(dim=1, descending=True).values
        return exact, exact

    return Run(search, result=cosines)
