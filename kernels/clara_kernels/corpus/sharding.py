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
    """Corpora that are searched as one, each where it is.

    Rows are numbered over the shards in their order. Scores and rows are those of one corpus with
    all rows, on devices of one kind.

    Args:
        shards: corpora of one width and dtype, on any devices, one at least; some may be empty. All
            have integer ids, all have strings, or none has any; none may occur twice.

    Raises:
        TypeError: a shard that is no Corpus.
        ValueError: no shards, shards that do not go together, or ids that repeat.

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
        """Consecutive rows on each device, as many on each, give or take one.

        Rows on the device of `corpus` stay where they are; others are copied.
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
        """int64 `[N]` on the CPU or N strings; None where rows go by their numbers."""
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
        """The k rows of all shards with the highest cosine to each query; see `Corpus.search`.

        Queries are copied to each shard's device. All GPUs are at work before a result is waited
        for; shards on the CPU come last, one after another.

        Args:
            queries: `[B, D]`, float32, float16 or bfloat16, on any device.
            k: 1 to 2,048, or more where there are no more rows than that.
            mask: bool `[N]` over the rows of all shards, on any device.
            ids: ids to search among; with `mask`, what both allow.

        Returns:
            As `Corpus.search`, on the queries' device.

        Raises:
            TypeError: an argument is not of the stated type.
            ValueError: shapes that do not go together, k out of range, or an id that no shard has.
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
