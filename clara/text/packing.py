"""Pack documents of unequal length into one sequence, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from clara.text.prompts import Prompt
from clara.text.tokenizer import EncodedText, Marker


@dataclass(frozen=True)
class CompressorInput:
    """A document or question as the compressor reads it.

    Attributes:
        ids: `<enc> <bos> document <eos> mem_1 … mem_m`, with `Marker` values.
        n_memory: m, memory slots at the end.
        start: index in `ids` of the first token of the document.
        text_tokens: tokens of the document.
        rate: tokens that a slot stands for; None if every slot stands for the whole document.
    """

    ids: list[int]
    n_memory: int
    start: int
    text_tokens: int
    rate: int | None = None

    def span_rows(self, offset: int, width: int) -> list[list[int]]:
        """For each slot the positions of its span's tokens, padded with -1.

        Args:
            offset: position of the sequence in a packed batch.
            width: of a row: the rate, or less where the longest text of a batch is shorter.
        """
        rate = self.rate or 1
        first = offset + self.start
        end = first + self.text_tokens
        return [
            [row if row < end else -1 for row in range(at, at + width)]
            for at in range(first, end, rate)
        ]


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
    """`N` sequences, each ending in its memory slots, one after the other.

    Attributes:
        ids: int64 `[T]` with `Marker` values.
        lengths: rows of each sequence in `ids`, their sum is `T`.
        n_memory: memory slots at the end of each sequence; their sum is M.
        rows: position of each sequence in the caller's list.
        span_rows: int64 `[M, at most rate]`, positions of the tokens that each slot stands for,
            padded with -1; None if every slot stands for the whole document.
        branches: of the last sequences of the batch, which begin with rows of another one; mostly
            none. See `clara.text.branches`.
    """

    ids: Tensor
    lengths: list[int]
    n_memory: list[int]
    rows: list[int]
    span_rows: Tensor | None = None
    branches: list[Branch] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        spans = self.span_rows
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=non_blocking),
            span_rows=None if spans is None else spans.to(device, non_blocking=non_blocking),
        )

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
            n_memory=self.n_memory[:count],
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
        """int64 `[M]`, positions of the memory slots in the packed sequence."""
        uniform = self.memory_counts
        if isinstance(uniform, int):
            ends = self.cu_seqlens[1:].long()
            return (ends[:, None] + torch.arange(-uniform, 0, device=ends.device)).flatten()
        rows, end = [torch.empty(0, dtype=torch.long)], 0
        for length, count in zip(self.lengths, self.n_memory, strict=True):
            end += length
            rows.append(torch.arange(end - count, end))
        return torch.cat(rows).to(self.ids.device)

    @property
    def memory_counts(self) -> int | Tensor:
        """`n_memory` as the operators take it: one number for all, or int32 `[N]`."""
        first = self.n_memory[0] if self.n_memory else 0
        if all(count == first for count in self.n_memory):
            return first
        return torch.tensor(self.n_memory, dtype=torch.int32, device=self.ids.device)


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts with answers, one after the other.

    Attributes:
        batch: the prompts; memory slots lie anywhere in them, so `n_memory` is 0 for each.
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
            n_memory=[0] * len(prompts),
            rows=list(range(len(prompts))),
        )
        return cls(batch, torch.cat(positions).to(device))

    @property
    def predicted(self) -> Tensor:
        """int64 `[P]`, the answers' tokens."""
        return self.batch.ids[self.targets]

    def with_counts(self, counts: Sequence[int]) -> PackedPrompts:
        """The same prompts with other numbers of memory slots.

        Args:
            counts: for each slot there is, in order, how many take its place.
        """
        ids = self.batch.ids
        slots = ids == Marker.MEMORY
        repeats = torch.ones_like(ids)
        repeats[slots] = torch.tensor(counts, dtype=ids.dtype, device=ids.device)
        ends = repeats.cumsum(0)
        lengths = [int(part.sum()) for part in repeats.split(self.batch.lengths)]
        batch = replace(self.batch, ids=ids.repeat_interleave(repeats), lengths=lengths)
        return PackedPrompts(batch, ends[self.targets] - 1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedPrompts:
        targets = self.targets.to(device, non_blocking=non_blocking)
        return PackedPrompts(self.batch.to(device, non_blocking), targets)


def compressor_input(
    document: Sequence[int],
    *,
    bos: int | None,
    eos: int | None,
    n_memory: int | None = None,
    rate: int | None = None,
) -> CompressorInput:
    """`<enc> <bos> document <eos> mem_1 … mem_m`.

    Args:
        eos: None for a text that was cut off.
        n_memory: m, where every slot stands for the whole document.
        rate: else the tokens that a slot stands for: m is their number over `rate`, rounded up.
    """
    begin = [Marker.ENCODE.value] + ([] if bos is None else [bos])
    end = [] if eos is None else [eos]
    if n_memory is None:
        if rate is None:
            raise ValueError("compressor_input needs n_memory or rate")
        n_memory = -(-len(document) // rate)
    ids = [*begin, *document, *end, *[Marker.MEMORY.value] * n_memory]
    return CompressorInput(ids, n_memory, len(begin), len(document), rate)


def pack(
    inputs: Sequence[CompressorInput], *, batch_tokens: int, device: torch.device
) -> Iterator[PackedBatch]:
    """Group inputs of one rate, longest first, into batches of at most `batch_tokens` tokens.

    An input longer than the budget gets a batch of its own. Inputs of like length end up
    together, which lets attention treat those of equal length at once.
    """
    order = sorted(range(len(inputs)), key=lambda row: -len(inputs[row].ids))
    rows: list[int] = []
    tokens = 0
    for row in order:
        if rows and tokens + len(inputs[row].ids) > batch_tokens:
            yield _packed(inputs, rows, device)
            rows, tokens = [], 0
        rows.append(row)
        tokens += len(inputs[row].ids)
    if rows:
        yield _packed(inputs, rows, device)


def _packed(
    inputs: Sequence[CompressorInput], rows: list[int], device: torch.device
) -> PackedBatch:
    chosen = [inputs[row] for row in rows]
    lengths = [len(each.ids) for each in chosen]
    spans = None
    if chosen[0].rate is not None:
        starts = accumulate(lengths, initial=0)
        width = min(chosen[0].rate, max(each.text_tokens for each in chosen))
        padded = [slot for each, at in zip(chosen, starts) for slot in each.span_rows(at, width)]
        spans = torch.tensor(padded, dtype=torch.long, device=device)
    ids = [token for each in chosen for token in each.ids]
    return PackedBatch(
        ids=torch.tensor(ids, dtype=torch.long, device=device),
        lengths=lengths,
        n_memory=[each.n_memory for each in chosen],
        rows=rows,
        span_rows=spans,
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
