"""Pack documents of unequal length into one sequence, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clara.text.prompts import Prompt
from clara.text.tokenizer import EncodedText, Marker


@dataclass(frozen=True)
class Branch:
    """The beginning that a sequence shares with another one of its batch, and does not repeat.

    Attributes:
        trunk: place in the batch of the sequence that begins like it, which is no branch itself.
        rows: how many of that sequence's first rows stand in front of its own.
    """

    trunk: int
    rows: int


@dataclass(frozen=True)
class PackedBatch:
    """`N` sequences, each ending in `n_memory` memory slots, one after the other.

    Attributes:
        ids: int64 `[T]` with `Marker` values.
        lengths: rows of each sequence in `ids`, their sum is `T`.
        n_memory: memory slots at the end of each sequence.
        rows: position of each sequence in the caller's list.
        branches: of the last sequences of the batch, which begin with rows of another one; mostly
            none. See `clara.text.branches`.
    """

    ids: Tensor
    lengths: list[int]
    n_memory: int
    rows: list[int]
    branches: list[Branch] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        return replace(self, ids=self.ids.to(device, non_blocking=non_blocking))

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 `[N + 1]`, where each sequence starts and the last one ends."""
        ends = torch.tensor([0, *self.lengths], dtype=torch.int32)
        return ends.cumsum(0, dtype=torch.int32).to(self.ids.device)

    @property
    def whole(self) -> int:
        """How many sequences come before the branches."""
        return len(self.lengths) - len(self.branches)

    @property
    def trunks(self) -> PackedBatch:
        """The batch without its branches."""
        count = self.whole
        rows = sum(self.lengths[:count])
        return replace(
            self,
            ids=self.ids[:rows],
            lengths=self.lengths[:count],
            rows=self.rows[:count],
            branches=[],
        )

    @property
    def reaches(self) -> list[int]:
        """Length of each sequence with the rows that it shares: the positions it takes."""
        shared = [0] * self.whole + [branch.rows for branch in self.branches]
        return [before + own for before, own in zip(shared, self.lengths, strict=True)]

    @property
    def position_ids(self) -> Tensor:
        """int64 `[T]`, counting from 0 in each sequence, shared rows included."""
        own = [
            torch.arange(reach - length, reach)
            for reach, length in zip(self.reaches, self.lengths, strict=True)
        ]
        return torch.cat(own).to(self.ids.device)

    @property
    def memory_rows(self) -> Tensor:
        """int64 `[N · n_memory]`, positions of the memory slots in the packed sequence."""
        ends = self.cu_seqlens[1:].long()
        offsets = torch.arange(-self.n_memory, 0, device=ends.device)
        return (ends[:, None] + offsets).flatten()


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts with answers, one after the other.

    Attributes:
        batch: the prompts; memory slots lie anywhere in them, so `n_memory` is 0.
        targets: int64 `[P]`, positions of the answers' tokens in the packed sequence.
    """

    batch: PackedBatch
    targets: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device | str = "cpu") -> PackedPrompts:
        positions, start = [torch.empty(0, dtype=torch.long)], 0
        for prompt in prompts:
            positions.append(torch.arange(start + prompt.answer_start, start + len(prompt.ids)))
            start += len(prompt.ids)
        batch = PackedBatch(
            ids=torch.tensor([i for p in prompts for i in p.ids], dtype=torch.long, device=device),
            lengths=[len(p.ids) for p in prompts],
            n_memory=0,
            rows=list(range(len(prompts))),
        )
        return cls(batch, torch.cat(positions).to(device))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedPrompts:
        targets = self.targets.to(device, non_blocking=non_blocking)
        return PackedPrompts(self.batch.to(device, non_blocking), targets)


def compressor_input(
    document: Sequence[int], *, bos: int | None, eos: int | None, n_memory: int
) -> list[int]:
    """`<enc> <bos> document <eos> mem_1 … mem_m`; `eos=None` for a text that was cut off."""
    begin = [Marker.ENCODE.value] + ([] if bos is None else [bos])
    end = [] if eos is None else [eos]
    return [*begin, *document, *end, *[Marker.MEMORY.value] * n_memory]


def pack(
    sequences: Sequence[Sequence[int]],
    *,
    n_memory: int,
    batch_tokens: int,
    device: torch.device,
) -> Iterator[PackedBatch]:
    """Group sequences, longest first, into batches of at most `batch_tokens` tokens.

    A sequence longer than the budget gets a batch of its own. Sequences of like length end up
    together, which lets attention treat those of equal length at once.
    """
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    rows: list[int] = []
    tokens = 0
    for row in order:
        if rows and tokens + len(sequences[row]) > batch_tokens:
            yield _packed(sequences, rows, n_memory, device)
            rows, tokens = [], 0
        rows.append(row)
        tokens += len(sequences[row])
    if rows:
        yield _packed(sequences, rows, n_memory, device)


def _packed(
    sequences: Sequence[Sequence[int]],
    rows: list[int],
    n_memory: int,
    device: torch.device,
) -> PackedBatch:
    ids = [token for row in rows for token in sequences[row]]
    return PackedBatch(
        ids=torch.tensor(ids, dtype=torch.long, device=device),
        lengths=[len(sequences[row]) for row in rows],
        n_memory=n_memory,
        rows=rows,
    )


def chunk_spans(text: str, encoded: EncodedText, limit: int) -> list[tuple[int, int]]:
    """Cut a text into chunks of at most `limit` tokens, between sentences where possible.

    A cut is moved back by up to a quarter of the limit to the end of a line or sentence, or
    else of a word. Every token is in exactly one chunk.

    Returns:
        First and past-the-end token of each chunk.
    """
    total = len(encoded.ids)
    spans = []
    begin = 0
    while total - begin > limit:
        end = begin + limit
        lowest = max(begin + 1, end - limit // 4)
        cut = max(
            range(lowest, end + 1),
            key=lambda i: (_boundary(text, encoded.starts[i]), i),
        )
        spans.append((begin, cut))
        begin = cut
    spans.append((begin, total))
    return spans


def _boundary(text: str, position: int) -> int:
    """How good a place to cut `position` is: 2 after a sentence, 1 between words, else 0."""
    before = text[max(0, position - 2) : position].rstrip()[-1:]
    spaced = text[position : position + 1].isspace() or text[position - 1 : position].isspace()
    if not spaced:
        return 0
    after_line = "\n" in text[max(0, position - 1) : position + 1]
    return 2 if after_line or before in (".", "!", "?", "…", "。") else 1
