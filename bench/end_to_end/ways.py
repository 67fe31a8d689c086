"""A batch of questions answered in the ways that are compared, with all that is searched in RAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.backbones import Backbone
from bench.baselines.reference_answering import ReferenceAnswering
from bench.baselines.text_rag import TextRag
from bench.ways import (
    MEMORY,
    MERGED,
    ONLINE,
    REFERENCE,
    TEXT,
    ComparedModels,
    exactly,
    merged,
)
from bench.workload import cut, sources
from clara import Clara
from clara_kernels import Corpus, cosine_topk

# How far two ways that compute the same may lie apart, ‖a - b‖ / ‖b‖ averaged over vectors. They
# round at different places, which random layers amplify: in bfloat16, 32 of them of width 512 made
# 0.05 of it for memory and 0.2 for logits, and without the generator logits differed by 0.76.
# Mistakes that bfloat16 could hide are looked for in float32, through a few layers.
MEMORY_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.2}
LOGIT_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.5}
EXACT_LAYERS = 2


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The mean relative distance of vectors `[..., H]`; infinite where one is not finite."""
    ours, theirs = ours.float(), theirs.float()
    apart = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).mean().item()
    return apart if apart == apart else float("inf")


def texts_of(backbone: Backbone, lengths: Sequence[int]) -> list[str]:
    """Texts of exactly so many tokens."""
    return cut(sources(len(lengths)), lengths, backbone.tokenizer)


class MemoryRows:
    """Compressed documents on the model's device, and random rows beside them.

    Args:
        count: of all rows; what is not in `texts` is random, far from all of `queries`.

    Attributes:
        memory: `[N, m, H]`, those of `texts` first.
    """

    def __init__(self, model: Clara, texts: Sequence[str], count: int, queries: Tensor) -> None:
        compressed = model.compress(texts, overflow="truncate")
        self.texts = compressed.texts
        generator = torch.Generator(model.device).manual_seed(0)
        shape = count - len(texts), *compressed.memory.shape[1:]
        noise = torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype)
        noise = noise * compressed.memory.float().std().to(noise) - 2 * queries.mean(0)
        self.memory = torch.cat([compressed.memory, noise])
        self._corpus = Corpus(self.memory.flatten(1))

    def search(self, queries: Tensor, k: int) -> Tensor:
        """Rows `[B, k]` for queries `[B, m, H]`, best first."""
        return cosine_topk(queries.flatten(1), self._corpus, k)[1]


@dataclass(frozen=True)
class Asked:
    """Questions, and what they are answered from.

    Attributes:
        top_k: documents for each of them.
        corpus: documents that are searched; all but `real` are random.
        length: tokens of a document.
    """

    questions: Sequence[str]
    top_k: int = 5
    corpus: int = 1000
    real: int = 40
    length: int = 256


class BatchWays(ComparedModels):
    """Calls that answer all questions of a batch with a number of new tokens.

    All take their weights from the one backbone; "memory, generator merged" needs a second set of
    the linear ones and is missing where the backbone is quantized.
    """

    def __init__(self, backbone: Backbone, model: Clara, asked: Asked) -> None:
        text = TextRag(model, backbone.plain())
        super().__init__(model, text, ReferenceAnswering(model, backbone=backbone.plain()))
        if not getattr(backbone.model, "is_quantized", False):
            self.merged = merged(model)
        self.top_k = asked.top_k
        # Generation orders prompts by their length, longest first: here they are so already.
        self.questions = sorted(asked.questions, key=lambda q: -model.prompt_tokens(q, self.top_k))
        texts = texts_of(backbone, [asked.length] * asked.real)
        queries = model.encode_queries(self.questions)
        self.rows = MemoryRows(model, texts, asked.corpus, queries)
        found = self.rows.search(queries, self.top_k).tolist()
        if any(row >= asked.real for rows in found for row in rows):
            raise ValueError("the index found a document that is none")
        self.texts = [[self.rows.texts[row] for row in rows] for rows in found]

    def calls(self, new_tokens: int) -> dict[str, Callable[[], object]]:
        """All ways, by name."""
        calls: dict[str, Callable[[], object]] = {
            MEMORY: partial(self._from_memory, self.model, new_tokens),
            ONLINE: partial(self._compressed_online, new_tokens),
            TEXT: partial(self.text.answers, self.questions, self.texts, new_tokens),
            REFERENCE: partial(self._reference, new_tokens),
        }
        if self.merged is not None:
            calls[MERGED] = partial(self._from_memory, self.merged, new_tokens)
        return calls

    def differences(self) -> dict[str, float]:
        """How far the first logits of each way are from what they have to be.

        Merged weights, documents compressed online and the reference's way answer as memory does,
        text as the bare backbone of ours does.
        """
        calls = self.calls(1)
        logits = {name: last_logits(call, self.backbones(name)[-1]) for name, call in calls.items()}
        bare = last_logits(
            lambda: self.model.answer_from_text(
                self.questions, self.texts, max_new_tokens=1, batch_size=len(self.questions)
            ),
            self.model.backbone,
        )
        lengths = [-len(self.text.prompt(*pair)) for pair in zip(self.questions, self.texts)]
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        found = {name: distance(logits[name], logits[MEMORY]) for name in calls if name != MEMORY}
        return found | {TEXT: distance(logits[TEXT][order], bare)}

    def prompt_tokens(self) -> dict[str, float]:
        """Positions of the prompts on average, by name."""
        return self.prompt_positions(self.questions, self.texts, self.top_k)

    def _from_memory(self, model: Clara, new_tokens: int) -> list[str]:
        """Everything from the questions on: encode them, search, generate from what is found."""
        rows = self.rows.search(model.encode_queries(self.questions), self.top_k)
        return self._generated(model, self.rows.memory[rows], new_tokens)

    def _compressed_online(self, new_tokens: int) -> list[str]:
        """The documents that were found are compressed and ranked first."""
        model = self.model
        flat = [text for texts in self.texts for text in texts]
        memory = model.compress(flat, overflow="truncate").memory
        memory = memory.unflatten(0, (len(self.questions), -1))
        order = model.rank(model.encode_queries(self.questions), memory, self.top_k).indices
        places = torch.arange(len(order), device=order.device)[:, None]
        return self._generated(model, memory[places, order], new_tokens)

    def _generated(self, model: Clara, memory: Tensor, new_tokens: int) -> list[str]:
        settings = exactly(new_tokens)
        count = len(self.questions)
        return model.generate(self.questions, memory, generation_config=settings, batch_size=count)

    def _reference(self, new_tokens: int) -> list[str]:
        flat = [text for texts in self.texts for text in texts]
        memory = self.reference.compress(flat).unflatten(0, (len(self.questions), -1))
        return self.reference.answers(self.questions, memory, self.top_k, new_tokens)


def last_logits(call: Callable[[], object], backbone: nn.Module) -> Tensor:
    """What the output head computed last within a call, `[B, V]` of the last positions."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
        seen[:] = [output[:, -1].float()]

    head = backbone.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_hook(keep)
    try:
        call()
    finally:
        handle.remove()
    return seen[0]
