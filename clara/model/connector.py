"""The connector of memory form "spans": from a final state to what its span's mean lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

PLACES = 127
"""Places that are told apart, the first of a span not counted; further tokens count as the last."""


class Connector(nn.Module):
    """`mean + W (h / scale)`, computed in float32; `W` starts at zero.

    At zero, memory is the mean of a span's embeddings, which the backbone can read as it is: at one
    token a vector it is the text.

    A mean does not say in which order its tokens stand. With `places` it does: each token but a
    span's first is multiplied, dimension by dimension, by the vector of its place. Binding by
    multiplication with random vectors is that of Plate's and Gayler's vector architectures
    (Gayler 2004, arXiv cs/0412059).

    Args:
        rank: see `ClaraConfig.connector_rank`.
        places: see `ClaraConfig.span_places`.

    Attributes:
        up: `[H, H]`, or `[H, r]` where the map is the product of two thin matrices.
        down: `[r, H]`, or None.
        places: `[PLACES, H]`, what the second and further tokens of a span are multiplied by, or
            None.
        scale: 0-d, what final states are divided by to have the norm of embeddings.
    """

    scale: Tensor

    def __init__(self, hidden_size: int, rank: int | None = None, places: bool = False) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(hidden_size, rank or hidden_size, dtype=torch.float32))
        self.down: nn.Parameter | None = None
        if rank is not None:
            self.down = nn.Parameter(torch.zeros(rank, hidden_size, dtype=torch.float32))
        self.places: nn.Parameter | None = None
        if places:
            self.places = nn.Parameter(torch.ones(PLACES, hidden_size, dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    @torch.no_grad()
    def initialise(self, scale: float, *, seed: int = 0) -> None:
        """Set the scale, and draw what is random.

        That is `down`, as `torch.nn.Linear` does it, and `places` from a normal of mean and
        deviation 1: a linear map then tells the tokens of four places apart without an error.
        """
        self.scale.fill_(scale)
        generator = torch.Generator().manual_seed(seed)
        if self.down is not None:
            bound = self.down.shape[1] ** -0.5
            drawn = torch.rand(self.down.shape, generator=generator, dtype=torch.float32)
            self.down.copy_((drawn * 2 - 1) * bound)
        if self.places is not None:
            drawn = torch.randn(self.places.shape, generator=generator, dtype=torch.float32)
            self.places.copy_(1 + drawn)

    def placed(self, embeddings: Tensor) -> Tensor:
        """Embeddings of the tokens of spans, each marked with its place.

        Args:
            embeddings: `[M, tokens of a span, H]`.

        Returns:
            The same shape; the first token of each span as it is.
        """
        if self.places is None:
            return embeddings
        further = torch.arange(embeddings.shape[1] - 1, device=embeddings.device)
        marks = self.places[further.clamp_max(PLACES - 1)].to(embeddings.dtype)
        return torch.cat([embeddings[:, :1], embeddings[:, 1:] * marks], 1)

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
        rank, places: see `Connector`.
    """

    def __init__(
        self, adapters: Iterable[str], hidden_size: int, rank: int | None, places: bool = False
    ) -> None:
        super().__init__({name: Connector(hidden_size, rank, places) for name in adapters})

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
