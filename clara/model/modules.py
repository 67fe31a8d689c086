"""The modules of a model: one backbone, three adapters, and CLaRa's trained embedding rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER, Adapters
from clara.backbone.attention_patterns import evaluating
from clara.backbone.default_dtype import float32_by_default
from clara.backbone.loading import BackboneError, sampled_backbone_digest
from clara.backbone.merging import MergedGenerator, merged_copy_fits, parameter_versions
from clara.backbone.packed_forward import positions_of
from clara.backbone.recomputation import enable_checkpointing
from clara.backbone.rotary import switching_lengths
from clara.config import ClaraConfig
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory
from clara.memory.space import MemorySpace, check_shape
from clara.model.connector import Connectors
from clara.model.fingerprint import memory_fingerprint
from clara.model.memory_tokens import MemoryTokens
from clara.model.prompt_prefix import PromptPrefixes
from clara.text.tokenizer import SafeTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_DERIVED = ("prompt_prefixes", "_merged", "_fingerprint", "_trained")
"""What is made of the weights when it is needed, and tells by their place in memory whether they
have changed. Copies begin without it."""


class ModelModules(nn.Module):
    """The modules of a CLaRa model, whose memory they write, and how they are copied and used.

    `clara.model.forward.ClaraCore` computes with them.

    Attributes:
        config: `ClaraConfig`.
        tokenizer: `SafeTokenizer`.
        backbone: the frozen language model, with the LoRA layers of all adapters in it.
        adapters: the LoRA adapters: activates, trains and saves them.
        memory_tokens: CLaRa's trained embedding rows.
        connectors: in memory form "spans", those of the compressor and of the query reasoner, by
            the adapter's name; else empty.
        prompt_prefixes: cache of the common beginning of all prompts.
        backbone_digest: identifies the backbone's weights, see
            `clara.backbone.digest.backbone_digest`.
        owns_backbone: whether the backbone's weights were trained too. They are then saved with
            the model, and the digest is that of the last save.
    """

    _merged: MergedGenerator | None
    _fingerprint: tuple[object, str] | None  # and the version of the weights that it is of
    _trained: tuple[object, bool] | None

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ClaraConfig,
        *,
        backbone_digest: str,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone_digest = backbone_digest
        self.owns_backbone = False
        self.tokenizer = SafeTokenizer(tokenizer)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]), float32_by_default():
            torch.manual_seed(seed)
            self.adapters = Adapters(backbone, config)
        embeddings = backbone.get_input_embeddings().weight
        spans = config.memory_form == "spans"
        self.memory_tokens = MemoryTokens(
            config.memory_tokens or 1,
            embeddings.shape[1],
            distinct=config.distinct_memory_tokens and not spans,
        )
        self.memory_tokens.to(embeddings.device).requires_grad_(False)
        self.connectors = Connectors(
            (COMPRESSOR, QUERY_REASONER) if spans else (),
            embeddings.shape[1],
            config.connector_rank,
        )
        self.connectors.to(embeddings.device).requires_grad_(False)
        self._forget_derived()
        self._sampled_digest: str | None = None
        self._check_length()
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.memory_tokens.encode.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations, and of memory."""
        return self.backbone.get_input_embeddings().weight.dtype

    @property
    def hidden_size(self) -> int:
        return self.memory_tokens.encode.shape[1]

    @property
    def fingerprint(self) -> str:
        """Identifies the model's memory: models with different memory have different fingerprints.

        The fingerprint has 64 hexadecimal digits.
        """
        compressor = self.adapters.parameters(COMPRESSOR).values()
        ours = [*self.memory_tokens.parameters(), *self.connectors.parameters()]
        weights = parameter_versions([*compressor, *ours])
        version = (weights, self.backbone_digest)
        if self.training or self._fingerprint is None or self._fingerprint[0] != version:
            self._fingerprint = (version, self._fingerprint_over(self.backbone_digest))
        return self._fingerprint[1]

    @property
    def is_trained(self) -> bool:
        """Whether any adapter changes what the backbone computes.

        The adapters of a new model change nothing: it cannot read its memory yet. The answer is
        cached until the adapters' weights change.
        """
        version = parameter_versions(
            parameter for name in ADAPTERS for parameter in self.adapters.parameters(name).values()
        )
        if self.training or self._trained is None or self._trained[0] != version:
            self._trained = (version, self.adapters.change_anything())
        return self._trained[1]

    @property
    def sampled_fingerprint(self) -> str:
        """The fingerprint that earlier versions gave this model; 64 hexadecimal digits.

        They read a sample of the backbone's weights. An index of such a version carries it.

        Raises:
            BackboneError: the backbone's files cannot be read.
        """
        return self._fingerprint_over(self.sampled_backbone_digest)

    @property
    def sampled_backbone_digest(self) -> str:
        """See `loading.sampled_backbone_digest`; the files are read at the first use."""
        if self._sampled_digest is None:
            self._sampled_digest = sampled_backbone_digest(str(self.config.backbone))
        return self._sampled_digest

    @sampled_backbone_digest.setter
    def sampled_backbone_digest(self, digest: str) -> None:
        self._sampled_digest = digest

    @property
    def memory_space(self) -> MemorySpace:
        """The fingerprint, shape and dtype of this model's memory, earlier releases included."""
        return MemorySpace(
            self.fingerprint,
            self.config.memory_tokens,
            self.hidden_size,
            self.dtype,
            self._earlier_fingerprint,
        )

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether memory with this fingerprint is this model's, also if earlier versions wrote it.

        False too if only the sampled fingerprint could tell and the backbone's files are gone.
        """
        return self.memory_space.accepts(fingerprint)

    def read_memory(
        self, given: Tensor | CompressedDocuments | Sequence[Tensor], name: str
    ) -> PaddedMemory:
        """Memory that a user passed, if it is this model's.

        Args:
            given: compressed documents, memory `[N, m, H]` without padding, or `[m_i, H]` for each
                document.
            name: what the message calls it.

        Raises:
            TypeError: it is something else.
            ValueError: another model wrote it, or it has another shape.
        """
        m, width = self.config.memory_tokens, self.hidden_size
        if isinstance(given, CompressedDocuments):
            self.memory_space.require(given, "documents were compressed", "compress them again")
            check_shape(given.memory, m, width, name)
            return given.padded
        if isinstance(given, Tensor):
            check_shape(given, m, width, name)
            return PaddedMemory.full(given)
        if not all(isinstance(each, Tensor) for each in given):
            raise TypeError(f"{name} must be a tensor, or one for each document")
        for position, each in enumerate(given):
            check_shape(each[None], m, width, f"{name}, document {position},")
        if not len(given):
            return PaddedMemory.full(torch.empty(0, m or 1, width, dtype=self.dtype))
        return PaddedMemory.of(given)

    def _earlier_fingerprint(self) -> str | None:
        try:
            return self.sampled_fingerprint
        except BackboneError:
            return None

    def _fingerprint_over(self, backbone_digest: str) -> str:
        connector = self.connectors.of(COMPRESSOR) if self.connectors else None
        return memory_fingerprint(
            self.config, self.adapters, self.memory_tokens, backbone_digest, connector
        )

    def copy_compressor(self) -> None:
        """Give the query reasoner the weights of the compressor."""
        self.adapters.copy(COMPRESSOR, QUERY_REASONER)
        if self.connectors:
            self.connectors.copy(COMPRESSOR, QUERY_REASONER)

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`; afterwards caches of the weights are computed again."""
        self.prompt_prefixes.clear()
        if mode:
            self._merged = self._fingerprint = self._trained = None
        return super().train(mode)

    def enable_gradient_checkpointing(self, **options: Any) -> None:
        """Compute each layer a second time in the backward pass instead of keeping its states.

        Args:
            options: options of `torch.utils.checkpoint.checkpoint` except `use_reentrant` and
                `context_fn`, and transformers' `every_n_layers` and `offload`.

        Raises:
            ValueError: one of the two excluded options is given, or the backbone does not support
                it.
        """
        enable_checkpointing(self.backbone, options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A model that shares nothing with this one; with a merged generator if this one has it."""
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        with self.adapters.lock:
            own = {name: value for name, value in vars(self).items() if name not in _DERIVED}
            vars(made).update(copy.deepcopy(own, memo))
            made._forget_derived()
            merged = self._merged
            if merged is not None and merged.is_current(self.adapters):
                backbone = copy.deepcopy(merged.backbone, memo)
                made._merged = MergedGenerator.around(backbone, made.adapters)
        return made

    def __copy__(self) -> Self:
        """Another object around the same modules, adapters and tokenizer."""
        made = self.__class__.__new__(self.__class__)
        vars(made).update(vars(self))
        for name in ("_parameters", "_buffers", "_modules"):
            vars(made)[name] = copy.copy(vars(self)[name])
        made._forget_derived()
        return made

    def _forget_derived(self) -> None:
        """Begin, as a new object or a copy, without what was made of the weights."""
        self.prompt_prefixes = PromptPrefixes()
        self._merged = self._fingerprint = self._trained = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} model cannot be pickled, nor saved by torch.save: write it "
            "with model.save_pretrained(folder), and read it with Clara.from_pretrained(folder)"
        )

    def merge_generator(self) -> bool:
        """Keep a copy of the weights with the generator merged, for faster generation.

        The copy is made if memory allows and is dropped when the generator's weights change.

        Returns:
            Whether the copy was made.

        Raises:
            ValueError: the backbone is quantized.
        """
        self._merged = None
        with self.adapters.lock:
            if merged_copy_fits(self.backbone):
                self._merged = MergedGenerator.of(self.backbone, self.adapters)
        return self._merged is not None

    @contextmanager
    def generating(self, adapter: str | None) -> Iterator[PreTrainedModel]:
        """The model to generate with: the merged copy if it is current, or one adapter active."""
        merged = self._merged
        if merged is not None and (self.training or not merged.is_current(self.adapters)):
            merged = self._merged = None
        if adapter == GENERATOR and merged is not None:
            # Rotary factors that are chosen in each forward are state that threads would share.
            alone = self.adapters.lock if switching_lengths(merged.backbone) else nullcontext()
            with alone:
                yield merged.backbone
            return
        with self.evaluating(), self.adapters.active(adapter):
            yield self.backbone

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off within the block, in every module that had it on."""
        with self.adapters.lock, evaluating(self):
            yield

    def _check_length(self) -> None:
        """Refuse a document limit that does not fit the backbone.

        In memory form "spans" texts are checked one by one: most are far shorter than the limit.
        """
        if self.config.memory_tokens is None:
            return
        longest = self.config.document_length + 3 + self.config.memory_tokens
        positions = positions_of(self.backbone)
        if positions is not None and longest > positions:
            raise ValueError(
                f"document_length {self.config.document_length} and its "
                f"{self.config.memory_tokens} memory tokens do not fit the backbone's "
                f"max_position_embeddings of {positions}"
            )
