"""Adapters whose effect shows: those of a new model change nothing."""

import torch

from clara.backbone.adapters import ADAPTERS


def draw_adapters(model, *, seed, std=0.1):
    """Draw all adapters from a normal distribution and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ADAPTERS:
            for parameter in model.adapters.parameters(name).values():
                parameter.normal_(std=std, generator=generator)
    return model
