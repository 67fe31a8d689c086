"""Models that are exported."""

from pathlib import Path

import torch

from clara import ClaraConfig

from .. import new_models
from ..random_adapters import draw_adapters

CONFIG = ClaraConfig(document_length=64, lora_rank=4, lora_alpha=8, dtype="float32", top_k=2)
SPANS = CONFIG.replace(memory_form="spans", compression_rate=4, span_slope=0.1)


def drawn(model, std=0.1):
    """With adapters and connectors that change what it computes."""
    draw_adapters(model, seed=4, std=std)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.normal_(std=std, generator=generator)
    return model


def new_model(folder, config=CONFIG):
    return drawn(new_models.new_model(Path(folder), config, "cpu"))
