"""Let the questions of one document share its memory and the beginning of their prompts.

Prompts that ask several questions about the same document begin alike: with the template's words,
the memory, and often the first words of the question. Only the first prompt is packed whole. Each
other one is a *branch*: it is packed from where it differs, its positions go on from there, and its
rows attend to the shared beginning and to themselves. What is computed is what each prompt would
give alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from clara.text.packing import Branch, PackedPrompts
from clara.text.prompts import Prompt
from clara.text.tokenizer import Marker

P = TypeVar("P", bound=Prompt)


def common_rows(prompts: Sequence[Prompt]) -> int:
    """How many tokens prompts have in common before the row that their first answer is read from.

    Each prompt keeps the row before its answer: the answer's first token is predicted there.
    """
    columns = enumerate(zip(*(prompt.ids for prompt in prompts)))  # as long as the shortest
    alike = next((row for row, tokens in columns if len(set(tokens)) > 1), len(prompts[0].ids))
    return min(alike, *(prompt.answer_start - 1 for prompt in prompts))


def packed_order(groups: Sequence[Sequence[P]]) -> list[P]:
    """The prompts of all groups in the order in which `pack_branches` packs them."""
    trunks = [group[0] for group in groups]
    return trunks + [prompt for group in groups for prompt in group[1:]]


def pack_branches(
    groups: Sequence[Sequence[Prompt]], device: torch.device | str = "cpu"
) -> PackedPrompts:
    """Pack prompts with answers; the prompts of a group share the beginning of the first one.

    The first prompts of all groups come first, in order, and with them all memory slots. Groups of
    one prompt are packed as `PackedPrompts.of` does.

    Args:
        groups: of each document, or list of documents, the prompts of its questions; each group
            has at least one.

    Raises:
        ValueError: prompts of a group differ before their last memory slot.
    """
    trunks = [group[0] for group in groups]
    rest: list[Prompt] = []
    branches: list[Branch] = []
    for trunk, group in enumerate(groups):
        if len(group) == 1:
            continue
        rows = common_rows(group)
        _check_memory(group, rows)
        for prompt in group[1:]:
            rest.append(Prompt(prompt.ids[rows:], prompt.answer_start - rows))
            branches.append(Branch(trunk, rows))
    packed = PackedPrompts.of([*trunks, *rest], device)
    return replace(packed, batch=replace(packed.batch, branches=branches))


def _check_memory(group: Sequence[Prompt], rows: int) -> None:
    """Refuse prompts that would have memory slots of their own: memory is given once for all."""
    if rows < 1 or any(Marker.MEMORY in prompt.ids[rows:] for prompt in group):
        raise ValueError(
            f"prompts that share a memory must begin alike up to its last slot, they differ at "
            f"token {rows}"
        )
