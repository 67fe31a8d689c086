"""The kernels of `cosine_scores` and `select_topk`, one after the other: two launches forward and
three backward. Fewer are not possible: a slot depends on all scores, the gradient of a score on all
slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..builds import Build
from ..cosine_scores import triton as cosine
from ..select_topk import triton as selection
from . import composition

forward = partial(composition.forward, cosine, selection)
backward = partial(composition.backward, cosine, selection)


def builds(architecture: int) -> Iterator[Build]:
    """None that are not those of the two operators."""
    del architecture
    return iter(())
