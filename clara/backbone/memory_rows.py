"""Computing only the memory rows in a model's last layer.

Only memory rows leave the compressor, and in the last layer nothing else depends on the other
rows. Everything there except keys and values can therefore skip them, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def last_layer(body: nn.Module) -> tuple[int, list[nn.Module]] | None:
    """Index of the last decoder layer and its row-wise modules after attention.

    None for an architecture that does not name them as Llama does.
    """
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    projection = getattr(getattr(layers[-1], "self_attn", None), "o_proj", None)
    feed_forward = getattr(layers[-1], "mlp", None)
    if not isinstance(projection, nn.Module) or not isinstance(feed_forward, nn.Module):
        return None
    return len(layers) - 1, [projection, feed_forward]


@contextmanager
def restricted_to_rows(modules: Sequence[nn.Module], rows: Tensor) -> Iterator[None]:
    """Within the block, `modules` compute `rows` of their `[1, T, …]` input; the rest is zero."""

    def take(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        totals.append(arguments[0].shape[1])
        return (arguments[0][:, rows], *arguments[1:])

    def put(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        full = output.new_zeros(1, totals.pop(), output.shape[-1])
        return full.index_copy(1, rows, output)

    totals: list[int] = []
    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_pre_hook(take))
            handles.enter_context(module.register_forward_hook(put))
        yield
