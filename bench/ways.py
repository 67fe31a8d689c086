"""What ways to answer are called, and the models that compute in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from unittest.mock import patch

from transformers import GenerationConfig, PreTrainedModel

from bench.baselines.reference_answering import ReferenceAnswering
from bench.baselines.text_rag import TextRag
from clara import Clara
from clara.backbone import reading
from clara.backbone.decoder_layout import Undecodable
from clara.backbone.fused_layers import FusedLayers
from clara.model import generation

MEMORY, MERGED, ONLINE = "memory", "memory, generator merged", "compressed online"
TEXT, REFERENCE, LINGUA = "text", "reference way, online", "text by LLMLingua-2"


class ComparedModels:
    """A `Clara`, the same with its generator merged, and what they are compared with.

    Attributes:
        merged: None where there is no merged copy of the backbone.
    """

    def __init__(self, model: Clara, text: TextRag, reference: ReferenceAnswering) -> None:
        self.model, self.text, self.reference = model, text, reference
        self.merged: Clara | None = None

    def backbones(self, name: str) -> list[PreTrainedModel]:
        """All that compute in a way, the one that generates last: another one encodes the question
        than the merged one."""
        if name in (TEXT, LINGUA):
            return [self.text.backbone]
        if name == REFERENCE:
            return [self.reference.backbone]
        merged = self.merged._merged if name == MERGED and self.merged is not None else None
        return [self.model.backbone, *([] if merged is None else [merged.backbone])]

    def prompt_positions(
        self, questions: Sequence[str], texts: Sequence[Sequence[str]], top_k: int
    ) -> dict[str, float]:
        """Positions of the prompts on average, by way, from the texts of each question."""
        memory = fmean(self.model.prompt_tokens(question, top_k) for question in questions)
        pairs = zip(questions, texts, strict=True)
        text = fmean(len(self.text.prompt(*pair)) for pair in pairs)
        return {**dict.fromkeys((MEMORY, MERGED, ONLINE, REFERENCE), memory), TEXT: text}


def exactly(new_tokens: int) -> GenerationConfig:
    """Greedy generation that does not stop early."""
    return GenerationConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)


@contextmanager
def by_generate() -> Iterator[None]:
    """Within the block, transformers' `generate` makes further tokens, and not our decoder."""
    with patch.object(generation, "weights_for", side_effect=Undecodable("for comparison")):
        yield


@contextmanager
def by_layers_of_transformers() -> Iterator[None]:
    """Within the block, layers compute as transformers wrote them, and not with fewer passes."""
    nothing = FusedLayers([])
    with (
        patch.object(FusedLayers, "of", return_value=nothing),
        patch.object(reading, "computes_here", return_value=False),
    ):
        yield


def merged(model: Clara) -> Clara:
    """The same weights, with the generator merged into a copy of the backbone.

    Raises:
        MemoryError: there is no room for that.
    """
    twin = copy.copy(model)
    if not twin.merge_generator():
        raise MemoryError("no room for a merged copy of the backbone")
    return twin
