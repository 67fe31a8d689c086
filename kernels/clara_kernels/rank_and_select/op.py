"""The public `rank_and_select` and its registration with the dispatcher."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    as_int,
    refuse_transforms,
    require_floating,
    require_offsets,
    require_same_device,
    require_shape,
)
from ..cosine_scores import cpu as cosine_cpu
from ..cosine_scores import reference as cosine_reference
from ..dispatch import Arguments, declare, may_read, register_gradient
from ..ragged import accumulation_dtype
from ..select_topk import reference as selection
from ..select_topk.op import slot_probabilities
from ..select_topk.options import OPTIONS_SCHEMA, checked_options, packed
from . import composition


def rank_and_select(
    query_memory: Tensor,
    memory: Tensor,
    k: int,
    *,
    temperature: float | Tensor,
    relaxation: str = "softmax",
    mask: str = "exact",
    noise: str | None = None,
    seed: int | Tensor | None = None,
    offsets: Tensor | None = None,
    return_probabilities: bool = False,
) -> tuple[Tensor, ...]:
    """Rank each question's candidates by cosine similarity and select the k best, differentiably.

    One operator computes `cosine_scores` of the flattened memories, then `select_topk` with those
    scores; see these two for formulas and gradients. The gradient of `selected` reaches the
    question through the scores, and a selected candidate also directly.

    Args:
        query_memory: `[B, ...]`, usually `[B, m, H]`; any floating-point dtype.
        memory: the candidates, `[B, N, ...]`, or `[ΣN, ...]` with `offsets`, each as large as a
            query; any floating-point dtype. Copied if candidates are not contiguous.
        k: slots, at least 1. Slots beyond a question's candidates have index -1, zero memory and
            no gradient.
        temperature, relaxation, mask, noise, seed: as `select_topk` takes them.
        offsets: int32 `[B + 1]`, if questions have unequal numbers of candidates. The values are
            checked on the CPU only; on a GPU, wrong ones give undefined results.
        return_probabilities: also return p.

    Returns:
        `selected` `[B, k, ...]` in the dtype of `memory`; `indices` int64 `[B, k]`, columns within
        the question; `scores` `[B, N]` or `[ΣN]`, float32 (float64 if an input is); with
        `return_probabilities` also p, `[B, k, N]` or with offsets `[k, ΣN]`. All but the indices
        are differentiable once.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: shapes, offsets or devices do not match, a value is out of range, or, on the
            CPU, a score is NaN.

    Examples:
        >>> import torch
        >>> from clara_kernels import rank_and_select
        >>> query = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> memory = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]])
        >>> selected, indices, scores = rank_and_select(query, memory, 2, temperature=0.1)
        >>> indices
        tensor([[1, 2]])
        >>> selected[0].tolist()
        [[2.0, 0.0], [1.0, 1.0]]
        >>> selected.sum().backward()
        >>> query.grad.shape
        torch.Size([1, 2])
    """
    refuse_transforms("rank_and_select", query_memory, memory)
    require_floating("query_memory", query_memory)
    require_floating("memory", memory)
    matches = query_memory.dim() >= 2
    require_shape("query_memory", query_memory, "[B, ...]", matches)
    require_same_device("memory", memory, "query_memory", query_memory)
    questions, trailing = query_memory.shape[0], query_memory.shape[1:]
    if offsets is None:
        layout = "[{}, N, ...] (or [ΣN, ...] with offsets) with ... = {}"
        matches = memory.dim() == query_memory.dim() + 1 and memory.shape[0] == questions
        matches = matches and memory.shape[2:] == trailing
        require_shape("memory", memory, layout, matches, questions, list(trailing))
        memory = memory.reshape(questions, memory.shape[1], trailing.numel())
    else:
        matches = memory.dim() == query_memory.dim() and memory.shape[1:] == trailing
        require_shape("memory", memory, "[ΣN, ...] with ... = {}", matches, list(trailing))
        require_offsets("offsets", offsets, memory.shape[0], "memory")
        matches = offsets.shape[0] == questions + 1
        require_shape("offsets", offsets, "[{}]", matches, questions + 1)
        require_same_device("offsets", offsets, "query_memory", query_memory)
        memory = memory.reshape(memory.shape[0], trailing.numel())
    query = query_memory.reshape(questions, trailing.numel())
    dtype = accumulation_dtype(query, memory)
    k = as_int("k", k, 1)
    options = checked_options(temperature, relaxation, mask, noise, seed, query, dtype)
    selected, indices, scores, _, _ = torch.ops.clara.rank_and_select(
        query, memory, offsets, k, *options
    )
    if may_read(scores) and not bool((scores < torch.inf).all()):
        raise ValueError("query_memory and memory must be finite, got scores that are NaN")
    selected = selected.unflatten(2, trailing)
    if not return_probabilities:
        return selected, indices, scores
    return selected, indices, scores, slot_probabilities(scores, indices, offsets, options)


def _fake(
    query: Tensor, memory: Tensor, offsets: Tensor | None, k: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    questions, dtype = query.shape[0], accumulation_dtype(query, memory)
    return (
        memory.new_empty(questions, k, memory.shape[-1]),
        query.new_empty(questions, k, dtype=torch.int64),
        memory.new_empty(memory.shape[:-1], dtype=dtype),
        query.new_empty(questions, dtype=dtype),
        memory.new_empty(memory.shape[:-1], dtype=dtype),
    )


def _fake_backward(
    grad: Tensor | None, grad_scores: Tensor | None, query: Tensor, memory: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_query, need_memory = rest[-2:]
    return (
        query.new_empty(query.shape if need_query else 0),
        memory.new_empty(memory.shape if need_memory else 0),
    )


declare(
    "rank_and_select",
    f"(Tensor query, Tensor memory, Tensor? offsets, SymInt k, {OPTIONS_SCHEMA}) -> (Tensor "
    "selected, Tensor indices, Tensor scores, Tensor query_inverse, Tensor document_inverse)",
    fake=_fake,
    reference=partial(composition.forward, cosine_reference, selection),
    cpu=partial(composition.forward, cosine_cpu, selection),
    triton="rank_and_select.triton:forward",
    pack=packed(4),
)
declare(
    "rank_and_select_backward",
    "(Tensor? grad, Tensor? grad_scores, Tensor query, Tensor memory, Tensor indices, "
    "Tensor scores, Tensor query_inverse, Tensor document_inverse, Tensor? offsets, "
    f"{OPTIONS_SCHEMA}, bool need_query, bool need_memory) "
    "-> (Tensor grad_query, Tensor grad_memory)",
    fake=_fake_backward,
    reference=partial(composition.backward, cosine_reference, selection),
    cpu=partial(composition.backward, cosine_cpu, selection),
    triton="rank_and_select.triton:backward",
    pack=packed(9),
)


def _for_backward(given: Arguments, output: Arguments) -> Arguments:
    query, memory, offsets, _, *options = given
    return query, memory, *output[1:], offsets, *options


register_gradient("rank_and_select", _for_backward, gradients=2, outputs=(0, 2), asks=True)
