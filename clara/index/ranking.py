"""What a search of one version reads: a view of it, or its vectors in RAM."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from clara.errors import reason
from clara.index.contents import Contents
from clara.index.searching import nearest
from clara.index.views.choice import (
    VIEWS_FROM_BYTES,
    make_view,
    source_of,
    view_path,
)
from clara.index.views.layout import ViewError
from clara.index.views.mapped import View
from clara.index.views.rule import ViewRule


class Ranking:
    """Finds the nearest documents of one version.

    A view of the version is used if there is one. It is made at the first search where vectors take
    `VIEWS_FROM_BYTES` or more, and again where it was damaged, though not for a version that is
    opened by its number. Where it cannot be written, a warning says so and vectors are read into
    RAM. What is found is the same.
    """

    def __init__(self, contents: Contents, rule: ViewRule) -> None:
        self.contents = contents
        self._rule = rule
        self._lock = threading.RLock()  # guards what follows; held while any of it is loaded
        self._view: View | None = None
        self._is_settled = not rule.used
        self._losses = 0

    def nearest(
        self, queries: Tensor, k: int, rows: Tensor | None, *, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scores and rows `[B, min(k, n)]` of the nearest among n rows.

        Args:
            rows: of `chosen_rows`.
            approximate: see `MemoryIndex.search`; without a view the search is exact.

        Raises:
            MemoryIndexError: a document is damaged.
        """
        if rows is not None and not len(rows):
            return torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        while (view := self._current()) is not None:
            try:
                return view.nearest(queries, k, rows, approximate=approximate)
            except ViewError as error:
                self._lose(view, error)
        with self._lock:
            corpus = self.contents.corpus
        return nearest(queries, corpus, k, rows)

    def build(self, on_progress: Callable[[int], None] | None = None) -> View:
        """Make the view anew, whatever the size.

        Raises:
            OSError, MemoryIndexError: it cannot be written, or a document is damaged.
        """
        with self._lock:
            self._view = make_view(self.contents, self._rule, on_progress, anew=True)
            self._is_settled = True
            return self._view

    def _current(self) -> View | None:
        with self._lock:
            if not self._is_settled:
                self._is_settled = True
                self._view = self._found()
            return self._view

    def _found(self) -> View | None:
        """The view that is there, or a new one if that is wanted."""
        snapshot = self.contents.snapshot
        wanted = self.contents.ranked_bytes >= VIEWS_FROM_BYTES or self._losses > 0
        try:
            source = source_of(snapshot, self.contents)
            place = view_path(self._rule.folder_of(snapshot.path), source)
            try:
                if self._losses < 2:  # else it cannot be removed
                    return self._whole(View.open(place, source))
            except ViewError as error:
                _drop(place, error)
                wanted = True
            except FileNotFoundError:
                pass
            if wanted and not snapshot.pinned and self._losses < 2:
                return make_view(self.contents, self._rule)
        except (OSError, ViewError) as error:
            said = getattr(error, "strerror", None) or reason(error)
            _remark(f"{snapshot.path}: searched without a view, vectors are read into RAM: {said}")
        return None

    def _whole(self, view: View) -> View:
        """A view, if it says truly where rows lie, which searches without ids rely on."""
        there, expected = view.positions(), self.contents.positions
        if there is not None and (expected is None or not np.array_equal(there, expected)):
            raise ViewError(f"{view.path}: damaged, rows lie elsewhere")
        return view

    def _lose(self, view: View, error: ViewError) -> None:
        """A view turned out to be damaged: remove it, and look for another one."""
        with self._lock:
            if self._view is view:
                _drop(view.path, error)
                self._losses += 1
                self._view, self._is_settled = None, False


def _drop(place: str, error: ViewError) -> None:
    """Remove a view that cannot be used."""
    _remark(f"{error}; it is not used")
    with suppress(OSError):
        os.remove(place)


def _remark(message: str) -> None:
    warnings.warn(message, stacklevel=2)
