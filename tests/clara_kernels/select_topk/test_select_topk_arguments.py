"""Arguments that `select_topk` refuses."""

import pytest
import torch

from clara_kernels import select_topk

SCORES, MEMORY = torch.rand(2, 3), torch.randn(2, 3, 4, 5)
OFFSETS = torch.tensor([0, 1, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [0.1]}, TypeError, r"scores must be a torch\.Tensor, got list"),
        ({"scores": SCORES.long()}, TypeError, r"scores must be floating point, got torch\.int64"),
        ({"memory": MEMORY.int()}, TypeError, r"memory must be floating point, got torch\.int32"),
        ({"memory": MEMORY.to("meta")}, ValueError, "memory must be on the device of scores"),
        ({"scores": SCORES[0]}, ValueError, r"scores must have shape \[B, N\].*got \[3\]"),
        ({"memory": MEMORY[:, :2]}, ValueError, r"memory must have shape \[2, 3, ...\]"),
        ({"memory": SCORES}, ValueError, r"memory must have shape \[2, 3, ...\], got \[2, 3\]"),
        ({"offsets": OFFSETS}, ValueError, r"scores must have shape \[ΣN\] with offsets"),
        (
            {"scores": SCORES[0], "offsets": OFFSETS},
            ValueError,
            r"memory must have shape \[3, ...\], got \[2, 3, 4, 5\]",
        ),
        (
            {"scores": SCORES[0], "memory": MEMORY[0], "offsets": OFFSETS[:2]},
            ValueError,
            "offsets must end at 3, the rows of scores, got 1",
        ),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.0}, TypeError, "k must be an int, got float"),
        ({"k": True}, TypeError, "k must be an int, got bool"),
        ({"relaxation": "hard"}, ValueError, "relaxation must be one of 'softmax', 'sparsemax'"),
        ({"mask": "none"}, ValueError, "mask must be one of 'exact', 'reference', got 'none'"),
        ({"noise": "normal"}, ValueError, "noise must be one of None, 'gumbel', got 'normal'"),
        ({"noise": "gumbel"}, ValueError, 'seed must be given when noise="gumbel"'),
        ({"noise": "gumbel", "seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"noise": "gumbel", "seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"noise": "gumbel", "seed": 1.5}, TypeError, "seed must be an int .* got float"),
        (
            {"noise": "gumbel", "seed": torch.tensor(1, dtype=torch.int32)},
            TypeError,
            r"seed must be an int or a 0-d int64 tensor, got torch\.int32",
        ),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be above 0 and finite"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be above 0"),
        ({"temperature": torch.ones(1)}, ValueError, r"temperature must have shape \[\]"),
        ({"temperature": "1"}, TypeError, "temperature must be a float or a 0-d tensor, got str"),
        (
            {"temperature": torch.tensor(1.0, requires_grad=True)},
            ValueError,
            "temperature must not require a gradient",
        ),
        ({"scores": SCORES * torch.nan}, ValueError, "scores must be finite or -inf, got NaN"),
        (
            {"scores": SCORES + torch.inf},
            ValueError,
            r"scores must be finite or -inf, got .* \+inf",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"scores": SCORES, "memory": MEMORY, "k": 2, "temperature": 0.1, **change}
    with pytest.raises(error, match=message):
        select_topk(**arguments)
