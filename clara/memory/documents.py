"""Compressed documents: what `Clara.compress` returns and `MemoryIndex` stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import NoneType
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from clara.memory.padded import PaddedMemory

_ENTRIES: dict[str, tuple[tuple[type, ...], str]] = {
    "ids": ((str,), "a string"),
    "document_ids": ((str,), "a string"),
    "token_counts": ((Integral,), "a whole number"),
    "texts": ((str,), "a string"),
    "titles": ((str, NoneType), "a string or None"),
    "counts": ((Integral,), "a whole number"),
}


@dataclass(frozen=True)
class CompressedDocuments:
    """`N` documents (or chunks of documents) as memory tokens.

    Attributes:
        memory: `[N, m, H]`, memory tokens; a document with fewer than m ends in rows of zeros.
        ids: id of each row; chunks of a split document are `id#0`, `id#1`, ….
        document_ids: the document of each row (`ids` without the chunk number).
        token_counts: document tokens read for each row, markers not counted.
        texts: the text of each row.
        titles: title of the document, or None.
        fingerprint: fingerprint of the model that wrote the memory, see `Clara.fingerprint`.
        counts: memory tokens of each row, at least 1 and at most m. Default: m for all.

    Raises:
        ValueError: a list and `memory` differ in length, `memory` is not `[N, m, H]`, or a count
            is out of range.
        TypeError: an entry or the fingerprint has another type; the message names the list and
            the row.
    """

    memory: Tensor
    ids: list[str]
    document_ids: list[str]
    token_counts: list[int]
    texts: list[str]
    titles: list[str | None]
    fingerprint: str
    counts: list[int] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.memory.ndim != 3:
            raise ValueError(f"memory must be [N, m, H], got shape {list(self.memory.shape)}")
        most = self.memory.shape[1]
        if self.counts is None:
            object.__setattr__(self, "counts", [most] * len(self.memory))
        for name in ("ids", "document_ids", "token_counts", "texts", "titles", "counts"):
            count = len(getattr(self, name))
            if count != len(self.memory):
                raise ValueError(f"{name} has {count} entries for {len(self.memory)} memories")
        for name, (types, described) in _ENTRIES.items():
            values = getattr(self, name)
            wrong = {
                kind
                for kind in set(map(type, values))
                if kind is bool or not issubclass(kind, types)
            }
            if wrong:
                row = next(row for row, value in enumerate(values) if type(value) in wrong)
                shown = repr(values[row])[:80]
                raise TypeError(f"{name}[{row}] must be {described}, got {shown}")
        if not isinstance(self.fingerprint, str):
            raise TypeError(f"fingerprint must be a string, got {repr(self.fingerprint)[:80]}")
        for row, written in enumerate(self.counts):
            if not min(1, most) <= written <= most:
                raise ValueError(f"counts[{row}] must be at least 1 and at most {most}: {written}")

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, rows: int) -> CompressedDocuments: ...
    @overload
    def __getitem__(self, rows: slice | Sequence[int]) -> CompressedDocuments: ...
    def __getitem__(self, rows: int | slice | Sequence[int]) -> CompressedDocuments:
        """Return the given rows, in the given order; a single index gives one row.

        Raises:
            IndexError: there is no such row.
            TypeError: `rows` is a mask.
        """
        given: Any = rows.tolist() if hasattr(rows, "tolist") else rows  # of torch or numpy
        if isinstance(given, bool) or (
            not isinstance(given, int | slice) and any(_is_bool(row) for row in given)
        ):
            raise TypeError(f"rows must be positions of rows, not a mask: {rows!r}")
        if isinstance(given, int):
            chosen = [range(len(self))[given]]
        elif isinstance(given, slice):
            chosen = list(range(len(self)))[given]
        else:
            chosen = [range(len(self))[row] for row in given]
        index = torch.tensor(chosen, dtype=torch.long, device=self.memory.device)
        return CompressedDocuments(
            memory=self.memory[index],
            ids=[self.ids[row] for row in chosen],
            document_ids=[self.document_ids[row] for row in chosen],
            token_counts=[self.token_counts[row] for row in chosen],
            texts=[self.texts[row] for row in chosen],
            titles=[self.titles[row] for row in chosen],
            fingerprint=self.fingerprint,
            counts=[self.counts[row] for row in chosen],
        )

    @classmethod
    def concatenate(cls, parts: Iterable[CompressedDocuments]) -> CompressedDocuments:
        """Join several batches. All must come from the same model."""
        parts = list(parts)
        if not parts:
            raise ValueError("parts is empty: nothing to concatenate")
        fingerprints = {part.fingerprint for part in parts}
        if len(fingerprints) > 1:
            raise ValueError(f"parts come from {len(fingerprints)} different models")
        most = max(part.memory.shape[1] for part in parts)
        padded = [pad(part.memory, (0, 0, 0, most - part.memory.shape[1])) for part in parts]
        return cls(
            memory=torch.cat(padded),
            ids=[i for part in parts for i in part.ids],
            document_ids=[i for part in parts for i in part.document_ids],
            token_counts=[n for part in parts for n in part.token_counts],
            texts=[text for part in parts for text in part.texts],
            titles=[title for part in parts for title in part.titles],
            fingerprint=parts[0].fingerprint,
            counts=[count for part in parts for count in part.counts],
        )

    @property
    def padded(self) -> PaddedMemory:
        """The memory with its counts."""
        return PaddedMemory(self.memory, self.counts)

    @property
    def effective_compression(self) -> float:
        """Document tokens read per memory token written; 0 when there is no document."""
        written = sum(self.counts)
        return sum(self.token_counts) / written if written else 0.0


def _is_bool(value: object) -> bool:
    """Whether a value is a bool, numpy's too."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
