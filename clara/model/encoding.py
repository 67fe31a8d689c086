"""Compute the memory of documents and questions, and the loss of answers, in packed forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara.backbone.adapters import GENERATOR
from clara.backbone.output_path import applies_head_alone, next_token_cross_entropy
from clara.errors.checks import as_integer
from clara.model.ranking import memory_of_each_question
from clara.text.packing import PackedPrompts, compressor_input, pack
from clara.text.passages import Passage

if TYPE_CHECKING:
    from clara.model.modules import ClaraCore

BATCH_TOKENS_CPU = 1024
BATCH_TOKENS_GPU = 16_384


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
    hidden = model.forward_packed(prompts.batch, memory, adapter)
    predicted = prompts.batch.ids[prompts.targets]
    return next_token_cross_entropy(model.backbone, hidden[prompts.targets - 1], predicted)


def answer_loss(
    model: ClaraCore,
    questions: Sequence[str],
    memory: Tensor | Sequence[Tensor],
    answers: Sequence[str],
) -> Tensor:
    """See `Clara.answer_loss`."""
    each = memory_of_each_question(questions, memory, model.read_memory)
    prompts = model.memory_prompts(questions, [len(m) for m in each], answers)
    slots = torch.cat([m.reshape(-1, model.hidden_size) for m in each])
    packed = PackedPrompts.of(prompts, model.device)
    return answer_cross_entropy(model, packed, slots) / len(packed.targets)
