"""Gradient checkpointing of a backbone whose adapters are switched between forwards.

A checkpointed layer is computed a second time in the backward pass, long after the forward it
belongs to: by then another adapter may be active. Each layer therefore remembers the context of
its forward and enters it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Context = Callable[[], AbstractContextManager[None]]

_context: ContextVar[Context] = ContextVar("context", default=nullcontext)


@contextmanager
def recomputed_within(context: Context) -> Iterator[None]:
    """Layers that are checkpointed in this block enter `context()` when they are recomputed."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


class _Entered:
    """`context()`, entered anew each time: a retained graph is recomputed more than once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._open.append(self._context())
        self._open[-1].__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._open.pop().__exit__(*raised)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward, where the context is entered already, and for the recomputation."""
    return nullcontext(), _Entered(_context.get())


def enable_checkpointing(backbone: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """See `ClaraCore.enable_gradient_checkpointing`."""
    kept = {key: options[key] for key in ("every_n_layers", "offload") if key in options}
    given = {key: value for key, value in options.items() if key not in kept}
    if given.pop("use_reentrant", False) or "context_fn" in given:
        raise ValueError("gradient checkpointing is not reentrant and has a context_fn of its own")
    given = {**given, "use_reentrant": False, "context_fn": _contexts}
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=given, **kept)
    else:  # transformers before 5.2
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given)
