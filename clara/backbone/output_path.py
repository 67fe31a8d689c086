"""Compute logits from final hidden states, as the backbone itself does.

Some model families scale logits (Granite, Cohere), cap them (Gemma 2, NanoChat), or change states
before the output head (MiniCPM3). The backbone's own `forward` does so, so this module runs it,
with a body that returns the given states. Most families only apply the head. For them the loss
takes a shorter way that does not hold all logits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import MoeModelOutputWithPast

from clara.backbone.chunked_head import CHUNK_LOGITS
from clara.backbone.cross_entropy import head_cross_entropy
from clara.backbone.divergence import divergence_of_logits, head_divergence
from clara.errors import reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_plain: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def body_of(backbone: PreTrainedModel) -> nn.Module:
    """The part of a causal language model that turns embeddings into final states."""
    body: nn.Module = backbone.base_model
    if body is backbone:  # Llama 4 as text names another attribute than it has
        body = getattr(backbone, "model", backbone)
    return body


def states_to_logits(backbone: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits `[P, V]` of final (normalised) hidden states `[P, H]`.

    Raises:
        ValueError: the backbone computes its logits from more than these states.
    """
    if applies_head_alone(backbone):
        logits: Tensor = backbone.get_output_embeddings()(hidden)
        return logits
    return _own_logits(backbone, hidden)


def next_token_cross_entropy(backbone: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy of their next token (a 0-d float32 tensor).

    Args:
        hidden: `[P, H]`, the final states that the positions are predicted from.
        targets: int64 `[P]`.

    Raises:
        ValueError: the backbone computes its logits from more than these states.
    """
    if applies_head_alone(backbone):
        return head_cross_entropy(backbone.get_output_embeddings(), hidden, targets)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for part in _chunks(backbone, hidden):
        # Computed again in the backward pass, so that only one chunk's logits are held at a time.
        loss = loss + checkpoint(
            _chunk_loss, backbone, hidden[part], targets[part], use_reentrant=False
        )
    return loss


def next_token_divergence(
    backbone: PreTrainedModel, hidden: Tensor, ids: Tensor, log_probs: Tensor
) -> Tensor:
    """Sum over positions of how far their next token's probabilities are from a teacher's.

    Args:
        hidden: `[P, H]`, the final states that the positions are predicted from.
        ids, log_probs: the teacher's, see `clara.backbone.divergence.divergence_of_logits`.

    Raises:
        ValueError: the backbone computes its logits from more than these states.
    """
    if applies_head_alone(backbone):
        return head_divergence(backbone.get_output_embeddings(), hidden, ids, log_probs)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for part in _chunks(backbone, hidden):
        given = hidden[part], ids[part], log_probs[part]
        loss = loss + checkpoint(_chunk_divergence, backbone, *given, use_reentrant=False)
    return loss


def _chunks(backbone: PreTrainedModel, hidden: Tensor) -> list[slice]:
    """Positions whose logits are held together."""
    rows = max(CHUNK_LOGITS // backbone.get_input_embeddings().weight.shape[0], 1)
    return [slice(start, start + rows) for start in range(0, max(len(hidden), 1), rows)]


def _chunk_loss(backbone: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(_own_logits(backbone, hidden).float(), targets, reduction="sum")


def _chunk_divergence(
    backbone: PreTrainedModel, hidden: Tensor, ids: Tensor, log_probs: Tensor
) -> Tensor:
    return divergence_of_logits(_own_logits(backbone, hidden), ids, log_probs)


def applies_head_alone(backbone: PreTrainedModel) -> bool:
    """Whether the backbone's logits are those of its output head on its final states, unchanged.

    Found once for each backbone, by its own code on states and logits made up for it.

    Raises:
        ValueError: the backbone computes its logits from more than its final states, or does not
            have any: a loss cannot be computed with it.
    """
    if backbone not in _plain:
        _plain[backbone] = _head_alone(backbone)
    return _plain[backbone]


@torch.no_grad()
def _head_alone(backbone: PreTrainedModel) -> bool:
    embeddings = backbone.get_input_embeddings().weight
    signs = torch.tensor([1.0, -1.0], dtype=embeddings.dtype, device=embeddings.device)
    # Powers of two keep their value in every floating-point type.
    states = (signs * 0.5)[:, None] * signs.repeat(embeddings.shape[1] // 2 + 1)[
        : embeddings.shape[1]
    ]
    head = backbone.get_output_embeddings()
    name = next((n for n, module in backbone.named_children() if module is head), None)
    if name is None or not hasattr(head, "weight"):
        _own_logits(backbone, states)
        return False
    entries = getattr(head, "out_features", len(head.weight))
    made_up = (signs * 512)[:, None] * signs.repeat(entries // 2 + 1)[:entries]
    stand_in = _Given(made_up[None])
    logits = _own_logits(backbone, states, {name: stand_in})
    read = stand_in.read
    return (
        read is not None
        and torch.equal(read, states[None])
        and logits.shape == made_up.shape
        and torch.equal(logits.float(), made_up.float())
    )


class _Output(MoeModelOutputWithPast):
    """Final states, and None for all else that a body may return."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _States(nn.Module):
    """In place of a body: what it is given are its final states."""

    @property
    def decoder(self) -> nn.Module:  # OPT calls this part of its body
        return self

    def forward(self, *arguments: Any, inputs_embeds: Tensor, **options: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


class _Given(nn.Module):
    """In place of an output head: known logits, and what it was asked to read."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.read: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.read = hidden
        return self.logits.clone()


def _own_logits(
    backbone: PreTrainedModel, hidden: Tensor, others: dict[str, nn.Module] | None = None
) -> Tensor:
    """The backbone's `forward` after its body, on `[P, H]`: `[P, V]`.

    Args:
        others: modules of the backbone to replace, by name.
    """
    body = body_of(backbone)
    name = next((name for name, module in backbone.named_children() if module is body), None)
    if name is None:
        raise ValueError(
            f"backbone {type(backbone).__name__} cannot be trained and has no answer loss: the "
            "part before its output head is not a separate module"
        )
    shell = _with_modules(backbone, {name: _States(), **(others or {})})
    try:
        logits = shell(inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits[0]
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"backbone {type(backbone).__name__} cannot be trained and has no answer loss: its "
            f"logits do not come from its final states alone ({reason(error)})"
        ) from error
    result: Tensor = logits
    return result


def _with_modules(backbone: PreTrainedModel, modules: dict[str, nn.Module]) -> nn.Module:
    """The backbone with some children replaced, sharing all else; the backbone stays as it is."""
    shell: nn.Module = object.__new__(type(backbone))
    state = {**backbone.__dict__, **{name: OrderedDict() for name in _HOOKS}}
    state.pop("forward", None)  # wrapped around the real one
    state["_modules"] = {**backbone._modules, **modules}
    shell.__dict__.update(state)
    return shell
