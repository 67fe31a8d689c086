"""Ways to answer a question that are compared: from memory, from text, and the reference's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.baselines.reference_answering import ReferenceAnswering
from bench.baselines.text_rag import TextRag
from bench.lengths import LONGEST
from bench.ways import (
    LINGUA,
    MEMORY,
    MERGED,
    ONLINE,
    REFERENCE,
    TEXT,
    ComparedModels,
    exactly,
    merged,
)
from bench.work import Work
from bench.workload import cut, load_model, sources
from clara import Clara, CompressedDocuments
from clara.evaluation.errors import UnavailableError
from clara.evaluation.systems.lingua import shortened

if TYPE_CHECKING:
    from clara.index import MemoryIndex

QUESTION = "Which of these rivers is the longest, and through which countries does it flow?"
REAL = 10
"""Documents that were compressed; the others in an index are random, and never found."""


def full_documents(count: int, tokenizer: PreTrainedTokenizerBase, length: int) -> list[str]:
    """Texts of exactly `length` tokens."""
    return cut(sources(count, length), [length] * count, tokenizer)


def filler(like: CompressedDocuments, start: int, stop: int) -> CompressedDocuments:
    """Random memory of the same size, far from every question."""
    shape = stop - start, *like.memory.shape[1:]
    generator = torch.Generator().manual_seed(start)
    memory = torch.randn(shape, generator=generator) * like.memory.float().std().item()
    names = [f"filler {row}" for row in range(start, stop)]
    return CompressedDocuments(
        memory=memory.to(like.memory.dtype),
        ids=names,
        document_ids=names,
        token_counts=[1] * len(names),
        texts=["filler"] * len(names),
        titles=[None] * len(names),
        fingerprint=like.fingerprint,
    )


@dataclass
class Found:
    """What is asked about: an index of `corpus` documents, and the `top_k` found in it."""

    index: MemoryIndex
    corpus: int
    top_k: int
    texts: list[str]
    folder: TemporaryDirectory[str]
    shortened: list[str] | None = None

    @classmethod
    def of(cls, model: Clara, *, corpus: int, top_k: int, length: int = LONGEST) -> Found:
        from clara.index import MemoryIndex  # needs pylance

        texts = full_documents(max(REAL, top_k), model.tokenizer.tokenizer, length)
        compressed = model.compress(texts, overflow="truncate")
        folder = TemporaryDirectory()
        index = MemoryIndex.create(
            Path(folder.name) / "index",
            fingerprint=model.fingerprint,
            memory_tokens=model.config.memory_tokens,
            hidden_size=model.hidden_size,
            dtype=model.dtype,
        )
        index.add(compressed)
        for start in range(len(texts), corpus, 1000):
            index.add(filler(compressed, start, min(corpus, start + 1000)))
        hits = index.search(model.encode_queries([QUESTION]), top_k)[0]
        if any(hit.id not in compressed.ids for hit in hits):
            raise ValueError("the index found a document that is none")
        return cls(index, len(index), top_k, [hit.text for hit in hits], folder)


class Ways(ComparedModels):
    """Calls that answer `QUESTION` with a number of new tokens; each returns the answer.

    Attributes:
        laps: milliseconds of the stages "query", "rank" and "generate" by name and number of new
            tokens, a mapping for each call.
        missing: ways that there are not, and why.
        work: what the last call of each way has computed, by its name.
    """

    def __init__(self, model: Clara) -> None:
        super().__init__(model, TextRag(model), ReferenceAnswering(model))
        self.work = Work(model)
        self.laps: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        self.missing: dict[str, str] = {}
        try:
            self.merged = merged(model)
        except MemoryError as error:
            self.missing[MERGED] = str(error)

    def calls(self, found: Found, new_tokens: int) -> dict[str, Callable[[], str]]:
        """All ways, by name."""
        ours: dict[str, tuple[Clara, Any]] = {
            MEMORY: (self.model, found.index),
            ONLINE: (self.model, found.texts),
        }
        if self.merged is not None:
            ours[MERGED] = self.merged, found.index
        calls: dict[str, Callable[[], str]] = {
            name: partial(self._ours, name, *chosen, found.top_k, new_tokens)
            for name, chosen in ours.items()
        }
        calls[TEXT] = lambda: self.text.answer(QUESTION, found.texts, new_tokens).strip()
        calls[REFERENCE] = lambda: self._reference(found, new_tokens)
        if (short := self._shortened(found)) is not None:
            calls[LINGUA] = lambda: self.text.answer(QUESTION, short, new_tokens).strip()
        return {n: self.work.counted(n, call, *self.backbones(n)) for n, call in calls.items()}

    def differences(self, found: Found, new_tokens: int, but: Iterable[str] = ()) -> dict[str, str]:
        """Why ways do not count: their answers are not what they have to be.

        Merged weights and documents compressed online answer as memory does, the reference's way
        as well, and text as the bare backbone of ours does, which may stop earlier.

        Args:
            but: ways to leave alone.
        """
        calls = {n: call for n, call in self.calls(found, new_tokens).items() if n not in but}
        answers = {name: call() for name, call in calls.items()}
        (bare,) = self.model.answer_from_text([QUESTION], [found.texts], max_new_tokens=new_tokens)
        right = answers[MEMORY]
        same = {n: answers[n] == right for n in (MERGED, ONLINE, REFERENCE) if n in answers}
        if TEXT in answers:
            same[TEXT] = bool(bare.strip()) and answers[TEXT].startswith(bare.strip())
        wanted = {**dict.fromkeys(same, right), TEXT: bare}
        return {
            name: f"answers {answers[name][:40]!r}, not {wanted[name][:40]!r}"
            for name, is_same in same.items()
            if not is_same
        }

    def prompt_tokens(self, found: Found) -> dict[str, float]:
        """Positions of the prompts."""
        counts = self.prompt_positions([QUESTION], [found.texts], found.top_k)
        if found.shortened is not None:
            counts[LINGUA] = len(self.text.prompt(QUESTION, found.shortened))
        return counts

    def _shortened(self, found: Found) -> list[str] | None:
        """The texts as LLMLingua-2 leaves them, made beforehand as our memory is."""
        if LINGUA not in self.missing and found.shortened is None:
            try:
                rate = self.model.config.compression_rate
                found.shortened = shortened(found.texts, rate, self.model.device)
            except UnavailableError as error:
                self.missing[LINGUA] = str(error)
        return found.shortened

    def _ours(self, name: str, model: Clara, source: Any, top_k: int, new_tokens: int) -> str:
        (answer,) = model.answer(
            [QUESTION], source, top_k=top_k, generation_config=exactly(new_tokens)
        )
        self.laps[name, new_tokens].append(answer.timings_ms)
        return answer.text

    def _reference(self, found: Found, new_tokens: int) -> str:
        memory = self.reference.compress(found.texts)
        return self.reference.answer(QUESTION, memory, found.top_k, new_tokens).strip()


def prepare_answer(
    backbone: Path, rate: int, threads: int, name: str, searched: bool
) -> Callable[[], object]:
    """For `peak.peak_memory`: a whole answer over 1,000 documents.

    Args:
        searched: the index has been searched before and holds its vectors in RAM; else reading
            them is part of the answer.
    """
    from clara.index import MemoryIndex

    torch.set_num_threads(threads)
    model = load_model(backbone, rate)
    found = Found.of(model, corpus=1000, top_k=5)
    if name == TEXT:
        text = TextRag(model)
        text.answer(QUESTION, ["The river runs north."], 2)
        _read_weights(text.backbone)
        return partial(text.answer, QUESTION, found.texts, 32)
    chosen = model if name == MEMORY else merged(model)
    settings = {"top_k": 5, "generation_config": exactly(32)}
    chosen.answer([QUESTION], ["The river runs north."], top_k=1, max_new_tokens=2)
    _read_weights(chosen)
    index, folder = MemoryIndex.open(found.index.path), found.folder
    if searched:
        chosen.answer([QUESTION], index, top_k=1, max_new_tokens=2)
    del found

    def answer() -> object:
        return chosen.answer([QUESTION], index, **settings), folder

    return answer


def _read_weights(module: torch.nn.Module) -> None:
    """They become resident when they are first read."""
    for parameter in module.parameters():
        parameter.sum()
