"""Check that memory of a model, an index and documents comes from the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Fingerprinted(Protocol):
    """Memory with the fingerprint of the model that wrote it: documents, or an index."""

    @property
    def fingerprint(self) -> str: ...


class StoredIndex(Fingerprinted, Protocol):
    """An index in a folder."""

    @property
    def path(self) -> str: ...


def _no_earlier_fingerprint() -> None:
    return None


@dataclass(frozen=True)
class MemorySpace:
    """What all memory of one model has in common. Only such memory can be compared and answered
    from.

    Attributes:
        fingerprint: of the model that writes the memory, see `Clara.fingerprint`.
        memory_tokens: m, memory tokens of a document; None where documents differ.
        hidden_size: H.
        dtype: of the memory. Memory in another dtype belongs to the space too.
        earlier_fingerprint: the fingerprint that earlier releases gave the same model, or None if
            it cannot be known. It is called only for memory whose fingerprint is another one,
            because it reads the backbone's files.
    """

    fingerprint: str
    memory_tokens: int | None
    hidden_size: int
    dtype: torch.dtype
    earlier_fingerprint: Callable[[], str | None] = field(
        default=_no_earlier_fingerprint, compare=False, repr=False
    )

    def accepts(self, fingerprint: str) -> bool:
        """Whether this model wrote memory with this fingerprint, perhaps in an earlier release."""
        if fingerprint == self.fingerprint:
            return True
        earlier = self.earlier_fingerprint()
        return earlier is not None and fingerprint == earlier

    def require(
        self,
        other: Fingerprinted,
        what: str,
        remedy: str,
        *,
        own: str = "this one",
        error: type[ValueError] = ValueError,
    ) -> None:
        """Refuse memory that another model wrote.

        Args:
            what: the subject and verb of the message, such as "the index was written".
            remedy: what to do about it.
            own: what the message calls the model of this space.
            error: what to raise.

        Raises:
            ValueError: it is of another model.
        """
        if not self.accepts(other.fingerprint):
            raise error(
                f"{what} by another model ({other.fingerprint[:12]}, {own} is "
                f"{self.fingerprint[:12]}); {remedy}"
            )

    def require_addable(
        self, index: StoredIndex, remedy: str, *, model_name: str = "MODEL"
    ) -> None:
        """Refuse to add memory of this space to an index of another model.

        An index with a fingerprint of an earlier release can be read. Nothing is added to it: that
        fingerprint covers a sample of the weights, and two models may share it.

        Args:
            remedy: what to do if the index is of another model.
            model_name: how the command that upgrades the index names the model.

        Raises:
            ValueError: it is of another model, or has a fingerprint of an earlier release.
        """
        self.require(index, f"{index.path}: was written", remedy)
        if index.fingerprint != self.fingerprint:
            raise ValueError(
                f"{index.path}: has a fingerprint of an earlier release and can only be read; to "
                f"add documents, run 'clara index upgrade --model {model_name} {index.path}' first"
            )


def check_shape(
    memory: Tensor,
    memory_tokens: int | None,
    hidden_size: int,
    name: str,
    error: type[ValueError] = ValueError,
) -> None:
    """Refuse a tensor that is not `[N, m, H]`.

    Args:
        memory_tokens: m; None accepts any number but 0.
        name: what the message calls the tensor.
        error: what to raise.
    """
    m = memory_tokens
    if m is None:
        m = max(memory.shape[1], 1) if memory.ndim == 3 else 0
    if memory.ndim != 3 or memory.shape[1:] != (m, hidden_size):
        shown = "m" if memory_tokens is None else memory_tokens
        raise error(f"{name} must be [N, {shown}, {hidden_size}], got {list(memory.shape)}")
