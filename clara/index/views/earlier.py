"""What a new view takes over from one of an earlier version, behind which documents were added."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from clara.index.contents import Contents
from clara.index.views.mapped import View

_MOST_MOVED = 0.01
"""Of the mean square of rows of norm 1 less their center: how far the center may have moved."""


class Earlier(NamedTuple):
    """A view whose rows are the first ones of a later version.

    Attributes:
        view: what is taken over of it is compared with its checksums as it is copied.
        stored: how many positions of the dataset it is of.
    """

    view: View
    stored: int

    @classmethod
    def of(cls, view: View, stored: int, contents: Contents) -> Earlier | None:
        """The view, if rows and places are those that the contents begin with.

        Args:
            view: of a version that the contents continue, by its head.

        Raises:
            ViewError: its places are damaged.
        """
        count, known = len(view), contents.positions
        if count > contents.count or stored > contents.snapshot.count:
            return None
        places = view.positions()
        ours = np.arange(contents.count) if known is None else known
        theirs = np.arange(count) if places is None else places
        if not np.array_equal(ours[:count], theirs) or (ours[count:] < stored).any():
            return None
        view.let_go()
        return cls(view, stored)

    def fits(self, center: Tensor) -> bool:
        """Whether its codes do, though they were made with the center of fewer rows.

        Any center is right. One that is far from the mean makes codes coarser.
        """
        moved = (center - self.view.center()).square().sum()
        return bool(moved <= _MOST_MOVED * (1 - center.square().sum()))
