"""Find which keys each layer of a backbone attends to, from the masks that transformers makes.

A configuration does not say this reliably: model families differ in which layers have a window,
and in how the window reaches the attention function: as a keyword, by the mask alone, or as a
keyword that the mask of eager attention ignores. transformers' own attention obeys the mask. So
one forward over a few positions records the mask of every layer as a rule instead of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clara.backbone.output_path import body_of
from clara.backbone.recognition import modules_without_adapters
from clara.errors import ClaraError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLARA_SDPA = "clara_sdpa"
"""What transformers calls the attention of `clara.backbone.attention`."""
POSITIONS = 4
"""Length of the forward that records the masks."""


@dataclass(frozen=True)
class AttentionPattern:
    """The keys that position `i` of a sequence attends to, of those up to `i`.

    Attributes:
        window: the last so many; None is no limit.
        chunk: those in the same chunk of so many positions, counted from the start; None is all.
    """

    window: int | None = None
    chunk: int | None = None

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool, whether each query position attends to each key position."""
        seen = key <= query
        if self.window is not None:
            seen = seen & (key > query - self.window)
        if self.chunk is not None:
            seen = seen & (key // self.chunk == query // self.chunk)
        return seen


FULL = AttentionPattern()


class UnsupportedAttentionError(ClaraError, ValueError):
    """Attention that cannot be computed for packed sequences."""


# Keywords of transformers' attention functions that leave what is computed as it is.
_HARMLESS = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "cu_seqlens",
        "max_length_k",
        "max_length_q",
        "position_embeddings",
        "position_ids",
        "sliding_window",  # for kernels without a mask
    }
)


@dataclass
class Recording:
    """What reaches the attention function of each layer in one forward.

    Passed through a model in place of a `PackedLayout`.

    Attributes:
        masks: the rule behind each mask that was made, by the place of the mask's storage.
        found: the pattern of each attention module.
    """

    masks: dict[int, AttentionPattern] = field(default_factory=dict)
    found: dict[nn.Module, AttentionPattern] = field(default_factory=dict)
    _kept: list[Tensor] = field(default_factory=list)

    def mask(self, rule: Callable[..., Tensor], size: int | None, device: torch.device) -> Tensor:
        """A stand-in for the mask with this rule; `size` was given to make it."""
        pattern = _pattern(rule, size, device)
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        self._kept.append(mask)
        self.masks[mask.untyped_storage().data_ptr()] = pattern
        return mask

    def attention(self, module: nn.Module, mask: Tensor | None, options: Mapping[str, Any]) -> None:
        """Note the call of a layer's attention function.

        Raises:
            UnsupportedAttentionError: it is asked for something that packed attention lacks.
        """
        for name, value in options.items():
            if name not in _HARMLESS and _changes(name, value):
                raise UnsupportedAttentionError(f"has attention with {name}")
        if mask is None:
            pattern: AttentionPattern | None = FULL
        else:
            pattern = self.masks.get(mask.untyped_storage().data_ptr())
        if pattern is None:
            raise UnsupportedAttentionError("has layers that make an attention mask of their own")
        if self.found.setdefault(module, pattern) != pattern:
            raise UnsupportedAttentionError("uses one layer with masks of several kinds")


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)
_known: WeakKeyDictionary[PreTrainedModel, dict[nn.Module, AttentionPattern]] = WeakKeyDictionary()


def recording_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Transformers' `sdpa_mask`, or its rule while the masks of a model are recorded."""
    recording = _recording.get()
    if recording is None:
        from transformers.masking_utils import sdpa_mask

        mask: Tensor | None = sdpa_mask(*arguments, **options)
        return mask
    # Releases of transformers differ in how they say where the mask belongs.
    device = options["device"] if "device" in options else options["cache_position"].device
    return recording.mask(options["mask_function"], options.get("local_size"), device)


def attention_patterns(backbone: PreTrainedModel) -> Mapping[nn.Module, AttentionPattern]:
    """The pattern of each attention module of a backbone that was loaded with `CLARA_SDPA`.

    Computed once for each backbone, by a forward of `POSITIONS` positions.

    Raises:
        UnsupportedAttentionError: packed attention cannot express it; the message is a predicate,
            its subject the backbone.
    """
    known = _known.get(backbone)
    if known is None:
        known = _known[backbone] = _recorded(backbone).found
    return known


@torch.no_grad()
def _recorded(backbone: PreTrainedModel) -> Recording:
    if any(getattr(m, "attn_temperature_tuning", False) for m in backbone.modules()):
        raise UnsupportedAttentionError(
            "scales its queries by their place in the batch (attn_temperature_tuning), not in "
            "their sequence"
        )
    embeddings = backbone.get_input_embeddings()
    ids = torch.zeros(1, POSITIONS, dtype=torch.long, device=embeddings.weight.device)
    recording = Recording()
    with evaluating(backbone), _recording_to(recording):
        try:
            body_of(backbone)(
                inputs_embeds=embeddings(ids),
                position_ids=torch.arange(POSITIONS, device=ids.device)[None],
                use_cache=False,
                packed=recording,
            )
        except UnsupportedAttentionError:
            raise
        except Exception as error:  # families fail in ways of their own
            raise UnsupportedAttentionError(
                f"cannot compute embeddings given in place of tokens: {reason(error)}"
            ) from error
    layers = backbone.config.get_text_config(decoder=True).num_hidden_layers
    if len(recording.found) < layers:
        raise UnsupportedAttentionError(
            "cannot compress packed documents: its layers do not hand on the arguments of attention"
        )
    return recording


@contextmanager
def _recording_to(recording: Recording) -> Iterator[None]:
    token = _recording.set(recording)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block, in every module of a model that had it on."""
    training = [module for module in modules_without_adapters(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _changes(name: str, value: Any) -> bool:
    """Whether a keyword that is not known to be harmless asks for another kind of attention."""
    if name == "is_causal":
        return value is False
    if name == "dropout":
        return bool(value)
    return isinstance(value, Tensor | float) or (value is not None and name in _ALTERING)


_ALTERING = frozenset(
    {"block_indices", "head_mask", "indices", "position_bias", "s_aux", "softcap"}
)


def _pattern(
    rule: Callable[..., Tensor], size: int | None, device: torch.device
) -> AttentionPattern:
    """The pattern that a rule of `transformers.masking_utils` describes.

    Compared at the positions where the candidates differ: the rule is a function of positions.

    Raises:
        UnsupportedAttentionError: it is none of ours.
    """
    candidates = [FULL]
    points = {*range(9), 63, 64, 65, 4095, 4096, 4097, 1_000_003}
    if size is not None:
        candidates += [AttentionPattern(window=size), AttentionPattern(chunk=size)]
        points |= {max(k * size + d, 0) for k in (1, 2, 3, 7) for d in range(-2, 3)}
    positions = torch.tensor(sorted(points), device=device)
    query, key = positions[:, None], positions[None]
    zero = torch.zeros((), dtype=torch.long, device=device)
    try:
        seen = torch.as_tensor(rule(zero, zero, query, key)).expand(len(points), len(points))
    except Exception:  # a rule that looks up positions of the tiny forward, say
        seen = None
    if seen is not None:
        for candidate in candidates:
            if torch.equal(seen.bool(), candidate.allows(query, key)):
                return candidate
    raise UnsupportedAttentionError(
        "has an attention mask that is neither causal, nor a sliding window, nor chunked"
    )
