"""The names of the rows of a corpus: int64 numbers or strings, a different one for each row."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..checks import index_of

ABSENT = -1  # the id of a place of a result where nothing was found


class IntegerIds:
    """int64 ids, a tensor on the corpus' device."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._sorted: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def part(self, rows: slice) -> IntegerIds:
        return IntegerIds(self.values[rows])

    def to(self, device: torch.device) -> IntegerIds:
        return IntegerIds(self.values.to(device))

    def pin_memory(self) -> IntegerIds:
        return IntegerIds(self.values.pin_memory())

    def name(self, row: int) -> str:
        return str(int(self.values[row]))

    def check_unique(self) -> None:
        ordered, rows = self._lookup()
        repeated = (ordered[1:] == ordered[:-1]).nonzero()
        if len(repeated):
            place = int(repeated[0])
            _refuse_repeated(int(ordered[place]), int(rows[place]), int(rows[place + 1]))
        self._sorted = None  # it is twice as large as the ids and rarely used again

    def take(self, rows: Tensor) -> Tensor:
        """int64 ids of `rows`, ABSENT for negative ones."""
        found = self.values[rows.clamp(min=0).to(self.values.device)]
        return torch.where(rows < 0, ABSENT, found.to(rows.device))

    def rows_of(self, wanted: Any) -> Tensor:
        """Rows of ids, int64 on the CPU, ascending and each once."""
        values = _integers("ids", wanted).cpu()
        if not len(values):
            return values
        ordered, rows = self._lookup()
        places = torch.searchsorted(ordered, values)
        known = places < len(ordered)
        known[known.clone()] = ordered[places[known]] == values[known]
        unknown = (~known).nonzero()
        if len(unknown):
            raise ValueError(f"ids must be ids of the corpus, got {int(values[unknown[0]])}")
        return rows[places].unique()

    @property
    def public(self) -> Tensor:
        return self.values

    @property
    def nbytes(self) -> int:
        tensors = (self.values, *(self._sorted or ()))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _lookup(self) -> tuple[Tensor, Tensor]:
        """Ids in order and the row of each, on the CPU; equal ones in order of rows."""
        if self._sorted is None:
            ordered = self.values.cpu().sort(stable=True)
            self._sorted = ordered.values, ordered.indices
        return self._sorted


class StringIds:
    """Ids that are strings; they stay in Python whichever device the rows are on."""

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def part(self, rows: slice) -> StringIds:
        return StringIds(self.values[rows])

    def to(self, device: torch.device) -> StringIds:
        return self

    def pin_memory(self) -> StringIds:
        return self

    def name(self, row: int) -> str:
        return repr(self.values[row])

    def check_unique(self) -> None:
        first: dict[str, int] = {}
        for row, value in enumerate(self.values):
            before = first.setdefault(value, row)
            if before != row:
                _refuse_repeated(value, before, row)

    def take(self, rows: Tensor) -> list[list[str]]:
        """Ids of `rows`, a list for each query; negative rows are left out."""
        return [[self.values[row] for row in query if row >= 0] for query in rows.tolist()]

    def rows_of(self, wanted: Any) -> Tensor:
        """Rows of ids, int64 on the CPU, ascending and each once."""
        if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Iterable):
            raise TypeError(f"ids must be an iterable of ids, got {type(wanted).__name__}")
        if self._rows is None:
            self._rows = {value: row for row, value in enumerate(self.values)}
        rows = set()
        for value in wanted:
            row = self._rows.get(value) if isinstance(value, str) else None
            if row is None:
                raise ValueError(f"ids must be ids of the corpus, got {value!r}")
            rows.add(row)
        return torch.tensor(sorted(rows), dtype=torch.int64)

    @property
    def public(self) -> tuple[str, ...]:
        return self.values

    @property
    def nbytes(self) -> int:
        strings = sys.getsizeof(self.values) + sum(map(sys.getsizeof, self.values))
        if self._rows is None:
            return strings
        return strings + sys.getsizeof(self._rows) + 28 * len(self._rows)  # an int for each row


Ids = IntegerIds | StringIds


def make_ids(ids: Any, count: int) -> Ids:
    """The ids of `count` rows, from a sequence, an array or a tensor.

    Raises:
        TypeError: neither all integers nor all strings.
        ValueError: another number of them than rows, one of them twice, or an integer that is -1
            or beyond int64.
    """
    listed = isinstance(ids, (Sequence, Tensor)) and not isinstance(ids, (str, bytes))
    if not listed and not hasattr(ids, "__array__"):
        accepted = "a sequence of int or str, an array or a tensor"
        raise TypeError(f"ids must be {accepted}, got {type(ids).__name__}")
    made: Ids
    values = ids if listed else _from_array(ids)
    if not isinstance(values, Tensor) and len(values) and isinstance(values[0], str):
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise TypeError(f"ids must be all str, got {type(value).__name__} for row {row}")
        made = StringIds(tuple(values))
    else:
        made = IntegerIds(_integers("ids", values))
    if len(made) != count:
        raise ValueError(f"ids must be as many as rows, {count}, got {len(made)}")
    made.check_unique()
    if isinstance(made, IntegerIds) and bool((made.values == ABSENT).any()):
        row = int((made.values == ABSENT).nonzero()[0])
        raise ValueError(f"ids must not be {ABSENT}, which stands for no row, got it for row {row}")
    return made


def joined(parts: Sequence[Ids | None]) -> Ids | None:
    """The ids of several corpora, one after another, on the CPU. They have to be of one kind."""
    made: Ids
    strings = [part.values for part in parts if isinstance(part, StringIds)]
    integers = [part.values.cpu() for part in parts if isinstance(part, IntegerIds)]
    if len(strings) == len(parts):
        made = StringIds(tuple(chain.from_iterable(strings)))
    elif len(integers) == len(parts):
        made = IntegerIds(torch.cat(integers))
    elif strings or integers:
        raise ValueError("shards must all have int ids, all have str ids or all have none")
    else:
        return None
    made.check_unique()
    return made


def _from_array(array: Any) -> Any:
    import numpy as np

    array = np.asarray(array)
    if array.dtype.kind in "OU":
        return array.tolist() if array.ndim == 1 else [array]
    if not np.can_cast(array.dtype, np.int64):
        raise TypeError(f"ids must be int64 or str, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))


def _integers(name: str, values: Any) -> Tensor:
    """int64 `[C]`, from an iterable, an array or a tensor of integers."""
    if hasattr(values, "__array__") and not isinstance(values, Tensor):
        values = _from_array(values)
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"{name} must be int64 or str, got {values.dtype}")
        if values.dim() != 1:
            raise ValueError(f"{name} must have shape [N], got {list(values.shape)}")
        return values.detach().to(torch.int64)
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable of ids, got {type(values).__name__}")
    numbers = []
    for place, value in enumerate(values):
        number = index_of(value)
        if number is None:
            got = type(value).__name__
            raise TypeError(f"{name} must be all int, got {got} at place {place}")
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"{name} must fit int64, got {number} at place {place}")
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.int64)


def _refuse_repeated(value: int | str, first: int, second: int) -> None:
    raise ValueError(f"ids must be unique, got {value!r} for rows {first} and {second}")
