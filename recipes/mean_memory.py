"""Memory of documents in one vector each, without compressing them, to train a query reasoner on.

    python recipes/mean_memory.py MODEL INDEX FILE...

In memory form "spans" documents are ranked by the mean of their memory. That is the mean embedding
of their spans and the mean of what the compressor adds, and most of this is the same for all. So
the vector here is the mean embedding and what is added on average, measured on few documents. It
takes a thousandth of the time of a forward, which makes it possible to train on as many documents
as there are names, see renamed_subjects.py.

INDEX is what `candidate_index` of the contrastive stage can name, with `candidate_rates` of the
model's highest rate. It is good for that alone: nothing can be answered from it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR
from clara.data.examples import contrastive_example, open_examples
from clara.errors import ClaraError
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory
from clara.model.clara import Clara
from clara.model.encoding import encode_passages, inputs_of
from clara.terminal.printing import quiet_libraries, say
from clara.text.packing import pack
from clara.text.passages import Passage
from clara.training.batches import candidate_id
from clara.training.candidates import CandidateMemory

RATES = (4, 16)
"""Whose memory the vectors are to be like."""
MEASURED = 60  # documents that what the compressor adds is measured on
BATCH_TOKENS = 16_384  # of embeddings that are looked up at once
AT_ONCE = 4096  # documents


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write nearly the mean of documents' memory.")
    parser.add_argument("model", type=Path, help="folder of a model in memory form spans")
    parser.add_argument("index", type=Path, help="folder of the index; added to if it is there")
    parser.add_argument("files", nargs="+", help="questions with candidates")
    given = parser.parse_args(arguments)
    quiet_libraries()
    try:
        model = Clara.from_pretrained(given.model, device="cpu")
        print(json.dumps({"added": write_index(model, given.index, given.files)}))
    except (ClaraError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


@torch.no_grad()
def write_index(model: Clara, folder: Path, files: Iterable[str]) -> int:
    """Add the vectors of all candidates that are not in the index; how many that were.

    Raises:
        DataError: see `open_examples`.
        ValueError: the index is of another compressor, or the model has another form of memory.
    """
    if model.config.memory_form != "spans":
        raise ValueError(f"{folder}: needs a model of memory_form spans")
    texts: dict[str, str] = {}
    for file in files:
        for example in open_examples(str(file), "train", contrastive_example):
            texts |= {candidate_id(text): text for text in example.documents if text.strip()}
    some = random.Random(0).sample(sorted(texts), min(MEASURED, len(texts)))
    measured = model.passages([texts[name] for name in some], "truncate")
    added = [added_on_average(model, measured, rate) for rate in RATES]
    highest = model.config.rates[-1]
    index = CandidateMemory(model, folder, rate=highest).index
    there = index.contains(list(texts))
    missing = [name for name, known in zip(texts, there, strict=True) if not known]
    for start in range(0, len(missing), AT_ONCE):
        names = missing[start : start + AT_ONCE]
        passages = model.passages([texts[name] for name in names], "truncate")
        each = [
            mean_of_spans(model, passages, rate) + constant
            for rate, constant in zip(RATES, added, strict=True)
        ]
        vectors = torch.stack(each).mean(0).to(model.dtype)
        # As often as the rate asks for, which changes nothing about their mean.
        counts = [-(-len(passage.tokens) // highest) for passage in passages]
        rows = [vector.expand(n, -1) for vector, n in zip(vectors, counts, strict=True)]
        index.add(
            CompressedDocuments(
                memory=PaddedMemory.of(rows).rows,
                counts=counts,
                ids=names,
                document_ids=names,
                token_counts=[len(passage.tokens) for passage in passages],
                texts=[passage.text for passage in passages],
                titles=[None] * len(names),
                fingerprint=model.fingerprint,
            )
        )
    return len(missing)


def added_on_average(model: Clara, passages: Sequence[Passage], rate: int) -> Tensor:
    """`[H]`: what the compressor adds to the mean of a document's spans, mean of the passages."""
    memory = encode_passages(model, passages, COMPRESSOR, rate=rate)
    return (memory.vectors("mean").float() - mean_of_spans(model, passages, rate)).mean(0)


def mean_of_spans(model: Clara, passages: Sequence[Passage], rate: int) -> Tensor:
    """`[N, H]`: the mean of the memory of texts if the connector adds nothing."""
    found = torch.empty(len(passages), model.hidden_size)
    inputs = inputs_of(model, passages, rate)
    for batch in pack(inputs, batch_tokens=BATCH_TOKENS, device=model.device):
        spans = model.span_means(batch).split(batch.n_memory)
        for row, each in zip(batch.rows, spans, strict=True):
            found[row] = each.mean(0)
    return found


if __name__ == "__main__":
    sys.exit(main())
