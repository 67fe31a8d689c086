"""Anything else by torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@cache
def compiled(
    function: Callable[..., Any], dynamic: bool, backend: str = "inductor"
) -> Callable[..., Any]:
    """`function` as one graph, compiled at its first call, which has to be within `compiling`.

    Args:
        dynamic: compiled once for all shapes, not for each.
    """
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)


@contextmanager
def compiling() -> Iterator[None]:
    """Where functions are compiled, for many shapes, and their backward passes run repeatedly."""
    import torch._dynamo
    import torch._functorch.config

    with (
        torch._functorch.config.patch(donated_buffer=False),
        torch._dynamo.config.patch(recompile_limit=64),
    ):
        yield
