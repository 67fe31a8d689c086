"""The public `select_topk` and its registration with the dispatcher."""

from __future__ import annotations

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
from ..dispatch import Arguments, declare, may_read, register_gradient
from ..ragged import accumulation_dtype
from . import reference
from .options import OPTIONS_SCHEMA, Options, checked_options, packed


def select_topk(
    scores: Tensor,
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
    """Select the memory of the k best candidates, differentiably (straight-through top-k).

    Forward: slot j gets the memory of the candidate with the j-th highest z = scores/temperature
    (+ noise), ties to the lowest index, bit for bit. Backward: with p_j the relaxation of z over
    the candidates that slots before j have not taken, G_j the gradient of slot j and
    a_jl = ⟨G_j, memory_l⟩, the scores get Σ_j Σ_l (∂p_jl/∂score_i) a_jl and the memory of
    candidate l gets G_j if slot j took it. Noise, order and temperature are constants of the
    backward pass. Source: arXiv 2511.18659, "straight-through top-k".

    Args:
        scores: `[B, N]`, any floating-point dtype, computed in float32 (float64 if an input is).
            A candidate at -inf is masked: never taken, probability 0, no gradient. NaN and +inf
            raise an error. Checked on the CPU only, because a check on a GPU would wait for it;
            there they make the row's choice, probabilities and gradient arbitrary.
        memory: `[B, N, ...]`, usually `[B, N, m, H]`; any floating-point dtype. Copied if the
            candidates are not contiguous.
        k: slots, at least 1. Slots beyond a row's candidates have index -1, zero memory and no
            gradient.
        temperature: above 0, a float or a 0-d tensor (a tensor is checked on the CPU only).
        relaxation: "softmax" or "sparsemax".
        mask: "exact" gives taken candidates probability 0. "reference" relaxes
            z + log(1 - taken + 1e-8) as the reference implementation does: a taken candidate that
            leads by much keeps most of the next slot. Only gradients and probabilities differ.
        noise: None, or "gumbel" to add noise that depends only on the seed, the row and the
            column within the row: the same on every device, for every dtype and batch layout.
        seed: for the noise, an int in [0, 2**64) or a 0-d int64 tensor; not read without noise.
        offsets: int32 `[B + 1]`, if rows have unequal numbers of candidates: scores are then
            `[ΣN]`, memory `[ΣN, ...]`. The values are checked on the CPU only; on a GPU, wrong
            ones give undefined results.
        return_probabilities: also return p.

    Returns:
        `selected` `[B, k, ...]` in the dtype of `memory`; `indices` int64 `[B, k]`, columns within
        the row; with `return_probabilities` also p, `[B, k, N]` or with offsets `[k, ΣN]`, float32
        (float64 if an input is), zero for candidates that a slot leaves out, differentiable in the
        scores. All are differentiable once.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: shapes, offsets or devices do not match, or a value is out of range.

    Examples:
        >>> import torch
        >>> from clara_kernels import select_topk
        >>> scores = torch.tensor([[0.1, 0.9, 0.5]], requires_grad=True)
        >>> memory = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> selected, indices = select_topk(scores, memory, 2, temperature=0.5)
        >>> indices
        tensor([[1, 2]])
        >>> selected.flatten().tolist()
        [2.0, 3.0]
        >>> selected.sum().backward()  # reaches the scores, though they only chose
        >>> bool(scores.grad.any())
        True
    """
    refuse_transforms("select_topk", scores, memory)
    require_floating("scores", scores)
    require_floating("memory", memory)
    require_same_device("memory", memory, "scores", scores)
    if offsets is None:
        require_shape("scores", scores, "[B, N] (or [ΣN] with offsets)", scores.dim() == 2)
        rows, columns = scores.shape
        matches = memory.dim() >= 3 and memory.shape[:2] == scores.shape
        require_shape("memory", memory, "[{}, {}, ...]", matches, rows, columns)
    else:
        require_shape("scores", scores, "[ΣN] with offsets", scores.dim() == 1)
        matches = memory.dim() >= 2 and memory.shape[:1] == scores.shape
        require_shape("memory", memory, "[{}, ...]", matches, scores.shape[0])
        require_offsets("offsets", offsets, scores.shape[0], "scores")
        require_same_device("offsets", offsets, "scores", scores)
    dtype = accumulation_dtype(scores, memory)
    k = as_int("k", k, 1)
    options = checked_options(temperature, relaxation, mask, noise, seed, scores, dtype)
    if may_read(scores) and not bool((scores < torch.inf).all()):
        raise ValueError("scores must be finite or -inf, got NaN or +inf")

    scores = scores.to(dtype)
    trailing = memory.shape[scores.dim() :]
    memory = memory.reshape(scores.numel(), trailing.numel())
    selected, indices = torch.ops.clara.select_topk(scores, memory, offsets, k, *options)
    selected = selected.unflatten(2, trailing)
    if not return_probabilities:
        return selected, indices
    return selected, indices, slot_probabilities(scores, indices, offsets, options)


def slot_probabilities(
    scores: Tensor, indices: Tensor, offsets: Tensor | None, options: Options
) -> Tensor:
    """p, `[B, k, N]` or with offsets `[k, ΣN]`."""
    p = torch.ops.clara.slot_probabilities(scores, indices, offsets, *options)
    return p if offsets is not None else p.unflatten(1, scores.shape).transpose(0, 1)


def _fake(
    scores: Tensor, memory: Tensor, offsets: Tensor | None, k: int, *_: Any
) -> tuple[Tensor, Tensor]:
    questions = scores.shape[0] if offsets is None else offsets.shape[0] - 1
    return (
        memory.new_empty(questions, k, memory.shape[1]),
        scores.new_empty(questions, k, dtype=torch.int64),
    )


def _fake_backward(
    grad: Tensor, scores: Tensor, memory: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_scores, need_memory = rest[-2:]
    return (
        scores.new_empty(scores.shape if need_scores else 0),
        memory.new_empty(memory.shape if need_memory else 0),
    )


def _fake_probabilities(scores: Tensor, indices: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(indices.shape[1], scores.numel())


def _fake_probabilities_backward(grad: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(scores.shape)


declare(
    "select_topk",
    f"(Tensor scores, Tensor memory, Tensor? offsets, SymInt k, {OPTIONS_SCHEMA}) "
    "-> (Tensor selected, Tensor indices)",
    fake=_fake,
    reference=reference.forward,
    triton="select_topk.triton:forward",
    pack=packed(4),
)
declare(
    "select_topk_backward",
    "(Tensor grad, Tensor scores, Tensor memory, Tensor indices, Tensor? offsets, "
    f"{OPTIONS_SCHEMA}, bool need_scores, bool need_memory) "
    "-> (Tensor grad_scores, Tensor grad_memory)",
    fake=_fake_backward,
    reference=reference.backward,
    triton="select_topk.triton:backward",
    pack=packed(5),
)
declare(
    "slot_probabilities",
    f"(Tensor scores, Tensor indices, Tensor? offsets, {OPTIONS_SCHEMA}) -> Tensor",
    fake=_fake_probabilities,
    reference=reference.probabilities,
    triton="select_topk.triton:probabilities",
    pack=packed(3),
)
declare(
    "slot_probabilities_backward",
    f"(Tensor grad, Tensor scores, Tensor indices, Tensor? offsets, {OPTIONS_SCHEMA}) -> Tensor",
    fake=_fake_probabilities_backward,
    reference=reference.probabilities_backward,
    triton="select_topk.triton:probabilities_backward",
    pack=packed(4),
)


def _for_backward(given: Arguments, output: Arguments) -> Arguments:
    scores, memory, offsets, _, *options = given
    return scores, memory, output[1], offsets, *options


register_gradient("select_topk", _for_backward, gradients=2, asks=True)
register_gradient("slot_probabilities", lambda given, _: given)
