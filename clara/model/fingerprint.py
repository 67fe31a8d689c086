"""The fingerprint of a model: equal if and only if documents get the same memory."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, Adapters
from clara.config import ClaraConfig
from clara.model.connector import Connector
from clara.model.memory_tokens import MemoryTokens


def memory_fingerprint(
    config: ClaraConfig,
    adapters: Adapters,
    memory_tokens: MemoryTokens,
    backbone_digest: str,
    connector: Connector | None = None,
) -> str:
    """SHA-256 over what determines a document's memory.

    That is the compressor, our rows, the settings of compression, and the backbone. Rounded to
    bfloat16, so that one checkpoint has one fingerprint whatever dtype it is loaded in. In memory
    form "spans" the connector belongs to it, and the compression rate and the document limit do
    not: memory of all rates lies in one space.

    Args:
        backbone_digest: of the backbone's weights.
        connector: the compressor's, in memory form "spans".
    """
    if connector is None:
        form: dict[str, object] = {
            "document_length": config.document_length,
            "compression_rate": config.compression_rate,
            "distinct_memory_tokens": config.distinct_memory_tokens,
        }
    else:
        form = {"memory_form": config.memory_form, "scale": float(connector.scale.bfloat16())}
        if config.span_slope:  # left out at 0, as models had no slope at first
            form["span_slope"] = config.span_slope
    settings = {
        **form,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "backbone": backbone_digest,
    }
    digest = hashlib.sha256(json.dumps(settings).encode())
    compressor = sorted(adapters.state(COMPRESSOR).items())
    rows = [("memory", memory_tokens.memory), ("encode", memory_tokens.encode)]
    ours = [] if connector is None else sorted(connector.named_parameters())
    for name, value in [*compressor, *rows, *ours]:
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    rounded = value.detach().to(torch.bfloat16).cpu().contiguous()
    return rounded.view(torch.uint8).numpy().tobytes()
