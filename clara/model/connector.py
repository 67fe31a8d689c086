"""The connector of memory form "spans": from a final state to what its span's mean lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST_WEIGHT = 0.4
"""Of the last token of a long span in its mean; the first then has two minus it."""


def weighted_means(embeddings: Tensor, real: Tensor, slope: float = 0.0) -> Tensor:
    """Mean embeddings of spans, in which weights may fall from token to token.

    Token j of a span of n, counted from 0, has the weight `1 + s · ((n - 1) / 2 - j)`, where s is
    the slope, or in long spans what brings the last weight down to `LEAST_WEIGHT`. The weights have
    the mean 1, so memory keeps its scale, and a span of one token is that token.

    A generator that was trained on plain means tends to write the tokens of a vector in the order
    of falling weights, before it is trained on weights at all.

    Args:
        embeddings: `[M, longest span, H]`.
        real: `[M, longest span]` bool, False behind the end of a shorter span.
        slope: at least 0, see `ClaraConfig.span_slope`.

    Returns:
        `[M, H]` in the dtype of `embeddings`.
    """
    weights = real.to(embeddings.dtype)
    count = weights.sum(1, keepdim=True)
    if slope:
        token = torch.arange(real.shape[1], device=real.device, dtype=weights.dtype)
        step = (2 * (1 - LEAST_WEIGHT) / (count - 1).clamp_min(1)).clamp_max(slope)
        weights = weights * (1 + step * ((count - 1) / 2 - token))
    return (embeddings * weights[..., None]).sum(1) / count


class Connector(nn.Module):
    """`mean + W (h / scale)`, computed in float32; `W` starts at zero.

    At zero, memory is the mean of a span's embeddings, which the backbone can read as it is: at one
    token a vector it is the text.

    Args:
        rank: see `ClaraConfig.connector_rank`.

    Attributes:
        up: `[H, H]`, or `[H, r]` where the map is the product of two thin matrices.
        down: `[r, H]`, or None.
        scale: 0-d, what final states are divided by to have the norm of embeddings.
    """

    scale: Tensor

    def __init__(self, hidden_size: int, rank: int | None = None) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(hidden_size, rank or hidden_size, dtype=torch.float32))
        self.down: nn.Parameter | None = None
        if rank is not None:
            self.down = nn.Parameter(torch.zeros(rank, hidden_size, dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, scale: float, *, seed: int = 0) -> None:
        """Set the scale, and draw `down` as `torch.nn.Linear` does it."""
        self.scale.fill_(scale)
        if self.down is not None:
            generator = torch.Generator().manual_seed(seed)
            bound = self.down.shape[1] ** -0.5
            drawn = torch.rand(self.down.shape, generator=generator, dtype=torch.float32)
            self.down.copy_((drawn * 2 - 1) * bound)

    def forward(self, states: Tensor, means: Tensor) -> Tensor:
        """Memory of spans.

        Args:
            states: `[M, H]`, final (normalised) states of the memory slots.
            means: `[M, H]`, the mean embedding of each slot's span.

        Returns:
            `[M, H]` in the connector's dtype, differentiable in everything.
        """
        dtype = self.up.dtype
        with torch.autocast(states.device.type, enabled=False):
            scaled = states.to(dtype) / self.scale
            if self.down is not None:
                scaled = scaled @ self.down.T
            return torch.addmm(means.to(dtype), scaled, self.up.T)


class Connectors(nn.ModuleDict):
    """Connectors by the name of the adapter whose states they read; none in "learned".

    Args:
        adapters: names of adapters.
        rank: see `Connector`.
    """

    def __init__(self, adapters: Iterable[str], hidden_size: int, rank: int | None) -> None:
        super().__init__({name: Connector(hidden_size, rank) for name in adapters})

    def initialise(self, scale: float, *, seed: int = 0) -> None:
        """See `Connector.initialise`."""
        for name in self:
            self.of(name).initialise(scale, seed=seed)

    def of(self, adapter: str) -> Connector:
        """The connector of an adapter."""
        connector = self[adapter]
        assert isinstance(connector, Connector)
        return connector

    def copy(self, source: str, target: str) -> None:
        """Give one connector the weights of another."""
        self.of(target).load_state_dict(self.of(source).state_dict())
