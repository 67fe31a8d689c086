"""Linear layers without adapters, by our own product where it is faster than PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clara.backbone.recognition import difference
from clara_kernels.adapted_linear import adapted_linear, multiplies_here


def is_fast(layer: nn.Module) -> bool:
    """Whether `project` has something better for a layer than to call it: a plain one in bfloat16,
    without gradients, on a processor for which `multiplies_here`.
    """
    return (
        not torch.is_grad_enabled()
        and multiplies_here()
        and difference(layer, nn.Linear) is None
        and multiplies_here(vars(layer)["_parameters"]["weight"])
    )


def project(layer: Any, x: Tensor) -> Tensor:
    """What `layer(x)` is, but for rounding; `layer` is any module."""
    low = x.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    if low and is_fast(layer):
        return adapted_linear(x, layer.weight, layer.bias)
    made: Tensor = layer(x)
    return made
