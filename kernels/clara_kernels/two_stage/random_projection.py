"""A first stage of random projections: it learns nothing from the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import as_int
from ..corpus.corpus import Corpus
from ..cosine_topk.rows import require_corpus
from ..select_topk.noise import philox4x32
from .first_stage import ReducedCorpus

_ROUNDS = 4
_WORD = 0xFFFFFFFF


class RandomProjection(ReducedCorpus):
    """Sums of randomly chosen coordinates with random signs, which keep angles on average.

    This is a sparse sign embedding (Nelson and Nguyên, 2013): four times, the D coordinates are
    dealt in a random order to `width` sums, about D / width to each, every one with a random sign.
    The cosine of two projections differs from that of the vectors by about 1/√width. The D × width
    matrix is never built: the stage holds 36 bytes for each coordinate.

    Orders and signs follow from the seed alone and are the same everywhere: for deal r of P places,
    D rounded up to a multiple of `width`, words w are Philox4x32-10 of the counter (i, r, 0, 1)
    under the key (seed mod 2³², seed div 2³²), i from 0 to P - 1. Place j holds the coordinate of
    the j-th smallest w₀ · 2³¹ + ⌊w₁ / 2⌋, negated where bit 0 of w₂ of i = j is set, and belongs to
    sum j mod `width`. Coordinates from D on are 0.

    Args:
        corpus: `[N, D]`.
        width: values to keep of each row, 1 to D.
        seed: 0 to 2⁶⁴ - 1.
        dtype: of these values: int8, one byte each, float16, bfloat16 or float32.

    Raises:
        TypeError: an argument is not of the stated type.
        ValueError: width, seed or dtype is out of range.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, RandomProjection
        >>> corpus = Corpus(torch.randn(50, 64))
        >>> first = RandomProjection(corpus, 16, seed=1)
        >>> first.candidates(corpus.rows[:2], 10).shape
        torch.Size([2, 10])
    """

    kind = "RandomProjection"

    def __init__(
        self, corpus: Corpus, width: int, seed: int = 0, dtype: torch.dtype = torch.int8
    ) -> None:
        require_corpus("corpus", corpus)
        width = as_int("width", width, 1)
        if width > corpus.width:
            raise ValueError(f"width must be at most the corpus' {corpus.width}, got {width}")
        seed = as_int("seed", seed, 0)
        if seed >= 1 << 64:
            raise ValueError(f"seed must be below 2⁶⁴, got {seed}")
        self.seed = seed
        self._deal(corpus.width, width, corpus.device)
        self._keep(corpus, width, dtype)

    def reduce(self, vectors: Tensor) -> Tensor:
        """float32 `[C, width]` of float32 `[C, D]`."""
        count, width = len(vectors), self._reduced
        vectors = torch.nn.functional.pad(vectors, (0, self._order.shape[1] - vectors.shape[1]))
        total = vectors.new_zeros(count, width)
        for order, signs in zip(self._order, self._signs):
            dealt = vectors.index_select(1, order).mul_(signs)
            total += dealt.unflatten(1, (-1, width)).sum(1)
        return total

    def _deal(self, wide: int, width: int, device: torch.device) -> None:
        self._reduced = width
        places = -(-wide // width) * width
        order, signs = [], []
        for deal in range(_ROUNDS):
            column = torch.arange(places)
            zero = torch.zeros_like(column)
            counter = (column, zero + deal, zero, zero + 1)
            words = philox4x32(counter, (self.seed & _WORD, self.seed >> 32))
            keys = (words[0] << 31) | (words[1] >> 1)
            order.append(keys.argsort(stable=True))
            signs.append(1 - 2 * (words[2] & 1).to(torch.int8))
        self._order = torch.stack(order).to(device)  # [rounds, D, up to a multiple of width]
        self._signs = torch.stack(signs).to(device)

    def _settings(self) -> dict[str, int]:
        return {"seed": self.seed}

    @classmethod
    def _restored(cls, codes: Corpus, width: int, settings: dict[str, int]) -> RandomProjection:
        made = object.__new__(cls)
        made.seed = settings["seed"]
        if not 1 <= codes.width <= width or not 0 <= made.seed < 1 << 64:
            raise ValueError(f"{codes.width} values of {width} with seed {made.seed} cannot be")
        made._codes, made._width = codes, width
        made._deal(width, codes.width, codes.device)
        return made
