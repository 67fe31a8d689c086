"""Search of a corpus that lies on several devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..cosine_topk.checks import checked_k, require_mask, require_queries
from ..cosine_topk.ids import joined
from ..cosine_topk.merge import merge_topk, widened
from ..cosine_topk.rows import require_corpus
from .corpus import Corpus
from .search import listed_rows, search_rows


class ShardedCorpus:
    """Several corpora, searched as one. Each stays on its device.

    Rows are numbered over the shards in their order. On devices of one kind, a search finds the
    same scores and rows as in one corpus with all rows.

    Args:
        shards: at least one corpus, all of one width and dtype, on any devices; some may be empty.
            All have integer ids, all have string ids, or none has ids. No id may occur twice.

    Raises:
        TypeError: a shard is not a Corpus.
        ValueError: there are no shards, they do not match, or ids repeat.

    Examples:
        >>> import torch
        >>> from clara_kernels import Corpus, ShardedCorpus
        >>> shards = ShardedCorpus.split(Corpus(torch.eye(4)), ["cpu", "cpu"])
        >>> shards.first_rows
        (0, 2)
        >>> scores, rows = shards.search(torch.eye(4)[[3]], 1)
        >>> rows
        tensor([[3]])
    """

    def __init__(self, shards: Sequence[Corpus]) -> None:
        shards = tuple(shards)
        if not shards:
            raise ValueError("shards must hold at least one Corpus, got none")
        for place, shard in enumerate(shards):
            require_corpus(f"shards[{place}]", shard)
            for name in ("width", "dtype"):
                expected, got = getattr(shards[0], name), getattr(shard, name)
                if got != expected:
                    accepted = f"the {name} of shards[0], {expected}"
                    raise ValueError(f"shards[{place}] must have {accepted}, got {got}")
        self._shards = shards
        self._first_rows = tuple(accumulate(map(len, shards), initial=0))
        filled = [shard for shard in shards if len(shard)] or shards[:1]
        self._ids = joined([shard._ids for shard in filled])

    @classmethod
    def split(cls, corpus: Corpus, devices: Iterable[torch.device | str | int]) -> ShardedCorpus:
        """Split a corpus into consecutive rows, about equally many on each device.

        Rows on the device of `corpus` stay there; the others are copied.
        """
        targets = list(devices)
        if not targets:
            raise ValueError("devices must hold at least one device, got none")
        count, parts = len(corpus), len(targets)
        bounds = [count * part // parts for part in range(parts + 1)]
        return cls([corpus[a:b].to(to) for a, b, to in zip(bounds, bounds[1:], targets)])

    @property
    def shards(self) -> tuple[Corpus, ...]:
        return self._shards

    @property
    def first_rows(self) -> tuple[int, ...]:
        """The number of each shard's first row."""
        return self._first_rows[:-1]

    @property
    def ids(self) -> Tensor | tuple[str, ...] | None:
        """int64 `[N]` on the CPU or N strings. None: a row's id is its number."""
        return None if self._ids is None else self._ids.public

    @property
    def width(self) -> int:
        """D."""
        return self._shards[0].width

    @property
    def dtype(self) -> torch.dtype:
        return self._shards[0].dtype

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of each shard."""
        return tuple(shard.device for shard in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all that the shards hold."""
        return sum(shard.nbytes for shard in self._shards)

    def __len__(self) -> int:
        return self._first_rows[-1]

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        places = ", ".join(f"{len(shard):,} on {shard.device}" for shard in self._shards)
        return f"ShardedCorpus({len(self):,} × {self.width:,} {dtype}: {places})"

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        mask: Tensor | None = None,
        ids: Iterable[int] | Sequence[str] | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | list[list[str]]]:
        """Find the k rows with the highest cosine to each query; see `Corpus.search`.

        The queries are copied to each shard's device. All GPUs work at the same time; shards on
        the CPU come last, one after another.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on any device.
            k: 1 to 2,048; a larger k is accepted if there are at most 2,048 rows.
            mask: bool `[N]` over the rows of all shards, on any device.
            ids: search only these ids. With `mask`, a row must be allowed by both.

        Returns:
            As `Corpus.search`, on the queries' device.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: shapes do not match, k is out of range, or no shard has an id.
        """
        require_queries(queries)
        k = checked_k(k, len(self))
        if mask is not None:
            require_mask(mask, len(self))
        listed = None if ids is None else listed_rows(self._ids, ids)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        on_cpu = [shard.device.type == "cpu" for shard in self._shards]
        for place in sorted(range(len(on_cpu)), key=on_cpu.__getitem__):
            found[place] = self._search_shard(place, queries, k, mask, listed)
        scores, rows = [], []
        for place, first in enumerate(self.first_rows):
            score, row = (each.to(queries.device) for each in found[place])
            scores.append(score)
            rows.append(torch.where(row < 0, -1, row + first))
        merged = widened(*merge_topk(scores, rows, k), min(k, len(self)))
        return merged[0], merged[1] if self._ids is None else self._ids.take(merged[1])

    def _search_shard(
        self, place: int, queries: Tensor, k: int, mask: Tensor | None, listed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shard, first, end = self._shards[place], *self._first_rows[place : place + 2]
        if mask is not None:
            mask = mask[first:end].to(shard.device, non_blocking=True)
        if listed is not None:
            listed = listed[(listed >= first) & (listed < end)] - first
        here = queries.to(shard.device, non_blocking=shard.device.type == "cuda")
        return search_rows(here, shard, k, mask, listed)
