"""Merges the results of several searches into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import as_int, require_same_device, require_shape, require_tensor


def merge_topk(
    scores: Sequence[Tensor], indices: Sequence[Tensor], k: int
) -> tuple[Tensor, Tensor]:
    """Merge the results of several searches, such as those of the shards of a corpus.

    The order is that of `cosine_topk`: descending scores, equal scores by the lowest index, then
    NaN scores by index, and last the places where nothing was found. If the indices count over
    all shards, the merged result is that of one search of all rows.

    Args:
        scores: tensors `[B, kᵢ]` of one floating-point dtype, each row in any order.
        indices: int64 tensors of the same shapes; -1, or any negative number, where nothing was
            found, whatever the score there.
        k: at least 1.

    Returns:
        Scores and indices `[B, min(k, Σkᵢ)]`; -inf and -1 where there is nothing more.

    Raises:
        TypeError: an argument is not a tensor of the stated dtype, or k is not an int.
        ValueError: there are no tensors, shapes or devices do not match, or k is below 1.

    Examples:
        >>> import torch
        >>> from clara_kernels import merge_topk
        >>> scores = [torch.tensor([[0.9, 0.2]]), torch.tensor([[0.5, 0.4]])]
        >>> rows = [torch.tensor([[3, 1]]), torch.tensor([[12, 10]])]
        >>> merge_topk(scores, rows, 3)[1]
        tensor([[ 3, 12, 10]])
    """
    k = as_int("k", k, 1)
    _require_results(scores, indices)
    values, rows = torch.cat(tuple(scores), dim=1), torch.cat(tuple(indices), dim=1)
    absent = rows < 0
    values, rows = values.masked_fill(absent, -torch.inf), rows.masked_fill(absent, -1)
    # Least important key first: stable sorts keep what earlier ones arranged.
    order = rows.sort(dim=1, stable=True).indices
    nan = values.isnan()
    keys = torch.where(nan, -torch.inf, values) + 0.0  # -0 counts as 0
    order = order.gather(1, keys.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    classes = nan.to(torch.uint8) + 2 * absent.to(torch.uint8)
    order = order.gather(1, classes.gather(1, order).sort(dim=1, stable=True).indices)[:, :k]
    return values.gather(1, order), rows.gather(1, order)


def widened(scores: Tensor, indices: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Results `[B, width]`, with places added where nothing was found."""
    missing = width - scores.shape[1]
    if missing <= 0:
        return scores, indices
    pad = torch.nn.functional.pad
    return pad(scores, (0, missing), value=-torch.inf), pad(indices, (0, missing), value=-1)


def _require_results(scores: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    if not len(scores) or len(scores) != len(indices):
        got = f"{len(scores)} and {len(indices)}"
        raise ValueError(f"scores and indices must be equally many, at least one, got {got}")
    for place, (score, index) in enumerate(zip(scores, indices)):
        require_tensor(f"scores[{place}]", score)
        require_tensor(f"indices[{place}]", index)
        if not score.is_floating_point() or score.dtype != scores[0].dtype:
            accepted = "one floating-point dtype for all"
            raise TypeError(f"scores[{place}] must be of {accepted}, got {score.dtype}")
        if index.dtype != torch.int64:
            raise TypeError(f"indices[{place}] must be int64, got {index.dtype}")
        count = scores[0].shape[0] if scores[0].dim() else 0
        fits = score.dim() == 2 and score.shape[0] == count
        require_shape(f"scores[{place}]", score, "[{}, k]", fits, count)
        same = index.shape == score.shape
        require_shape(f"indices[{place}]", index, "{}", same, list(score.shape))
        require_same_device(f"scores[{place}]", score, "scores[0]", scores[0])
        require_same_device(f"indices[{place}]", index, "scores[0]", scores[0])
