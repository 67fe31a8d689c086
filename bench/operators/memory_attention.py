"""Packed causal attention of documents followed by their memory tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bench.baselines.attention import (
    FlexAttention,
    flash_attention,
    masked_attention,
    pad,
    padded_attention,
    unpad,
    varlen_attention,
    written_out_attention,
)
from bench.lengths import LONGEST, document_lengths

from .case import (
    Case,
    Prepare,
    Run,
    Setting,
    Target,
    Unavailable,
    gradients,
    memory_tokens,
    operator,
)

RATES = (4, 16, 128)
FULL_FORWARD = Target("full rows, forward: as fast as varlen_attn", "ratio", "varlen", 1.0)
FULL_BACKWARD = Target("full rows, backward: 0.9 of varlen_attn", "ratio", "varlen", 0.9)
PADDED = Target("full rows, paper's lengths: 1.5 times padded sdpa", "ratio", "padded sdpa", 1.5)
MEMORY_ONLY = Target("memory only, m <= 16: 2 times varlen_attn", "ratio", "varlen", 2.0)


@dataclass(frozen=True)
class Shape:
    """Documents of `tokens` tokens each, followed by `memory` rows each."""

    tokens: tuple[int, ...]
    memory: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def lengths(self) -> list[int]:
        return [tokens + self.memory for tokens in self.tokens]


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    offsets: Tensor


def cases(setting: Setting) -> Iterator[Case]:
    rows = setting.size(32768, 150)
    heads = setting.size(32, 4), setting.size(8, 2)
    paper = tuple(document_lengths(setting.size(256, 4)))
    for head_dim in (32,) if setting.tiny else (128, 64):
        for rate in RATES:
            shape = Shape(paper, LONGEST // rate, *heads, head_dim)
            yield _case(setting, shape, f"paper's lengths, {rate}x", PADDED)
            yield _case(setting, shape, f"paper's lengths, {rate}x", None, backward=True)
        for memory in (4,) if setting.tiny else (2, 4, 16):
            for name, tokens in (("paper's", paper), *_documents(setting, rows)):
                shape = Shape(tokens, memory, *heads, head_dim)
                at = f"{name} lengths, m={memory}"
                yield _case(setting, shape, at, MEMORY_ONLY, memory_only=True)
        for name, tokens in _documents(setting, rows):
            for rate in RATES:
                shape = Shape(tokens, max(1, max(tokens) // rate), *heads, head_dim)
                at = f"{name} tokens, {rate}x"
                yield _case(setting, shape, at, FULL_FORWARD)
                yield _case(setting, shape, at, FULL_BACKWARD, backward=True)


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`, of the paper's lengths."""
    tokens = tuple(document_lengths(setting.size(128, 3, 16)))
    heads = setting.size(32, 4, 9), setting.size(8, 2, 3)
    shape = Shape(tokens, memory_tokens(rate), *heads, setting.size(128, 32, 64))
    compiled = setting.compiled(written_out_attention)
    # For all shapes at once PyTorch 2.13 makes C++ of it that does not compile.
    flex = setting.compiled(flex_attention, dynamic=False)
    for memory_only in (False, True):
        for backward in (False, True):
            what = (shape, memory_only, backward)
            direction = "backward" if backward else "forward"
            whole = _case(setting, shape, "", None, backward=backward, memory_only=memory_only)
            yield replace(
                whole,
                name=f"memory rows, {direction}" if memory_only else direction,
                baselines={
                    "eager": _gridded(written_out_attention, *what),
                    "torch.compile": _gridded(compiled, *what),
                    "padded sdpa": _gridded(masked_attention, *what)
                    if memory_only
                    else _padded(shape, backward),
                    "FlexAttention": _flex(flex, *what),
                    "varlen_attn": _varlen(*what),
                    "flash-attn": _flash(*what),
                },
                tolerance=setting.tolerance,
                details={},
            )


def _documents(setting: Setting, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Documents of equal lengths, and of all lengths between, of about `rows` tokens in all."""
    lengths = (10, 30) if setting.tiny else (64, 512, 2048)
    for length in lengths:
        yield str(length), (length,) * (rows // length)
    low, high = lengths[0], lengths[-1]
    mixed = [random.Random(i).randint(low, high) for i in range(rows * 2 // (low + high))]
    yield f"{low} to {high}", tuple(mixed)


def _case(
    setting: Setting,
    shape: Shape,
    name: str,
    target: Target | None,
    *,
    backward: bool = False,
    memory_only: bool = False,
) -> Case:
    query_rows = shape.memory * len(shape.tokens) if memory_only else sum(shape.lengths)
    q_shape = (query_rows, shape.heads, shape.head_dim)
    kv_shape = (sum(shape.lengths), shape.kv_heads, shape.head_dim)
    offsets = torch.tensor([0, *accumulate(shape.lengths)], dtype=torch.int32)
    device_offsets = offsets.to(setting.device)

    def inputs(seed: int) -> Inputs:
        q, k, v, grad = setting.randn(seed, q_shape, kv_shape, kv_shape, q_shape)
        return Inputs(q, k, v, grad, device_offsets)

    if memory_only:  # a row sees its document's tokens and the memory rows up to itself
        pairs = sum(
            shape.memory * n - shape.memory * (shape.memory - 1) // 2 for n in shape.lengths
        )
    else:
        pairs = sum(n * (n + 1) // 2 for n in shape.lengths)
    forward_flops = 4 * shape.head_dim * shape.heads * pairs
    moved = 2 * query_rows * shape.heads + 2 * kv_shape[0] * shape.kv_heads  # q, out, k, v
    if backward:  # and gradients of all of them
        moved *= 2
    baselines: dict[str, Prepare] = {"varlen": _varlen(shape, memory_only, backward)}
    if not memory_only and "paper" in name:
        baselines["padded sdpa"] = _padded(shape, backward)
    what = "memory only" if memory_only else "backward" if backward else "forward"
    return Case(
        operator="memory_attention",
        name=f"head_dim {shape.head_dim}, {name}, {what}",
        inputs=inputs,
        ours=_ours(shape, memory_only, backward),
        baselines=baselines,
        bytes=moved * shape.head_dim * setting.dtype.itemsize,
        flops=forward_flops * 5 // 2 if backward else forward_flops,
        targets=(target,) if target else (),
        details={"documents": len(shape.tokens), "memory": shape.memory},
    )


def _run(forward, arguments: tuple[Tensor, ...], grad: Tensor, backward: bool) -> Run:
    if backward:
        return Run(gradients(forward, arguments, grad))
    return Run(lambda: forward(*arguments))


def _ours(shape: Shape, memory_only: bool, backward: bool) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        attention = operator("memory_attention")

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, inputs.offsets, shape.memory, memory_only=memory_only)

        return _run(forward, (inputs.q, inputs.k, inputs.v), inputs.grad, backward)

    return prepare


def _varlen(shape: Shape, memory_only: bool, backward: bool) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        if inputs.q.device.type != "cuda":
            raise Unavailable("varlen_attn needs a GPU")
        attention = varlen_attention()
        bounds = _bounds(inputs.offsets, shape, memory_only)
        # Repeated heads, where they have to be, are not timed.
        k, v = (attention.keys(each, shape.heads) for each in (inputs.k, inputs.v))

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, *bounds)

        run = _run(forward, (inputs.q, k, v), inputs.grad, backward)
        return replace(run, result=lambda found: _grouped(found, shape))

    return prepare


def _bounds(offsets: Tensor, shape: Shape, memory_only: bool) -> tuple[Tensor, Tensor, int, int]:
    """Offsets of queries and keys, and the longest of each."""
    longest = max(shape.lengths)
    if not memory_only:
        return offsets, offsets, longest, longest
    steps = torch.arange(len(shape.tokens) + 1, device=offsets.device) * shape.memory
    return steps.int(), offsets, shape.memory, longest


def _flash(shape: Shape, memory_only: bool, backward: bool) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        if inputs.q.device.type != "cuda":
            raise Unavailable("flash-attn needs a GPU")
        bounds = _bounds(inputs.offsets, shape, memory_only)
        arguments = (inputs.q, inputs.k, inputs.v)
        return _run(lambda *x: flash_attention(*x, *bounds), arguments, inputs.grad, backward)

    return prepare


def _flex(
    compiled: Callable[..., Tensor], shape: Shape, memory_only: bool, backward: bool
) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        if inputs.q.device.type != "cuda" and backward:
            raise Unavailable("FlexAttention has no backward pass on CPU")
        if inputs.q.device.type != "cuda" and memory_only:
            raise Unavailable("on CPU FlexAttention is compiled for all rows only")
        k_rows = torch.tensor(
            [(i, row) for i, length in enumerate(shape.lengths) for row in range(length)],
            device=inputs.q.device,
        ).T.contiguous()
        q_rows = k_rows
        if memory_only:
            lengths = torch.tensor(shape.lengths, device=k_rows.device)
            q_rows = k_rows[:, k_rows[1] >= (lengths - shape.memory)[k_rows[0]]].contiguous()
        attention = FlexAttention(q_rows, k_rows, compiled)
        return _run(attention, (inputs.q, inputs.k, inputs.v), inputs.grad, backward)

    return prepare


def _gridded(
    attention: Callable[..., Tensor], shape: Shape, memory_only: bool, backward: bool
) -> Prepare:
    """Attention of grids with a mask, padded to the longest document; padding is not timed."""

    def prepare(inputs: Inputs) -> Run:
        longest = max(shape.lengths)
        q_lengths = [shape.memory] * len(shape.tokens) if memory_only else shape.lengths
        q, grad = (pad(each, q_lengths, max(q_lengths)) for each in (inputs.q, inputs.grad))
        k, v = (pad(each, shape.lengths, longest) for each in (inputs.k, inputs.v))
        rows, keys = (torch.arange(each.shape[2], device=q.device) for each in (q, k))
        shift = torch.tensor(shape.lengths) - torch.tensor(q_lengths)
        # Rows of padding see what is before them, too.
        seen = (keys <= shift.to(q.device)[:, None, None] + rows[:, None])[:, None]

        def result(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            first, *others = found if isinstance(found, tuple) else (found,)
            return unpad(first, q_lengths), *(unpad(each, shape.lengths) for each in others)

        run = _run(lambda *x: attention(*x, seen), (q, k, v), grad, backward)
        return replace(run, result=result)

    return prepare


def _grouped(found: Tensor | tuple[Tensor, ...], shape: Shape) -> tuple[Tensor, ...]:
    """Gradients of repeated key heads summed to those of the heads."""
    if isinstance(found, Tensor):
        return (found,)
    dq, *rest = found
    groups = (shape.kv_heads, -1)
    return dq, *(
        each if each.shape[1] == shape.kv_heads else each.unflatten(1, groups).float().sum(2)
        for each in rest
    )


def _padded(shape: Shape, backward: bool) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        # To the limit of tokens, as the reference pads; padding itself is not timed.
        longest = LONGEST + shape.memory
        q, k, v, grad = (
            pad(each, shape.lengths, longest)
            for each in (inputs.q, inputs.k, inputs.v, inputs.grad)
        )

        def result(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            tensors = found if isinstance(found, tuple) else (found,)
            return tuple(unpad(each, shape.lengths) for each in tensors)

        return replace(_run(padded_attention, (q, k, v), grad, backward), result=result)

    return prepare
