"""Forward passes over packed sequences: documents, questions, and prompts with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara.backbone.adapters import GENERATOR
from clara.backbone.memory_rows import last_layer, restricted_to_rows
from clara.backbone.output_path import applies_head_alone, body_of, next_token_cross_entropy
from clara.backbone.recomputation import recomputed_within
from clara.backbone.rotary import factors_by_sequence
from clara.checks import as_integer
from clara.text.packing import PackedBatch, PackedPrompts, compressor_input, pack
from clara.text.passages import Passage

if TYPE_CHECKING:
    from clara.model.modules import ClaraCore

BATCH_TOKENS_CPU = 1024
BATCH_TOKENS_GPU = 16_384


def forward_packed(
    model: ClaraCore,
    batch: PackedBatch,
    memory: Tensor,
    adapter: str | None,
    *,
    memory_only: bool = False,
) -> Tensor:
    """Final (normalised) hidden states `[T, H]` of packed sequences, no output head.

    Args:
        memory: `[number of Marker.MEMORY in the batch, H]`, what stands in the memory slots.
        memory_only: skip what only rows other than the memory slots at the end of each sequence
            need; those rows are then undefined.

    Raises:
        ValueError: a sequence is longer than the backbone's positions.
    """
    from clara.backbone.attention import (  # which takes long to import
        check_reached,
        packed_arguments,
    )

    _check_positions(model, batch)
    body = body_of(model.backbone)
    layer, modules = (memory_only and last_layer(body)) or (None, [])
    embeddings = model.embed(batch.ids, memory)
    packed = packed_arguments(batch, model.backbone, layer)

    @contextmanager
    def computing() -> Iterator[None]:
        with model.adapters.active(adapter), restricted_to_rows(modules, batch.memory_rows):
            yield

    with (
        computing(),
        recomputed_within(computing),
        factors_by_sequence(model.backbone, batch.lengths),
    ):
        output = body(
            inputs_embeds=embeddings[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packed,
        )
    check_reached(packed, model.backbone)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _check_positions(model: ClaraCore, batch: PackedBatch) -> None:
    positions = getattr(model.backbone.config, "max_position_embeddings", None)
    longest = max(batch.lengths, default=0)
    if positions is not None and longest > positions:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the backbone's {positions} positions; "
            "use fewer documents or a shorter text"
        )


@torch.no_grad()
def encode_passages(
    model: ClaraCore,
    passages: Sequence[Passage],
    adapter: str,
    batch_tokens: int | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """Memory `[N, m, H]` of documents or questions, in their order.

    Raises:
        TypeError: `batch_tokens` is no integer.
        ValueError: it is below 1.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS_CPU if model.device.type == "cpu" else BATCH_TOKENS_GPU
    batch_tokens = as_integer(batch_tokens, "batch_tokens", least=1)
    m = model.config.memory_tokens
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    sequences = [
        compressor_input(p.tokens, bos=bos, eos=eos if p.complete else None, n_memory=m)
        for p in passages
    ]
    memory = torch.empty(
        len(passages), m, model.hidden_size, dtype=model.dtype, device=model.device
    )
    with model.evaluating():
        for batch in pack(sequences, n_memory=m, batch_tokens=batch_tokens, device=model.device):
            hidden = model.encode(batch, adapter, memory_only=True)
            memory[batch.rows] = hidden[batch.memory_rows].unflatten(0, (-1, m))
            on_progress(len(batch.rows))
    return memory


def answer_cross_entropy(
    model: ClaraCore, prompts: PackedPrompts, memory: Tensor, adapter: str | None = GENERATOR
) -> Tensor:
    """Cross-entropy summed over the answers' tokens; only their positions reach the output head.

    The logits are those of the backbone's own forward, scaled or capped as it does.

    Args:
        memory: `[slots of all prompts, H]`.
        adapter: the one to compute with; None is the bare backbone.

    Raises:
        ValueError: the backbone's logits do not come from its final states alone.
    """
    applies_head_alone(model.backbone)  # before the forward, where there is no loss
    hidden = forward_packed(model, prompts.batch, memory, adapter)
    predicted = prompts.batch.ids[prompts.targets]
    return next_token_cross_entropy(model.backbone, hidden[prompts.targets - 1], predicted)
