"""Turn texts and questions into tokens within the limits of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from clara.config import ClaraConfig, Overflow, PromptTemplate
from clara.errors import ClaraError
from clara.text.packing import CompressorInput, pack
from clara.text.passages import as_documents, compressor_inputs, prepare_passages
from clara.text.prompts import Prompt, build_prompt, memory_slots, text_background
from clara.text.tokenizer import Piece, SafeTokenizer
from clara.training.batches import PackedTexts
from clara.training.prompts import TASK_PROMPT


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
        positions: of the backbone, which a text and its memory tokens must fit; None has no limit.
    """

    tokenizer: SafeTokenizer
    config: ClaraConfig
    max_prompt_tokens: int | None
    overflow: Overflow = "truncate"
    on_unusable: str = "skip"
    positions: int | None = None
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
        inputs = compressor_inputs(
            self.tokenizer,
            found,
            n_memory=config.memory_tokens,
            rate=(rate or config.compression_rate) if spans else None,
        )
        longest = max(len(each.ids) for each in inputs)
        if self.positions is not None and longest > self.positions:
            raise SkippedExampleError(
                f"{what} empty or too long",
                f"a {what} and its memory have {longest} tokens, the backbone has "
                f"{self.positions} positions",
            )
        return inputs

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
        self,
        candidates: Sequence[str],
        top_k: int,
        question: str,
        answer: str,
        *,
        rate: int | None = None,
        any_candidate: bool = False,
    ) -> Prompt:
        """A prompt with slots for the best `top_k` of the candidates.

        In memory form "spans" the slots of a document are known only when it is selected. There
        each document has one slot, which `PackedPrompts.with_counts` replaces by as many as it
        needs. The budget then holds for the longest candidates.

        Args:
            rate: of their memory in "spans"; default from the configuration.
            any_candidate: others may be selected too: the budget holds for the longest there are.
        """
        selected = min(top_k, len(candidates))
        m = self.config.memory_tokens
        if m is not None:
            return self.memory_prompt([m] * selected, question, answer)
        prompt = self.memory_prompt([1] * selected, question, answer)
        budget = self.max_prompt_tokens
        most = selected * (self.config.most_memory_tokens(rate) - 1)
        if budget is None or len(prompt.ids) + most <= budget:
            return prompt
        if any_candidate:
            self._check_budget(len(prompt.ids) + most)
        limit, rate = self.config.document_length, rate or self.config.compression_rate
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
