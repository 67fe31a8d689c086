"""First stages of a two-stage search: they find candidates with short versions of long rows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..checks import as_int, require_same_device, require_shape
from ..corpus.corpus import Corpus
from ..cosine_topk.checks import CORPUS_DTYPES, MOST_FOUND, require_queries
from ..cosine_topk.op import cosine_topk
from ..cosine_topk.rows import require_corpus
from ..files import existing, replacing
from ..quantization import quantize_memory
from ..slices import row_slices

CHUNK_ELEMENTS = 1 << 22  # float32 values of the corpus that are held at a time: 16 MiB
_FORMAT = "clara_kernels.first_stage.1"
_Stage = TypeVar("_Stage", bound="ReducedCorpus")


class FirstStage(Protocol):
    """Proposes candidate rows for an exact search.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, FirstStage, TwoStageSearch
        >>> class Always:
        ...     def candidates(self, queries, count):
        ...         return torch.arange(count).expand(len(queries), count)
        >>> first: FirstStage = Always()
        >>> search = TwoStageSearch(first, Corpus(torch.eye(6)), oversampling=2)
        >>> search.search(torch.eye(6)[[1]], 1)[1]  # among rows 0 and 1
        tensor([[1]])
    """

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """Propose rows for each query.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16.
            count: how many.

        Returns:
            int64 `[B, count]`, row numbers in any order, -1 where there are no more.
        """
        ...


class ReducedCorpus(ABC):
    """A first stage that stores each row as a shorter vector and searches those exactly.

    Subclasses define how vectors are shortened. The short vectors are a `Corpus` on the device of
    the original corpus. The original rows are not stored.
    """

    kind = ""
    most_candidates = MOST_FOUND
    _codes: Corpus
    _width: int

    @abstractmethod
    def reduce(self, vectors: Tensor) -> Tensor:
        """float32 `[C, width of codes]` of float32 `[C, D]`, up to a positive factor per row."""

    @property
    def codes(self) -> Corpus:
        """The shortened rows."""
        return self._codes

    @property
    def width(self) -> int:
        """D of the original rows and of queries."""
        return self._width

    def __len__(self) -> int:
        return len(self._codes)

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """Find the rows whose shortened vectors have the highest cosine to the shortened query.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on the device of `codes`.
            count: 1 to 2,048.

        Returns:
            int64 `[B, count]`, the best first, -1 where the corpus has no more rows.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: shapes or devices do not match, or count is out of range.
        """
        require_stage_queries(queries, self._width)
        require_same_device("queries", queries, "codes", self._codes.rows)
        count = as_int("count", count, 1)
        if count > self.most_candidates:
            raise ValueError(f"count must be at most {self.most_candidates}, got {count}")
        reduced = unit(self.reduce(unit(queries)))
        return padded(cosine_topk(reduced, self._codes, count)[1], count)

    def to(self: _Stage, device: torch.device | str | int) -> _Stage:
        """Return the stage on a device: this one if it is there already, else a copy."""
        codes = self._codes.to(device)
        return (
            self if codes is self._codes else self._restored(codes, self._width, self._settings())
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write codes and settings as a safetensors file. Replaces an existing file.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
        """
        safetensors = _safetensors()
        settings = {name: str(value) for name, value in self._settings().items()}
        described = {"format": _FORMAT, "kind": self.kind, "width": str(self._width), **settings}
        codes = {"codes": self._codes.rows.contiguous()}
        with replacing(path) as temporary:
            safetensors.torch.save_file(codes, temporary, metadata=described)

    @classmethod
    def load(cls: type[_Stage], path: str | os.PathLike[str]) -> _Stage:
        """Load a stage that `save` wrote, on the CPU. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ModuleNotFoundError: safetensors is not installed.
            ValueError: the file does not hold such a stage, or is damaged.
        """
        name = existing(path)
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(name, framework="pt") as file:
                described = dict(file.metadata() or {})
                kind = described.get("kind")
                if described.pop("format", None) != _FORMAT or kind != cls.kind:
                    raise ValueError(f"it holds {kind or 'something else'}")
                settings = {key: int(value) for key, value in described.items() if key != "kind"}
                codes = file.get_tensor("codes")
            return cls._restored(Corpus(codes), settings.pop("width"), settings)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"path {name!r} must be a saved {cls.kind}: {error}") from None

    @abstractmethod
    def _settings(self) -> dict[str, int]:
        """The numbers that `reduce` depends on."""

    @classmethod
    @abstractmethod
    def _restored(cls: type[_Stage], codes: Corpus, width: int, settings: dict[str, int]) -> _Stage:
        """A stage from its parts; ValueError if they do not match."""

    def _keep(self, corpus: Corpus, width: int, dtype: torch.dtype) -> None:
        self._width = corpus.width
        self._codes = reduced_corpus(corpus, self.reduce, width, dtype)


class MeanPooled(ReducedCorpus):
    """The mean of each document's m memory tokens: H values in place of D = m·H.

    Args:
        corpus: `[N, m·H]`, the memory tokens of a document one after another.
        memory_tokens: m.
        dtype: of the H values: int8, one byte each, float16, bfloat16 or float32.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: memory_tokens does not divide the corpus' width, or dtype is not one of these.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, MeanPooled
        >>> corpus = Corpus(torch.randn(50, 4 * 16))  # 4 memory tokens of 16 values
        >>> first = MeanPooled(corpus, 4)
        >>> first.codes
        Corpus(50 × 16 int8 on cpu, 0.0 MB)
        >>> first.candidates(corpus.rows[:2], 10).shape
        torch.Size([2, 10])
    """

    kind = "MeanPooled"

    def __init__(self, corpus: Corpus, memory_tokens: int, dtype: torch.dtype = torch.int8) -> None:
        require_corpus("corpus", corpus)
        memory_tokens = as_int("memory_tokens", memory_tokens, 1)
        if corpus.width % memory_tokens:
            accepted = f"a divisor of the corpus' width, {corpus.width}"
            raise ValueError(f"memory_tokens must be {accepted}, got {memory_tokens}")
        self.memory_tokens = memory_tokens
        self._keep(corpus, corpus.width // memory_tokens, dtype)

    def reduce(self, vectors: Tensor) -> Tensor:
        """float32 `[C, H]`: the mean over m of float32 `[C, m·H]`."""
        return vectors.unflatten(1, (self.memory_tokens, -1)).mean(1)

    def _settings(self) -> dict[str, int]:
        return {"memory_tokens": self.memory_tokens}

    @classmethod
    def _restored(cls, codes: Corpus, width: int, settings: dict[str, int]) -> MeanPooled:
        made = object.__new__(cls)
        made.memory_tokens = settings["memory_tokens"]
        if made.memory_tokens < 1 or codes.width * made.memory_tokens != width:
            raise ValueError(f"{made.memory_tokens} tokens of {codes.width} are not {width} values")
        made._codes, made._width = codes, width
        return made


def reduced_corpus(
    corpus: Corpus, reduce: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype
) -> Corpus:
    """A corpus of `reduce`'s vectors in place of the rows, made chunk by chunk."""
    if dtype not in CORPUS_DTYPES:
        raise ValueError(f"dtype must be int8, float16, bfloat16 or float32, got {dtype}")
    codes = torch.empty(len(corpus), width, dtype=dtype, device=corpus.device)
    for part, vectors in unit_chunks(corpus):
        short = unit(reduce(vectors))
        codes[part] = quantize_memory(short)[0] if dtype == torch.int8 else short.to(dtype)
    return Corpus(codes)


def unit_chunks(corpus: Corpus) -> Iterator[tuple[slice, Tensor]]:
    """Rows of length 1, float32, a chunk at a time, and where they are in the corpus."""
    for part in row_slices(len(corpus), corpus.width, CHUNK_ELEMENTS):
        vectors = unit(corpus.rows[part])
        # An int8 row with scale 0 is a zero vector, whatever its codes.
        yield part, vectors.masked_fill_((corpus.inverse_norms[part] == 0)[:, None], 0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, float32, in their direction; zero vectors stay so."""
    vectors = vectors.detach().to(torch.float32, copy=True)
    if not vectors.numel():
        return vectors
    # The largest value comes first: the square of a large or small one is not a float32.
    largest = vectors.abs().amax(1, keepdim=True)
    vectors /= torch.where(largest == 0, 1, largest)
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors.div_(torch.where(norms == 0, 1, norms))


def padded(rows: Tensor, count: int) -> Tensor:
    """int64 `[B, count]`, -1 in the places that are added."""
    return torch.nn.functional.pad(rows, (0, count - rows.shape[1]), value=-1)


def require_stage_queries(queries: Any, width: int) -> None:
    """TypeError or ValueError unless these are queries `[B, width]`."""
    require_queries(queries)
    require_shape("queries", queries, "[B, {}]", queries.shape[1] == width, width)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "first stages are saved with safetensors: pip install safetensors"
        ) from None
    return safetensors
