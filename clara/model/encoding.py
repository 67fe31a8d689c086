"""Compute the memory of documents and questions, and the loss of answers, in packed forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.backbone.output_path import applies_head_alone, next_token_cross_entropy
from clara.backbone.packed_forward import positions_of
from clara.errors.checks import as_integer
from clara.memory.padded import PaddedMemory
from clara.model.ranking import MemoryOfQuestion, counts_of, memory_of_each_question
from clara.text.packing import (
    CompressorInput,
    PackedBatch,
    PackedPrompts,
    pack,
)
from clara.text.passages import Passage, compressor_inputs

if TYPE_CHECKING:
    from clara.model.forward import ClaraCore, Encoded

BATCH_TOKENS_CPU = 1024
BATCH_TOKENS_GPU = 16_384

_SAMPLE_TOKENS = 64


@torch.no_grad()
def norm_ratio(model: ClaraCore) -> float:
    """How many times as long as its token embeddings the final states of the backbone are.

    Measured on tokens spread over the vocabulary. It is 16 for SmolLM2-135M.
    """
    entries = len(model.backbone.get_input_embeddings().weight)
    positions = positions_of(model.backbone)
    count = min(_SAMPLE_TOKENS, positions or _SAMPLE_TOKENS)
    tokens = [entries * place // count for place in range(count)]
    batch = PackedBatch(torch.tensor(tokens, device=model.device), [len(tokens)], [0], [0])
    none = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
    with model.evaluating():
        states = model.forward_packed(batch, none, None)
    embeddings = model.embed(batch.ids, none)
    lengths = (each.float().norm(dim=-1).mean() for each in (states, embeddings))
    of_states, of_embeddings = (float(length) for length in lengths)
    return of_states / of_embeddings if of_states and of_embeddings else 1.0


@torch.no_grad()
def encode_passages(
    model: ClaraCore,
    passages: Sequence[Passage],
    adapter: str,
    batch_tokens: int | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
    *,
    rate: int | None = None,
) -> PaddedMemory:
    """Memory of documents or questions, in their order.

    Args:
        rate: tokens per memory token in memory form "spans"; None in "learned".

    Raises:
        TypeError: `batch_tokens` is no integer.
        ValueError: it is below 1, or a text does not fit the backbone's positions.
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS_CPU if model.device.type == "cpu" else BATCH_TOKENS_GPU
    batch_tokens = as_integer(batch_tokens, "batch_tokens", least=1)
    inputs = inputs_of(model, passages, rate)
    check_positions(model, passages, inputs, adapter)
    counts = [each.n_memory for each in inputs]
    most = max(counts, default=model.config.memory_tokens or 1)
    shape = len(passages), most, model.hidden_size
    memory = torch.zeros(shape, dtype=model.dtype, device=model.device)
    for batch, encoded in _encoded(model, inputs, adapter, batch_tokens):
        rows = encoded.memory.split(batch.n_memory)
        for row, each in zip(batch.rows, rows, strict=True):
            memory[row, : len(each)] = each
        on_progress(len(batch.rows))
    return PaddedMemory(memory, counts)


@torch.no_grad()
def encode_states(
    model: ClaraCore, passages: Sequence[Passage], adapter: str, *, rate: int | None = None
) -> list[Tensor]:
    """Final states `[m_i, H]` at the memory slots of each text, see `encode_passages`."""
    found: list[Tensor] = [torch.empty(0)] * len(passages)
    inputs = inputs_of(model, passages, rate)
    check_positions(model, passages, inputs, adapter)
    for batch, encoded in _encoded(model, inputs, adapter, BATCH_TOKENS_CPU):
        states = encoded.states[batch.memory_rows].split(batch.n_memory)
        for row, each in zip(batch.rows, states, strict=True):
            found[row] = each
    return found


def _encoded(
    model: ClaraCore, inputs: Sequence[CompressorInput], adapter: str, batch_tokens: int
) -> Iterator[tuple[PackedBatch, Encoded]]:
    """Batches of inputs, each with its final states and memory."""
    with model.evaluating():
        for batch in pack(inputs, batch_tokens=batch_tokens, device=model.device):
            yield batch, model.encode_memory(batch, adapter)


def inputs_of(
    model: ClaraCore, passages: Sequence[Passage], rate: int | None
) -> list[CompressorInput]:
    """What the model's compressor or query reasoner reads of texts.

    Args:
        rate: tokens per memory token in memory form "spans"; None in "learned".
    """
    n_memory = model.config.memory_tokens
    return compressor_inputs(model.tokenizer, passages, n_memory=n_memory, rate=rate)


def check_positions(
    model: ClaraCore,
    passages: Sequence[Passage],
    inputs: Sequence[CompressorInput],
    adapter: str = COMPRESSOR,
) -> None:
    """Refuse a text that does not fit the backbone's positions, before anything is computed.

    Args:
        adapter: the one that would read it: documents and questions have other remedies.

    Raises:
        ValueError: names the text, its tokens and the positions.
    """
    what, remedy = "document ", "lower document_length, or use a higher compression rate"
    if adapter == QUERY_REASONER:
        what, remedy = "", "ask a shorter question, or use a higher question_rate"
    positions = positions_of(model.backbone)
    for passage, each in zip(passages, inputs, strict=True):
        if positions is not None and len(each.ids) > positions:
            raise ValueError(
                f"{what}{passage.id!r} has {each.text_tokens} tokens and {each.n_memory} memory "
                f"tokens, which do not fit the backbone's {positions} positions; {remedy}"
            )


def answer_states(
    model: ClaraCore, prompts: PackedPrompts, memory: Tensor, adapter: str | None = GENERATOR
) -> Tensor:
    """Final states `[P, H]` that the answers' tokens are predicted from.

    Args:
        memory: `[slots of all prompts, H]`.
        adapter: the one to compute with; None is the bare backbone.

    Raises:
        ValueError: the backbone's logits do not come from its final states alone.
    """
    applies_head_alone(model.backbone)  # before the forward, where there is no loss
    hidden = model.forward_packed(prompts.batch, memory, adapter)
    return hidden[prompts.targets - 1]


def answer_cross_entropy(
    model: ClaraCore, prompts: PackedPrompts, memory: Tensor, adapter: str | None = GENERATOR
) -> Tensor:
    """Cross-entropy summed over the answers' tokens; only their positions reach the output head.

    The logits are those of the backbone's own forward, scaled or capped as it does.

    Args:
        memory, adapter: see `answer_states`.

    Raises:
        ValueError: the backbone's logits do not come from its final states alone.
    """
    states = answer_states(model, prompts, memory, adapter)
    return next_token_cross_entropy(model.backbone, states, prompts.predicted)


def answer_loss(
    model: ClaraCore,
    questions: Sequence[str],
    memory: Tensor | Sequence[MemoryOfQuestion],
    answers: Sequence[str],
) -> Tensor:
    """See `Clara.answer_loss`."""
    each = memory_of_each_question(questions, memory, model.read_memory)
    prompts = model.memory_prompts(questions, [counts_of(documents) for documents in each], answers)
    none = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
    slots = torch.cat([none, *(tokens.to(none) for documents in each for tokens in documents)])
    packed = PackedPrompts.of(prompts, model.device)
    return answer_cross_entropy(model, packed, slots) / len(packed.targets)
