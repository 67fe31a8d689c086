"""One training step in our way and in the reference's, over the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bench.baselines.reference_training import ReferenceTraining
from bench.workload import documents, load_model
from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config import DtypeName
from clara.data.examples import AnswerExample, PretrainingExample, RankingExample
from clara.training.candidates import CandidateMemory
from clara.training.collators import CompressionCollator, RankingCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder
from clara.training.end_to_end import EndToEndObjective
from clara.training.selection import SelectionSchedule

ALIGNMENT = 0.1
LEARNING_RATE = 1e-4


class Steps:
    """Two models with the same weights and a step of each; `batch` is what both read.

    Attributes:
        model: ours.
        objective, reference: what computes the loss of either way.
        ours, theirs: called for a step, return its loss.
    """

    def __init__(
        self, model: Clara, objective: nn.Module, reference: ReferenceTraining, batch: Any
    ) -> None:
        self.model, self.objective, self.reference, self.batch = model, objective, reference, batch
        self._optimizers = [optimizer_of(objective), optimizer_of(reference)]

    def our_loss(self) -> torch.Tensor:
        return weighted_loss(self.objective, self.batch)

    def their_loss(self) -> torch.Tensor:
        raise NotImplementedError

    def ours(self) -> float:
        return _step(self.our_loss, self._optimizers[0])

    def theirs(self) -> float:
        return _step(self.their_loss, self._optimizers[1])


class CompressionSteps(Steps):
    """Compression pretraining or instruction tuning, by the kind of examples."""

    def __init__(
        self, model: Clara, examples: Sequence[PretrainingExample] | Sequence[AnswerExample]
    ) -> None:
        encoder = Encoder(model.tokenizer, model.config, None)
        reference = ReferenceTraining(model, (COMPRESSOR, GENERATOR), trains_rows=True)
        objective = CompressionObjective(model, alignment_weight=ALIGNMENT).train()
        batch = CompressionCollator(encoder)(examples)
        super().__init__(model, objective, reference.train(), batch)

    def their_loss(self) -> torch.Tensor:
        return self.reference.pretraining_loss(self.batch, ALIGNMENT)


class EndToEndSteps(Steps):
    """Questions with as many candidates each, whose memory we read back and they make anew."""

    def __init__(self, model: Clara, examples: Sequence[RankingExample], top_k: int) -> None:
        encoder = Encoder(model.tokenizer, model.config, None)
        reference = ReferenceTraining(model, (QUERY_REASONER, GENERATOR), trains_rows=False)
        self._folder = TemporaryDirectory()
        memory = CandidateMemory(model, Path(self._folder.name) / "candidates")
        texts = [text for example in examples for text in example.documents]
        memory.add(texts)
        schedule = SelectionSchedule(model.config)
        objective = EndToEndObjective(
            model, {memory.rate: memory}, top_k=top_k, schedule=schedule
        ).train()
        batch = RankingCollator(encoder, top_k)(examples)
        super().__init__(model, objective, reference.train(), batch)
        self._top_k, self._temperature = top_k, model.config.temperature
        passages = [encoder.passages([text], "document")[0] for text in texts]
        self._documents = encoder.pack(passages).batch

    def their_loss(self) -> torch.Tensor:
        return self.reference.end_to_end_loss(
            self.batch, self._documents, self._top_k, self._temperature
        )


def pretraining_examples(model: Clara, count: int) -> list[PretrainingExample]:
    """Documents of the published lengths, with a question and answer for every dozen words.

    That is as many as published passages have.
    """
    return [_asked(text) for text in documents(count, model.tokenizer.tokenizer)]


def answer_examples(model: Clara, questions: int, documents_each: int) -> list[AnswerExample]:
    """Questions over so many documents of the published lengths."""
    return [
        AnswerExample(example.question, example.documents, example.answer)
        for example in ranking_examples(model, questions, documents_each)
    ]


def ranking_examples(model: Clara, questions: int, candidates: int) -> list[RankingExample]:
    texts = documents(questions * candidates, model.tokenizer.tokenizer)
    return [
        RankingExample(
            "Which of the two is longer, and by how much, measured along the coast?",
            tuple(texts[row * candidates : (row + 1) * candidates]),
            (0,),
            "the first, by about 400 km",
        )
        for row in range(questions)
    ]


def _asked(text: str) -> PretrainingExample:
    words = text.split()
    parts = [words[start : start + 12] for start in range(0, max(len(words) - 5, 1), 12)]
    return PretrainingExample(
        "qa",
        tuple(f"What does the document say of {' '.join(part[:5])}?" for part in parts),
        tuple(" ".join(part[5:8]) or "nothing" for part in parts),
        (text,),
    )


def model_to_train(backbone: Path, rate: int, dtype: DtypeName | None = None) -> Clara:
    """Without dropout, whose draws the two ways could not have in common."""
    model = load_model(backbone, rate, dtype=dtype)
    for module in model.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config = model.config.replace(lora_dropout=0.0)
    return model


def prepare_step(
    backbone: Path, rate: int, threads: int, count: int, ours: bool
) -> Callable[[], object]:
    """For `peak.peak_memory`: a pretraining step, the other way's model put aside."""
    torch.set_num_threads(threads)
    model = model_to_train(backbone, rate)
    steps = CompressionSteps(model, pretraining_examples(model, count))
    step = steps.ours if ours else steps.theirs
    if ours:
        del steps.reference
    kept = steps.objective if ours else steps.reference
    for parameter in kept.parameters():
        parameter.sum()
    return step


def weighted_loss(objective: nn.Module, batch: Any) -> torch.Tensor:
    """The sum of an objective's terms, as the trainer weighs them."""
    sums = objective(batch)
    terms = objective.terms.items()
    parts = [term.weight * sums[name] / batch.counts[term.per] for name, term in terms]
    return torch.stack(parts).sum()


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    # `clara train` leaves the optimizer to transformers, whose default is this one.
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)


def _step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    return value.item()
