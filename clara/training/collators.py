"""Turn examples into batches; each stage has a collator."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from clara.data.examples import (
    AnswerExample,
    DocumentQuestions,
    PretrainingExample,
    RankingExample,
)
from clara.data.unanswerable import REFUSAL
from clara.text.branches import pack_branches, packed_order
from clara.text.packing import CompressorInput, PackedPrompts
from clara.text.prompts import Prompt
from clara.training.batches import (
    CompressionBatch,
    EmptyBatch,
    PromptBatch,
    RankingBatch,
    candidate_id,
)
from clara.training.encoder import Encoder, SkippedExampleError
from clara.training.moments import Moment
from clara.training.prompts import pretraining_task
from clara.training.questions import Asking, QuestionPrompt

if TYPE_CHECKING:
    from clara.training.distillation import Distillation


class _Asked(NamedTuple):
    """Prompts that are answered from the same memory, and the texts that it is the memory of."""

    prompts: Sequence[Prompt]
    inputs: list[CompressorInput]


class CompressionCollator:
    """Batches of compression pretraining and instruction tuning.

    Args:
        asking: how questions of a `DocumentQuestions` are taken.
        distillation: what a teacher says about the answers to questions. Tasks in place of a
            question, and refusals, have no teacher.
    """

    def __init__(
        self,
        encoder: Encoder,
        asking: Asking | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self._encoder = encoder
        self._asking = asking or Asking()
        self._distillation = distillation

    def __call__(
        self,
        examples: Sequence[PretrainingExample | AnswerExample | DocumentQuestions],
        *,
        seed: int = 0,
        rate: int | None = None,
        averages_only: bool = False,
    ) -> CompressionBatch | EmptyBatch:
        """Make a batch.

        Args:
            seed: of the draw among more questions than are asked.
            rate: tokens per memory token in memory form "spans"; default from the configuration.
            averages_only: see `CompressionBatch`.
        """
        asked = self._encoder.usable(lambda example: self._asked(example, seed, rate), examples)
        made = [group for groups in asked for group in groups]
        events = self._encoder.take_events()
        if not made:
            return EmptyBatch(events)
        groups = [group.prompts for group in made]
        prompts = pack_branches(groups)
        documents = self._encoder.pack([each for group in made for each in group.inputs])
        slots = sum(documents.batch.n_memory)
        counts = {"tokens": len(prompts.targets), "documents": len(documents), "slots": slots}
        taught = None
        if self._distillation is not None:
            taught = self._distillation.taught(packed_order(groups), events)
            counts["taught"] = 0 if taught is None else len(taught)
        return CompressionBatch(counts, events, prompts, documents, averages_only, taught)

    def _asked(
        self,
        example: PretrainingExample | AnswerExample | DocumentQuestions,
        seed: int,
        rate: int | None,
    ) -> list[_Asked]:
        """What is asked about the example's documents, mostly all of one memory."""
        inputs = self._encoder.passages(example.documents, "document", rate)
        counts = [each.n_memory for each in inputs]
        if isinstance(example, DocumentQuestions):
            prompts = self._encoder.usable(
                lambda pair: self._question_prompt(counts, example.documents, *pair),
                self._asking.drawn(example, seed=seed),
            )
            return [_Asked(group, inputs) for group in self._asking.groups(prompts)]
        if isinstance(example, AnswerExample):
            asked = example.documents, example.question, example.answer
            return [_Asked([self._question_prompt(counts, *asked)], inputs)]
        if not all(answer.strip() for answer in example.answers):
            raise SkippedExampleError("no answer tokens", "an answer is empty")
        question, answer = pretraining_task(example)
        return [_Asked([self._encoder.memory_prompt(counts, question, answer, task=True)], inputs)]

    def _question_prompt(
        self, counts: Sequence[int], documents: tuple[str, ...], question: str, answer: str
    ) -> Prompt:
        prompt = self._encoder.memory_prompt(counts, question, answer)
        if answer == REFUSAL:  # which a teacher that always answers has not learnt
            return prompt
        return QuestionPrompt(prompt.ids, prompt.answer_start, documents, question, answer)


class RankingCollator:
    """Batches of end-to-end and contrastive training.

    Args:
        top_k: documents in a prompt, where a question has that many candidates; None makes no
            prompts.
        rate: compression rate of the candidates' memory; default from the configuration.
        unusable: names of candidates that have no memory; their questions are left out.
        need_positives: leave out questions whose positives are not known.
        any_candidate: other candidates may be added to those of a question.
    """

    def __init__(
        self,
        encoder: Encoder,
        top_k: int | None,
        *,
        rate: int | None = None,
        unusable: Container[str] = (),
        need_positives: bool = False,
        any_candidate: bool = False,
    ) -> None:
        self._encoder = encoder
        self._top_k = top_k
        self._rate = rate or encoder.config.compression_rate
        self._unusable = unusable
        self._need_positives = need_positives
        self._any_candidate = any_candidate

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
            self._rate,
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
                example.documents,
                self._top_k,
                example.question,
                example.answer,
                rate=self._rate,
                any_candidate=self._any_candidate,
            )
        return _Question(inputs[0], prompt, candidates, example.positives)


class _Question(NamedTuple):
    question: CompressorInput
    prompt: Prompt | None
    candidates: list[str]
    positives: tuple[int, ...]


class RatesCollator:
    """Batches that draw the compression rate of their candidates' memory, each rate as likely.

    Args:
        by_rate: make a batch of examples at each rate, such as a `RankingCollator`.

    Attributes:
        rates: all of them, see `clara.training.moments.rates_of`.
    """

    asks_for_moment = True

    def __init__(self, by_rate: Mapping[int, Callable[..., Any]]) -> None:
        self._by_rate = by_rate
        self.rates = tuple(sorted(by_rate))

    def __call__(self, examples: Sequence[Any], moment: Moment, *, rate: int | None = None) -> Any:
        """Args: rate: of this batch; default is the one that the moment draws."""
        drawn = moment.random("rate").choice(self.rates)
        return self._by_rate[rate or drawn](examples)


class TextCollator:
    """Batches of plain-text training: documents stand in the prompt themselves.

    Args:
        asking: how questions of a `DocumentQuestions` are taken; they share the text.
    """

    def __init__(self, encoder: Encoder, asking: Asking | None = None) -> None:
        self._encoder = encoder
        self._asking = asking or Asking()

    def __call__(
        self, examples: Sequence[AnswerExample | DocumentQuestions], *, seed: int = 0
    ) -> PromptBatch | EmptyBatch:
        """Args: seed: of the draw among more questions than are asked."""
        made = [group for example in examples for group in self._groups(example, seed)]
        events = self._encoder.take_events()
        if not made:
            return EmptyBatch(events)
        prompts = pack_branches(made)
        return PromptBatch({"tokens": len(prompts.targets)}, events, prompts)

    def _groups(self, example: AnswerExample | DocumentQuestions, seed: int) -> list[list[Prompt]]:
        if isinstance(example, DocumentQuestions):
            pairs = self._asking.drawn(example, seed=seed)
        else:
            pairs = [(example.question, example.answer)]
        prompts = self._encoder.usable(
            lambda pair: self._encoder.text_prompt(example.documents, *pair), pairs
        )
        return self._asking.groups(prompts)
