"""Loading bars of transformers and the hub, only where somebody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clara.terminal.printing import is_terminal


@contextmanager
def bars_on_a_terminal_only() -> Iterator[None]:
    """No bars of these libraries within the block, unless standard error is a terminal."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    if is_terminal() or not logging.is_progress_bar_enabled():
        yield
        return
    hub_was_quiet = are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        if hub_was_quiet:
            disable_progress_bars()
