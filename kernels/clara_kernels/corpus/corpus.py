"""A corpus to search: it checks rows, scales and ids once, and computes the norms once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import require_same_device, require_shape
from ..cosine_topk.arrays import as_rows, map_file
from ..cosine_topk.ids import Ids, make_ids
from ..cosine_topk.rows import CorpusRows
from .search import search


class Corpus(CorpusRows):
    """Rows to search, with their norms stored, so that a search reads each row once.

    The constructor reads the rows once, to compute their norms, and does not copy them: they stay
    in their tensor, NumPy array or file. A corpus does not change after it was made, and the owner
    of the memory must not change it either.

    Args:
        rows: `[N, D]`, float32, float16, bfloat16 or int8: a tensor on any device, or a NumPy
            array, also a read-only `np.memmap`. Columns must be adjacent; rows may be any stride
            apart.
        scales: float32 `[N]`, for int8 rows only: row i stands for the values
            `rows[i] * scales[i]`, as `quantize_memory` returns them. No positive scale changes a
            cosine; 0 makes the row a zero vector, which scores 0.
        ids: a name for each row, N different integers of int64 other than -1, or N different
            strings, in a sequence, an array or a tensor. None: a row's id is its number.

    Raises:
        TypeError: an argument is not of a stated type.
        ValueError: shapes or devices do not match, ids repeat, a scale is negative, or a row or
            scale holds a NaN or an infinity; the message names it.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus
        >>> corpus = Corpus(torch.eye(3), ids=["a", "b", "c"])
        >>> scores, ids = corpus.search(torch.tensor([[0.0, 1.0, 0.5]]), 2)
        >>> ids
        [['b', 'c']]
        >>> corpus[1:]
        Corpus(2 × 3 float32 on cpu, 0.0 MB, with ids)
    """

    __slots__ = ()

    def __init__(self, rows: Any, *, scales: Any = None, ids: Any = None) -> None:
        rows = as_rows(rows)
        named = None if ids is None else make_ids(ids, len(rows))
        if scales is not None:
            scales = _as_scales(scales, rows)
        norms = torch.ops.clara.inverse_norms(rows)
        _require_finite_rows(norms, named)
        if scales is not None:
            norms[scales == 0] = 0
        self._fill(rows, norms, scales, None if named is None else named.to(rows.device))

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        width: int | None = None,
        *,
        offset: int = 0,
        count: int | None = None,
        scales: Any = None,
        ids: Any = None,
    ) -> Corpus:
        """Map a file into memory, read-only, without loading it.

        The file must keep its size while the corpus is used. Writing to `rows` of such a corpus
        ends the process.

        Args:
            path: values row after row in this machine's byte order, or a `.npy` file.
            dtype: float32, float16, bfloat16 or int8; None for a `.npy` file, which has its own.
            width: D; None for a `.npy` file.
            offset: bytes before the first row, a multiple of the size of a value.
            count: rows to take; None takes all until the end of the file.
            scales, ids: as for `Corpus`.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: an argument or the values of a `.npy` file are not of a stated type.
            ValueError: the file does not hold such rows, or a reason that `Corpus` gives.
        """
        return cls(map_file(path, dtype, width, offset, count), scales=scales, ids=ids)

    @classmethod
    def with_norms(cls, rows: Tensor, inverse_norms: Tensor) -> Corpus:
        """A corpus whose norms are known, so that its rows are not read.

        Args:
            rows: as for `Corpus`, on the CPU.
            inverse_norms: float32 `[N]`, the attribute of that name of a corpus of these rows.

        Raises:
            TypeError, ValueError: `rows` is not as stated, or the norms are of another shape.
        """
        rows = as_rows(rows)
        fits = inverse_norms.shape == rows.shape[:1] and inverse_norms.dtype == torch.float32
        require_shape("inverse_norms", inverse_norms, "[{}]", fits, len(rows))
        return cls._like(rows, inverse_norms, None, None)

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        mask: Tensor | None = None,
        ids: Iterable[int] | Sequence[str] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | list[list[str]]]:
        """Find the k rows with the highest cosine to each query, exactly; see `cosine_topk`.

        If the queries are on a GPU and the corpus on the CPU, the GPU searches it, as in
        `streamed_topk`.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16.
            k: 1 to 2,048; a larger k is accepted if the corpus has at most 2,048 rows.
            mask: bool `[N]` on the corpus' device; only rows where it is True are found.
            ids: search only these ids. For a few ids the search reads only their rows. With
                `mask`, a row must be allowed by both.

        Returns:
            Scores `[B, min(k, N)]`, float32, descending, -inf where fewer rows are allowed; and
            the rows found. These are row numbers or integer ids, int64, -1 where there is none;
            or, for string ids, one list per query, shorter where fewer rows were found.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: shapes or devices do not match, k is out of range, the corpus does not have
                an id, or it has no ids at all.
        """
        return search(queries, self, self._ids, k, mask, ids)


def _as_scales(scales: Any, rows: Tensor) -> Tensor:
    if rows.dtype != torch.int8:
        raise ValueError(f"scales must be None for {rows.dtype} rows: they are for int8")
    if not isinstance(scales, Tensor):
        if not hasattr(scales, "__array__"):
            accepted = "a torch.Tensor or a NumPy array"
            raise TypeError(f"scales must be {accepted}, got {type(scales).__name__}")
        scales = torch.tensor(scales)
    if scales.dtype != torch.float32:
        raise TypeError(f"scales must be float32, got {scales.dtype}")
    matches = scales.dim() == 1 and len(scales) == len(rows)
    require_shape("scales", scales, "[{}]", matches, len(rows))
    require_same_device("scales", scales, "rows", rows)
    wrong = (~(scales >= 0) | scales.isinf()).nonzero()
    if len(wrong):
        row = int(wrong[0])
        value = float(scales[row])
        raise ValueError(f"scales must be finite and not negative, got {value} for row {row}")
    return scales.detach()


def _require_finite_rows(norms: Tensor, ids: Ids | None) -> None:
    wrong = norms.isnan().nonzero()
    if len(wrong):
        row = int(wrong[0])
        name = "" if ids is None else f" (id {ids.name(row)})"
        raise ValueError(f"rows must be finite, got NaN or infinity in row {row}{name}")
