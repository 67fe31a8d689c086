"""Distance between the mean document state and the mean memory state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from bench.baselines.alignment import masked_mean_loss
from bench.lengths import LONGEST, document_lengths

from .case import Case, Prepare, Run, Setting, Target, gradients, memory_tokens, operator

MEMORY = 16
BANDWIDTH = Target("80% of copy bandwidth", "bandwidth", at_least=0.8)
MASKED = Target("3 times masked means, without padding", "ratio", "masked means", 3.0)


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]


def cases(setting: Setting) -> Iterator[Case]:
    width = setting.size(4096, 24)
    count = setting.size(512, 5)
    paper = tuple(length + MEMORY for length in document_lengths(count))
    equal = (96 + MEMORY,) * count
    for name, lengths in (("equal lengths", equal), ("paper's lengths", paper)):
        for backward in (False, True):
            moved = sum(lengths) * width * setting.dtype.itemsize
            targets = (BANDWIDTH, MASKED) if name == "equal lengths" else (BANDWIDTH,)
            # Equal lengths leave no padding, as suits masked means best.
            longest = lengths[0] if name == "equal lengths" else LONGEST + MEMORY
            yield Case(
                operator="memory_alignment_loss",
                name=f"{name}, " + ("backward" if backward else "forward"),
                inputs=lambda seed, lengths=lengths: _inputs(setting, seed, lengths, width),
                ours=_ours(backward, MEMORY),
                baselines={"masked means": _masked(longest, backward, MEMORY)},
                bytes=moved,  # read forward, written backward
                timing="graph",
                targets=targets,
            )


def at_rate(setting: Setting, rate: int) -> Iterator[Case]:
    """The cases of `pytest bench/`, of the paper's lengths."""
    count, memory = setting.size(512, 5, 64), memory_tokens(rate)
    width = setting.hidden
    lengths = tuple(length + memory for length in document_lengths(count))
    rows = sum(lengths)
    for backward in (False, True):
        ways = {"eager": masked_mean_loss, "torch.compile": setting.compiled(masked_mean_loss)}
        yield Case(
            operator="memory_alignment_loss",
            name="backward" if backward else "forward",
            inputs=lambda seed: _inputs(setting, seed, lengths, width),
            ours=_ours(backward, memory),
            baselines={
                name: _masked(max(lengths), backward, memory, loss) for name, loss in ways.items()
            },
            bytes=rows * width * setting.dtype.itemsize,  # read forward, written backward
            # A sum over rows forward, their weights times the difference backward.
            operations=(rows + 5 * count) * width if not backward else (rows + count) * width,
            tolerance=setting.tolerance,
        )


def _inputs(setting: Setting, seed: int, lengths: tuple[int, ...], width: int) -> Inputs:
    hidden = setting.randn(seed, (sum(lengths), width))
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=setting.device)
    return Inputs(hidden, offsets, lengths)


def _run(loss, hidden: Tensor, backward: bool) -> Run:
    if not backward:
        return Run(lambda: loss(hidden))
    return Run(gradients(loss, (hidden,), torch.ones((), device=hidden.device)))


def _ours(backward: bool, memory: int) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        function = operator("memory_alignment_loss")
        return _run(
            lambda hidden: function(hidden, inputs.offsets, memory), inputs.hidden, backward
        )

    return prepare


def _masked(
    longest: int,
    backward: bool,
    memory: int,
    loss: Callable[..., Tensor] = masked_mean_loss,
) -> Prepare:
    def prepare(inputs: Inputs) -> Run:
        hidden, device = inputs.hidden, inputs.hidden.device
        ends = torch.tensor(inputs.lengths, device=device)[:, None]
        position = torch.arange(longest, device=device)
        present, is_token = position < ends, position < ends - memory
        padded = hidden.new_zeros(*present.shape, hidden.shape[1])
        padded[present] = hidden
        masks = [mask.to(hidden.dtype) for mask in (is_token, present & ~is_token)]

        run = _run(lambda hidden: loss(hidden, *masks), padded, backward)
        if not backward:
            return run
        return replace(run, result=lambda found: (found[0][present],))

    return prepare
