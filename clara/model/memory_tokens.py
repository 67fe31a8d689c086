"""CLaRa's trained embedding rows: memory tokens and the two markers.

The backbone's vocabulary never grows. The rows are separate parameters. They replace the input
embeddings at `Marker` ids, and they are saved alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clara.text.tokenizer import Marker


class MemoryTokens(nn.Module):
    """Trained input embeddings of the memory slots and markers, in float32.

    Attributes:
        memory: `[m, H]`, or `[1, H]` when all slots share one row.
        encode: `[1, H]`, in front of every text that is compressed.
        separator: `[1, H]`, after each document's memory in a prompt.
    """

    def __init__(self, slots: int, hidden_size: int, *, distinct: bool = True) -> None:
        super().__init__()
        self.slots = slots
        self.memory = nn.Parameter(_rows(slots if distinct else 1, hidden_size))
        self.encode = nn.Parameter(_rows(1, hidden_size))
        self.separator = nn.Parameter(_rows(1, hidden_size))

    @torch.no_grad()
    def initialise(self, embeddings: Tensor, *, seed: int = 0) -> None:
        """Draw the rows from a normal with the mean and deviation of the vocabulary's rows.

        Args:
            embeddings: `[V, H]`, the backbone's input embeddings.
        """
        mean = embeddings.mean(0, dtype=torch.float32).cpu()
        deviation = embeddings.float().std(0).cpu()
        generator = torch.Generator().manual_seed(seed)
        for rows in self.parameters():
            noise = torch.randn(rows.shape, generator=generator, dtype=torch.float32)
            rows.copy_(mean + deviation * noise)

    def slot_rows(self, count: int) -> Tensor:
        """`[count · m, H]`: the memory rows of `count` documents, one after the other.

        With one shared row, m is 1: `count` is the number of slots.
        """
        return self.memory.expand(self.slots, -1).repeat(count, 1)

    def splice(self, embeddings: Tensor, ids: Tensor, memory: Tensor) -> Tensor:
        """Put our rows where their ids stand.

        Args:
            embeddings: `[..., H]`, embeddings of `ids` with any value at negative ids.
            ids: `[...]` int64 with `Marker` values.
            memory: `[number of Marker.MEMORY in ids, H]`, in order of appearance.

        Returns:
            `[..., H]` in the dtype of `embeddings`; differentiable in our rows and `memory`.
        """
        dtype = embeddings.dtype
        for marker, row in (
            (Marker.ENCODE, self.encode),
            (Marker.SEPARATOR, self.separator),
        ):
            embeddings = torch.where((ids == marker)[..., None], row[0].to(dtype), embeddings)
        slots = (ids == Marker.MEMORY)[..., None].expand_as(embeddings)
        return embeddings.masked_scatter(slots, memory.to(dtype))


def _rows(count: int, width: int) -> Tensor:
    return torch.zeros(count, width, dtype=torch.float32)
