"""Turn examples into the packed tensors that a training step reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from clara.config import ClaraConfig, Overflow, PromptTemplate
from clara.data.examples import AnswerExample, PretrainingExample, RankingExample
from clara.errors import ClaraError
from clara.text.packing import (
    CompressorInput,
    PackedBatch,
    PackedPrompts,
    compressor_input,
    pack,
)
from clara.text.passages import as_documents, prepare_passages
from clara.text.prompts import Prompt, build_prompt, memory_slots, text_background
from clara.text.tokenizer import Piece, SafeTokenizer
from clara.training.prompts import TASK_PROMPT, pretraining_task

EVENTS = (
    "candidate empty or too long",
    "candidate truncated",
    "document empty or too long",
    "document truncated",
    "no answer tokens",
    "no positives",
    "prompt over the budget",
    "question empty or too long",
    "question truncated",
)
"""What is counted of examples left out and texts cut."""


@dataclass(frozen=True)
class PackedTexts:
    """Documents or questions as the compressor reads them, one after the other.

    Attributes:
        batch: the texts, longest first.
        text_tokens: tokens of the texts alone, without markers and memory slots.
    """

    batch: PackedBatch
    text_tokens: int

    def __len__(self) -> int:
        return len(self.batch.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTexts:
        return replace(self, batch=self.batch.to(device, non_blocking))

    def in_order(self, memory: Tensor) -> list[Tensor]:
        """`[m_i, H]` of each text in the caller's order, from the memory `[M, H]` of `batch`."""
        found: list[Tensor] = [memory] * len(self)
        for row, each in zip(self.batch.rows, memory.split(self.batch.n_memory), strict=True):
            found[row] = each
        return found


@dataclass(frozen=True)
class Batch:
    """What all stages' batches have.

    Attributes:
        counts: what a term of the loss is averaged over: "tokens" (of answers), "documents",
            "questions".
        events: examples left out and texts cut, by reason, of `EVENTS`.
    """

    counts: dict[str, int]
    events: Counter[str]

    @property
    def tokens_read(self) -> int:
        """Positions that go through the backbone."""
        return 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Prompts with answers; their memory slots are filled by the step."""

    prompts: PackedPrompts

    @property
    def tokens_read(self) -> int:
        return super().tokens_read + sum(self.prompts.batch.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        return replace(moved, prompts=self.prompts.to(device, non_blocking))


class EmptyBatch(Batch):
    """A batch of which no example is left; see `Objective.stand_in`."""

    def __init__(self, events: Counter[str]) -> None:
        super().__init__({}, events)


@dataclass(frozen=True)
class CompressionBatch(PromptBatch):
    """Documents, and prompts that are answered from the memory of consecutive ones of them.

    Attributes:
        averages_only: memory is the averaged embeddings of its spans, without the compressor.
    """

    documents: PackedTexts
    averages_only: bool = False

    @property
    def tokens_read(self) -> int:
        compressed = 0 if self.averages_only else sum(self.documents.batch.lengths)
        return super().tokens_read + compressed

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        return replace(moved, documents=self.documents.to(device, non_blocking))


@dataclass(frozen=True)
class RankingBatch(Batch):
    """Questions with candidates.

    Attributes:
        questions: as the query reasoner reads them.
        prompts: with slots for the k best candidates; None where nothing is generated.
        candidates: names of each question's candidates, see `candidate_id`.
        positives: positions among them of those that hold the answer.
    """

    questions: PackedTexts
    prompts: PackedPrompts | None
    candidates: list[list[str]]
    positives: list[tuple[int, ...]]

    @property
    def tokens_read(self) -> int:
        answered = 0 if self.prompts is None else sum(self.prompts.batch.lengths)
        return answered + sum(self.questions.batch.lengths)

    def with_candidates(self, candidates: list[list[str]]) -> RankingBatch:
        """The same questions with other candidates; positives keep their positions."""
        return replace(self, candidates=candidates)

    @property
    def offsets(self) -> list[int]:
        """Where each question's candidates begin when all lie one after the other."""
        return [0, *accumulate(len(names) for names in self.candidates)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        prompts = None if self.prompts is None else self.prompts.to(device, non_blocking)
        return replace(self, questions=self.questions.to(device, non_blocking), prompts=prompts)


def candidate_id(text: str) -> str:
    """The name under which a candidate's memory is kept: a digest of its text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


class SkippedExampleError(ClaraError, ValueError):
    """An example that cannot be trained on; `reason` is what it is counted under.

    With `on_unusable="error"` it ends the training, and its message is for the user.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # so that a loader's process can pass it on
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


Example = TypeVar("Example")
Made = TypeVar("Made")


@dataclass
class Encoder:
    """Tokenises texts and prompts within the model's limits.

    Attributes:
        max_prompt_tokens: budget of a prompt with its answer.
        overflow: what to do with a document or question over the limit of the configuration.
        on_unusable: "skip" leaves an example out and counts it, "error" ends the training.
    """

    tokenizer: SafeTokenizer
    config: ClaraConfig
    max_prompt_tokens: int | None
    overflow: Overflow = "truncate"
    on_unusable: str = "skip"
    events: Counter[str] = field(default_factory=Counter)

    def usable(self, make: Callable[[Example], Made], examples: Sequence[Example]) -> list[Made]:
        """What `make` makes of the examples that it does not refuse."""
        made = []
        for example in examples:
            try:
                made.append(make(example))
            except SkippedExampleError as error:
                if self.on_unusable == "error":
                    raise
                self.events[error.reason] += 1
        return made

    def take_events(self) -> Counter[str]:
        """What was counted since the last call."""
        counted, self.events = self.events, Counter()
        return counted

    def passages(
        self, texts: Sequence[str], what: str, rate: int | None = None
    ) -> list[CompressorInput]:
        """Compressor inputs of texts; a text that is split gives several.

        Args:
            rate: tokens per memory token in memory form "spans"; default from the configuration.
        """
        config = self.config
        spans = config.memory_form == "spans"
        try:
            found = prepare_passages(
                self.tokenizer,
                as_documents(texts),
                limit=config.document_length,
                overflow=self.overflow,
                token_for_eos=not spans,
            )
        except ValueError as error:
            raise SkippedExampleError(f"{what} empty or too long", f"{what}: {error}") from error
        cut = sum(not passage.complete for passage in found)
        if cut:
            self.events[f"{what} truncated"] += cut
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return [
            compressor_input(
                passage.tokens,
                bos=bos,
                eos=eos if passage.complete else None,
                n_memory=config.memory_tokens,
                rate=(rate or config.compression_rate) if spans else None,
            )
            for passage in found
        ]

    def pack(self, inputs: Sequence[CompressorInput]) -> PackedTexts:
        """All inputs in one batch."""
        total = sum(len(each.ids) for each in inputs)
        (batch,) = pack(inputs, batch_tokens=total, device=torch.device("cpu"))
        return PackedTexts(batch, sum(each.text_tokens for each in inputs))

    def memory_prompt(
        self, counts: Sequence[int], question: str, answer: str, *, task: bool = False
    ) -> Prompt:
        """A prompt with slots for documents of so many memory tokens each."""
        slots = memory_slots(counts, self.config.separator)
        template = TASK_PROMPT if task else self.config.prompt
        return self._prompt(template, slots, question, answer)

    def selection_prompt(
        self, candidates: Sequence[str], top_k: int, question: str, answer: str
    ) -> Prompt:
        """A prompt with slots for the best `top_k` of the candidates.

        In memory form "spans" the slots of a document are known only when it is selected. There
        each document has one slot, which `PackedPrompts.with_counts` replaces by as many as it
        needs. The budget then holds for the longest candidates.
        """
        selected = min(top_k, len(candidates))
        m = self.config.memory_tokens
        if m is not None:
            return self.memory_prompt([m] * selected, question, answer)
        prompt = self.memory_prompt([1] * selected, question, answer)
        budget = self.max_prompt_tokens
        most = selected * (self.config.most_memory_tokens() - 1)
        if budget is None or len(prompt.ids) + most <= budget:
            return prompt
        limit, rate = self.config.document_length, self.config.compression_rate
        encoded = self.tokenizer.encode_texts(list(candidates))
        counts = sorted(-(-min(len(text.ids), limit) // rate) for text in encoded)
        self._check_budget(len(prompt.ids) + sum(counts[-selected:]) - selected)
        return prompt

    def text_prompt(self, texts: Sequence[str], question: str, answer: str) -> Prompt:
        """The prompt of plain retrieval-augmented generation."""
        return self._prompt(self.config.prompt, text_background(texts), question, answer)

    def _prompt(
        self, template: PromptTemplate, background: Sequence[Piece], question: str, answer: str
    ) -> Prompt:
        if not answer.strip():
            raise SkippedExampleError("no answer tokens", "an answer is empty")
        prompt = build_prompt(self.tokenizer, template, background, question, answer)
        self._check_budget(len(prompt.ids))
        if prompt.answer_start >= len(prompt.ids):
            raise SkippedExampleError("no answer tokens", "an answer has no tokens")
        return prompt

    def _check_budget(self, tokens: int) -> None:
        if self.max_prompt_tokens is not None and tokens > self.max_prompt_tokens:
            raise SkippedExampleError(
                "prompt over the budget",
                f"a prompt has {tokens} tokens, max_prompt_tokens is {self.max_prompt_tokens}",
            )


class CompressionCollator:
    """Batches of compression pretraining and instruction tuning."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(
        self, examples: Sequence[PretrainingExample | AnswerExample], rate: int | None = None
    ) -> CompressionBatch | EmptyBatch:
        """Args: rate: see `Encoder.passages`."""
        made = self._encoder.usable(partial(self._one, rate), examples)
        events = self._encoder.take_events()
        if not made:
            return EmptyBatch(events)
        prompts = PackedPrompts.of([prompt for prompt, _ in made])
        documents = self._encoder.pack([each for _, inputs in made for each in inputs])
        counts = {"tokens": len(prompts.targets), "documents": len(documents)}
        return CompressionBatch(counts, events, prompts, documents)

    def _one(
        self, rate: int | None, example: PretrainingExample | AnswerExample
    ) -> tuple[Prompt, list[CompressorInput]]:
        inputs = self._encoder.passages(example.documents, "document", rate)
        task = isinstance(example, PretrainingExample)
        if isinstance(example, PretrainingExample):
            if not all(answer.strip() for answer in example.answers):
                raise SkippedExampleError("no answer tokens", "an answer is empty")
            question, answer = pretraining_task(example)
        else:
            question, answer = example.question, example.answer
        counts = [each.n_memory for each in inputs]
        return self._encoder.memory_prompt(counts, question, answer, task=task), inputs


class RankingCollator:
    """Batches of end-to-end and contrastive training.

    Args:
        top_k: documents in a prompt, where a question has that many candidates; None makes no
            prompts.
        unusable: names of candidates that have no memory; their questions are left out.
        need_positives: leave out questions whose positives are not known.
    """

    def __init__(
        self,
        encoder: Encoder,
        top_k: int | None,
        *,
        unusable: Container[str] = (),
        need_positives: bool = False,
    ) -> None:
        self._encoder = encoder
        self._top_k = top_k
        self._unusable = unusable
        self._need_positives = need_positives

    def __call__(self, examples: Sequence[RankingExample]) -> RankingBatch | EmptyBatch:
        made = self._encoder.usable(self._one, examples)
        events = self._encoder.take_events()
        if not made:
            return EmptyBatch(events)
        counts = {"questions": len(made)}
        prompts = None
        if self._top_k is not None:
            prompts = PackedPrompts.of([each.prompt for each in made if each.prompt is not None])
            counts["tokens"] = len(prompts.targets)
        return RankingBatch(
            counts,
            events,
            self._encoder.pack([each.question for each in made]),
            prompts,
            [each.candidates for each in made],
            [each.positives for each in made],
        )

    def _one(self, example: RankingExample) -> _Question:
        if self._need_positives and not example.positives:
            raise SkippedExampleError("no positives", "a question has no pos_index")
        candidates = [candidate_id(text) for text in example.documents]
        if any(name in self._unusable for name in candidates):
            raise SkippedExampleError(
                "candidate empty or too long", "a question has a candidate without memory"
            )
        rate = self._encoder.config.question_rate
        inputs = self._encoder.passages([example.question], "question", rate)
        if len(inputs) > 1:
            raise SkippedExampleError(
                "question empty or too long", "a question is longer than the document limit"
            )
        prompt = None
        if self._top_k is not None:
            prompt = self._encoder.selection_prompt(
                example.documents, self._top_k, example.question, example.answer
            )
        return _Question(inputs[0], prompt, candidates, example.positives)


class _Question(NamedTuple):
    question: CompressorInput
    prompt: Prompt | None
    candidates: list[str]
    positives: tuple[int, ...]


class TextCollator:
    """Batches of plain-text training: documents stand in the prompt themselves."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, examples: Sequence[AnswerExample]) -> PromptBatch | EmptyBatch:
        made = self._encoder.usable(self._one, examples)
        events = self._encoder.take_events()
        if not made:
            return EmptyBatch(events)
        prompts = PackedPrompts.of(made)
        return PromptBatch({"tokens": len(prompts.targets)}, events, prompts)

    def _one(self, example: AnswerExample) -> Prompt:
        return self._encoder.text_prompt(example.documents, example.question, example.answer)
