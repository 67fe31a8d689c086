"""Tensors that share the memory of a NumPy array or of a mapped file: nothing is copied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import as_int
from ..files import existing
from .checks import CORPUS_DTYPES

if TYPE_CHECKING:
    import numpy as np


class _Lent:
    """Presents a read-only array as one that may be written, which torch takes without a warning.

    Rows are never written. Writing to those of a read-only file ends the process.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array
        described = array.__array_interface__
        self.__array_interface__ = {**described, "data": (described["data"][0], False)}


def as_rows(rows: Any) -> Tensor:
    """`rows` as a tensor `[N, D]` over the same memory.

    Raises:
        TypeError: not a tensor or array of a dtype that can be searched.
        ValueError: another number of dimensions, or a layout in which rows are not contiguous.
    """
    if not isinstance(rows, Tensor):
        if not hasattr(rows, "__array_interface__"):
            accepted = "a torch.Tensor or a NumPy array"
            raise TypeError(f"rows must be {accepted}, got {type(rows).__name__}")
        rows = _from_numpy(rows)
    if rows.dtype not in CORPUS_DTYPES:
        raise TypeError(f"rows must be float32, float16, bfloat16 or int8, got {rows.dtype}")
    if rows.dim() != 2:
        raise ValueError(f"rows must have shape [N, D], got {list(rows.shape)}")
    if rows.shape[0] > 0 and rows.shape[1] > 1 and rows.stride(1) != 1:
        strides = list(rows.stride())
        raise ValueError(f"rows must have adjacent columns, got strides {strides}: copy them first")
    return rows.detach()


def tensor_over(data: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Bytes `[n]`, perhaps of a mapped file, as values over the same memory. Never write to it."""
    import numpy as np

    if not len(data):
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(np.asarray(_Lent(data))).view(dtype)


def map_file(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None,
    width: int | None,
    offset: int,
    count: int | None,
) -> Tensor:
    """Rows of a file, mapped into memory read-only; see `Corpus.from_file`."""
    file = Path(existing(path))
    if not file.is_file():
        raise ValueError(f"path must be a file, got {str(file)!r}")
    offset = as_int("offset", offset, 0)
    count = None if count is None else as_int("count", count, 0)
    if file.suffix == ".npy":
        rows = _map_npy(file, dtype, offset)
        if width is not None and rows.shape[1] != width:
            raise ValueError(f"width must be {rows.shape[1]}, that of {str(file)!r}, got {width}")
    else:
        rows = _map_raw(file, dtype, width, offset)
    if count is not None and count > len(rows):
        raise ValueError(
            f"count must be at most {len(rows)}, the rows of {str(file)!r}, got {count}"
        )
    return rows[:count]


def _map_npy(file: Path, dtype: torch.dtype | None, offset: int) -> Tensor:
    import numpy as np

    if dtype is not None or offset != 0:
        raise ValueError(f"dtype and offset must not be given for {str(file)!r}: it has its own")
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # which unpickles nothing
    except (ValueError, EOFError) as error:
        raise ValueError(f"path {str(file)!r} is not a .npy file of numbers: {error}") from None
    try:
        return as_rows(array)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} in {str(file)!r}") from None


def _map_raw(file: Path, dtype: torch.dtype | None, width: int | None, offset: int) -> Tensor:
    import numpy as np

    if dtype not in CORPUS_DTYPES:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or int8, got {dtype}")
    width = as_int("width", width, 1)
    if offset % dtype.itemsize:
        raise ValueError(f"offset must be a multiple of {dtype.itemsize} bytes, got {offset}")
    row = width * dtype.itemsize
    size = file.stat().st_size - offset
    if size < 0:
        raise ValueError(
            f"offset must be at most {size + offset}, the size of {str(file)!r}, got {offset}"
        )
    if size % row:
        raise ValueError(
            f"path {str(file)!r} must hold rows of {row} bytes after offset {offset}, got {size}"
        )
    if size == 0:
        return torch.empty(0, width, dtype=dtype)
    array = np.memmap(file, dtype=np.int8, mode="r", offset=offset, shape=(size,))
    return tensor_over(array, dtype).view(-1, width)


def _from_numpy(array: Any) -> Tensor:
    import numpy as np

    array = np.asarray(array)
    bfloat16 = array.dtype.name == "bfloat16"  # as ml_dtypes has it
    if bfloat16:
        array = array.view(np.int16)
    if array.dtype.name not in ("float32", "float16", "int16" if bfloat16 else "int8") or (
        not array.dtype.isnative
    ):
        raise TypeError(f"rows must be float32, float16, bfloat16 or int8, got {array.dtype}")
    itemsize = array.dtype.itemsize
    if any(stride < 0 or stride % itemsize for stride in array.strides) or not array.flags.aligned:
        strides = list(array.strides)
        accepted = "aligned and whole values apart"
        raise ValueError(f"rows must be {accepted}, got byte strides {strides}: copy them first")
    tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Lent(array)))
    return tensor.view(torch.bfloat16) if bfloat16 else tensor
