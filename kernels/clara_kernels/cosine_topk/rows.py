"""The rows of a corpus and what is computed from them once: all that a search reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from .ids import Ids


class CorpusRows:
    """Rows to search, their inverse norms, and their scales and ids if there are any.

    The base of `Corpus`, which checks what it is given and adds the search itself. Functions that
    `Corpus.search` is made of take this base, so that they need not import `Corpus`.
    """

    __slots__ = ("__weakref__", "_ids", "_inverse_norms", "_rows", "_scales")
    _rows: Tensor
    _inverse_norms: Tensor
    _scales: Tensor | None
    _ids: Ids | None

    @property
    def rows(self) -> Tensor:
        """`[N, D]`, over the memory that was given."""
        return self._rows

    @property
    def inverse_norms(self) -> Tensor:
        """float32 `[N]`, as the operators take them: 1/|c|, 0 for a zero row, -1 where that is
        beyond what they sum in float32."""
        return self._inverse_norms

    @property
    def scales(self) -> Tensor | None:
        """float32 `[N]`, the scales of int8 rows, if given."""
        return self._scales

    @property
    def ids(self) -> Tensor | tuple[str, ...] | None:
        """int64 `[N]` or N strings. None: a row's id is its number."""
        return None if self._ids is None else self._ids.public

    @property
    def width(self) -> int:
        """D."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        return self._rows.device

    @property
    def nbytes(self) -> int:
        """Bytes of rows, norms, scales and ids, even if rows are in a file or belong to others."""
        tensors = [self._rows, self._inverse_norms, self._scales]
        held = sum(each.numel() * each.element_size() for each in tensors if each is not None)
        return held + (0 if self._ids is None else self._ids.nbytes)

    def __len__(self) -> int:
        return self._rows.shape[0]

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        ids = "" if self._ids is None else ", with ids"
        megabytes = f"{self.nbytes / 1e6:,.1f} MB"
        name = type(self).__name__
        return f"{name}({len(self):,} × {self.width:,} {dtype} on {self.device}, {megabytes}{ids})"

    def __getitem__(self, rows: slice) -> Self:
        """Take some rows as a corpus over the same memory; row numbers start at 0 again.

        Raises:
            TypeError: `rows` is not a slice.
            ValueError: the step is negative.
        """
        if not isinstance(rows, slice):
            raise TypeError(f"a Corpus takes slices, got {type(rows).__name__}")
        start, stop, step = rows.indices(len(self))
        if step < 0:
            raise ValueError(f"the step of a slice must be at least 1, got {step}")
        part = slice(start, stop, step)
        return self._like(
            self._rows[part],
            self._inverse_norms[part],
            None if self._scales is None else self._scales[part],
            None if self._ids is None else self._ids.part(part),
        )

    def to(self, device: torch.device | str | int) -> Self:
        """Return the corpus on a device: this one if it is there already, else a copy."""
        target = torch.empty(0, device=device).device  # "cuda" is the current one
        if target == self.device:
            return self
        return self._like(
            self._rows.to(target),
            self._inverse_norms.to(target),
            None if self._scales is None else self._scales.to(target),
            None if self._ids is None else self._ids.to(target),
        )

    def pin_memory(self) -> Self:
        """Return the corpus in page-locked memory, which a GPU reads faster; copied if needed.

        Raises:
            ValueError: the corpus is not on the CPU.
            RuntimeError: there is no GPU to lock pages for.
        """
        if self.device.type != "cpu":
            raise ValueError(f"pin_memory needs a corpus on the CPU, got one on {self.device}")
        if not torch.cuda.is_available():
            raise RuntimeError("pin_memory needs an NVIDIA GPU, and there is none")
        if self._rows.is_pinned():
            return self
        return self._like(
            self._rows.pin_memory(),
            self._inverse_norms.pin_memory(),
            None if self._scales is None else self._scales.pin_memory(),
            None if self._ids is None else self._ids.pin_memory(),
        )

    def _fill(self, rows: Tensor, norms: Tensor, scales: Tensor | None, ids: Ids | None) -> None:
        self._rows, self._inverse_norms, self._scales, self._ids = rows, norms, scales, ids

    @classmethod
    def _like(cls, rows: Tensor, norms: Tensor, scales: Tensor | None, ids: Ids | None) -> Self:
        made = object.__new__(cls)
        made._fill(rows, norms, scales, ids)
        return made


def require_corpus(name: str, value: Any) -> None:
    """TypeError unless `value` is a Corpus."""
    if not isinstance(value, CorpusRows):
        raise TypeError(f"{name} must be a Corpus, got {type(value).__name__}")
