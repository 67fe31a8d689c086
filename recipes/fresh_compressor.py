"""Give a model in memory form "spans" a compressor that has not been trained, and keep its memory.

    python recipes/fresh_compressor.py MODEL TARGET [--documents data/factbook/ranking.train.jsonl]

For a compressor that adds the same to all spans (docs/training-log.md, step 5,410). A generator
that was trained with what it adds needs that constant c. So the new connector is

    W = c vᵀ + s (I - h̄ vᵀ)

where h̄ is the mean final state of the untrained compressor, and v maps such states to about 1: on
average it adds c. `s I` lets gradients reach the compressor in every direction. The generator and
the learnt rows stay as they are, and the query reasoner is untrained, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from least_squares import to_one

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.errors import ClaraError
from clara.files.writing import new_folder
from clara.model.checkpoint import backbone_of
from clara.model.clara import Clara
from clara.terminal.printing import quiet_libraries, say
from clara.training.controls import spread, states_and_added

DOCUMENTS = Path("data") / "factbook" / "ranking.train.jsonl"
SHARE = 0.1
"""s: what differs between states is added at this share of its norm."""
RATES = (4, 16)
RIDGE = 1.0
COUNT = 60  # documents that means are taken over


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Begin a compressor anew.")
    parser.add_argument("model", type=Path, help="folder of a model in memory form spans")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="default: %(default)s")
    given = parser.parse_args(arguments)
    quiet_libraries()
    try:
        print(json.dumps(fresh_compressor(given.model, given.target, texts(given.documents))))
    except (ClaraError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


def texts(file: Path, count: int = COUNT) -> list[str]:
    """Different candidates of the first questions of a file for the end-to-end stage."""
    found: dict[str, None] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            found |= dict.fromkeys(json.loads(line)["docs"])
            if len(found) >= count:
                break
    return list(islice(found, count))


@torch.no_grad()
def fresh_compressor(source: Path, target: Path, documents: Sequence[str]) -> dict[str, float]:
    """Write the model with a new compressor.

    Returns:
        The norm of what compressors add, and how far it is from its mean: "before", "after" and
        "spread_before", "spread_after". Embeddings of SmolLM2 have norm 3.2.

    Raises:
        ValueError: `target` exists, or the model has another form of memory.
    """
    if target.exists():
        raise ValueError(f"{target}: exists; name a new folder")
    old = Clara.from_pretrained(source, device="cpu")
    if old.config.memory_form != "spans" or old.config.connector_rank is not None:
        raise ValueError(f"{source}: needs memory_form spans with connector_rank null")
    before = torch.cat([states_and_added(old, documents, rate)[1] for rate in RATES])
    constant = before.mean(0)

    backbone = backbone_of(old.config, source)
    new = Clara.from_backbone(backbone, old.config.replace(backbone=None), device="cpu")
    new.adapters.load_state(GENERATOR, old.adapters.state(GENERATOR))
    new.memory_tokens.load_state_dict(old.memory_tokens.state_dict())
    connector = new.connectors.of(COMPRESSOR)
    states = torch.cat([states_and_added(new, documents, rate)[0] for rate in RATES])
    mean, one = states.mean(0), to_one(states, RIDGE)
    identity = torch.eye(len(mean))
    connector.up.copy_(torch.outer(constant - SHARE * mean, one) + SHARE * identity)
    after = torch.cat([states_and_added(new, documents, rate)[1] for rate in RATES])
    with new_folder(target) as unfinished:
        new.save_pretrained(unfinished)
    return {
        "before": float(before.norm(dim=1).mean()),
        "spread_before": spread(before),
        "after": float(after.norm(dim=1).mean()),
        "spread_after": spread(after),
    }


if __name__ == "__main__":
    sys.exit(main())
