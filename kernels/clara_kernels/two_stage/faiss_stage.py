"""A first stage that is a FAISS index; needs the extra `faiss`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..checks import as_int
from ..corpus.corpus import Corpus
from ..cosine_topk.rows import require_corpus
from ..files import existing, replacing
from .first_stage import (
    padded,
    require_stage_queries,
    unit,
    unit_chunks,
)

TRAINING_ROWS = 100_000


class Faiss:
    """Candidates from a FAISS index of the rows, scaled to length 1, by inner product.

    If the index needs training, it is trained on up to 100,000 rows, evenly spread. FAISS uses
    `torch.get_num_threads()` threads.

    Args:
        index: a string for `faiss.index_factory`, such as "IVF1024,SQ8", or an index by inner
            product (`faiss.METRIC_INNER_PRODUCT`) of the corpus' width, on the CPU or a GPU. An
            empty index gets the rows; one that is not empty must hold N vectors.
        corpus: `[N, D]`, read in chunks.

    Raises:
        ModuleNotFoundError: faiss is not installed.
        TypeError: an argument is not of the stated type.
        ValueError: FAISS cannot make the index, or it has another metric, width or size.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, Faiss
        >>> corpus = Corpus(torch.randn(50, 16))
        >>> first = Faiss("Flat", corpus)
        >>> first.candidates(corpus.rows[:2], 1).flatten().tolist()
        [0, 1]
    """

    def __init__(self, index: Any, corpus: Corpus) -> None:
        faiss = _faiss()
        require_corpus("corpus", corpus)
        if isinstance(index, str):
            index = _made(faiss, index, corpus.width)
        _require_index(faiss, index)
        if index.d != corpus.width:
            raise ValueError(f"index must have the corpus' width, {corpus.width}, got {index.d}")
        if index.ntotal not in (0, len(corpus)):
            accepted = f"no vectors or the corpus' {len(corpus)}"
            raise ValueError(f"index must hold {accepted}, got {index.ntotal}")
        self.index = index
        if index.ntotal == 0 and len(corpus):
            with _threads(faiss):
                self._fill(corpus)

    @property
    def width(self) -> int:
        """D of the rows and of queries."""
        return self.index.d

    def __len__(self) -> int:
        return self.index.ntotal

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """The rows that the index finds for each query.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on any device; they are copied to the
                CPU for FAISS.
            count: 1 or more; an index on a GPU takes up to 2,048.

        Returns:
            int64 `[B, count]` on the queries' device, -1 where the index found no more.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: queries of another width, or count below 1.
        """
        require_stage_queries(queries, self.width)
        count = as_int("count", count, 1)
        vectors = unit(queries).cpu().numpy()
        if not len(vectors) or not self.index.ntotal:
            return padded(torch.empty(len(vectors), 0, dtype=torch.int64), count).to(queries.device)
        with _threads(_faiss()):
            found = self.index.search(vectors, min(count, self.index.ntotal))[1]
        return padded(torch.from_numpy(found), count).to(queries.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index in FAISS' own format. Replaces an existing file."""
        faiss = _faiss()
        index = self.index
        if hasattr(faiss, "index_gpu_to_cpu") and "Gpu" in type(index).__name__:
            index = faiss.index_gpu_to_cpu(index)
        with replacing(path) as temporary:
            faiss.write_index(index, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Faiss:
        """Load a stage that `save` wrote, on the CPU. FAISS reads the file: only load trusted ones.

        Raises:
            FileNotFoundError: there is no such file.
            ModuleNotFoundError: faiss is not installed.
            ValueError: the file is not an index, or not one by inner product.
        """
        faiss, name = _faiss(), existing(path)
        try:
            index = faiss.read_index(name)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"path {name!r} must be a FAISS index: {reason}") from None
        _require_index(faiss, index)
        made = object.__new__(cls)
        made.index = index
        return made

    def _fill(self, corpus: Corpus) -> None:
        if not self.index.is_trained:
            step = -(-len(corpus) // TRAINING_ROWS)
            sample = torch.cat([vectors.cpu() for _, vectors in unit_chunks(corpus[::step])])
            try:
                self.index.train(sample.numpy())
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(
                    f"index cannot be trained on {len(sample)} rows: {reason}"
                ) from None
        for _, vectors in unit_chunks(corpus):
            self.index.add(vectors.cpu().numpy())


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        message = "a Faiss stage needs faiss: pip install faiss-cpu"
        raise ModuleNotFoundError(message, name="faiss") from None


@contextmanager
def _threads(faiss: Any) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _made(faiss: Any, description: str, width: int) -> Any:
    try:
        return faiss.index_factory(width, description, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"index must be known to FAISS, got {description!r}: {reason}") from None


def _require_index(faiss: Any, index: Any) -> None:
    if not isinstance(index, faiss.Index):
        accepted = "a faiss.Index or what faiss.index_factory takes"
        raise TypeError(f"index must be {accepted}, got {type(index).__name__}")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"index must be by inner product, got metric {index.metric_type}")
