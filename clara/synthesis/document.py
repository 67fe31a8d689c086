"""The loop over one document: questions, answers, judging, coverage, paraphrase."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clara.data.records import Document
from clara.synthesis import replies
from clara.synthesis.statistics import Statistics

LONGEST_QUESTION = 400  # characters
LONGEST_ANSWER = 1000
MOST_QUESTIONS = 60  # of one reply


class CallFailedError(Exception):
    """A call gave nothing to work with; `reason` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Ask(Protocol):
    """Puts a prompt to the generator."""

    async def __call__(
        self, prompt: str, kind: type[replies.Kind], *, attempt: int = 0, **values: Any
    ) -> replies.Kind:
        """The reply, read.

        Raises:
            CallFailedError: no reply, or none that can be read.
        """
        ...


@dataclass(frozen=True)
class Pair:
    """An accepted question and its answer; `kind` is "simple" or "complex"."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Material:
    """What a document gives to train with."""

    pairs: tuple[Pair, ...]
    paraphrase: str


@dataclass(frozen=True)
class Limits:
    """Attributes:
    rounds: most rounds of questions about what is not covered yet.
    attempts: most attempts at a paraphrase.
    """

    rounds: int = 10
    attempts: int = 10


class LeftOutError(Exception):
    """A document that is not used; `reason` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DocumentLoop:
    """Makes the material of one document (arXiv 2511.18659, synthesis of training data).

    Args:
        ask: puts prompts to the generator.
        counted: where pairs, rounds and rejections are counted.
    """

    def __init__(self, document: Document, ask: Ask, limits: Limits, counted: Statistics) -> None:
        self._text = document.text
        self._ask = ask
        self._limits = limits
        self._counted = counted
        self._asked: set[str] = set()
        self._questions: list[str] = []
        self._pairs: list[Pair] = []

    async def run(self) -> Material:
        """Raises LeftOutError for a document of which not everything can be asked and said."""
        try:
            await self._accept("simple", await self._questions_of("simple_questions"))
            joined = await self._questions_of("complex_questions", questions=self._questions)
            await self._accept("complex", joined)
        except CallFailedError as error:
            raise LeftOutError(f"questions: {error.reason}") from error
        try:
            await self._cover()
        except CallFailedError as error:
            raise LeftOutError(f"coverage: {error.reason}") from error
        if not self._pairs:
            raise LeftOutError("no pair was accepted")
        paraphrase = await self._paraphrase()
        for pair in self._pairs:
            self._counted.pairs[pair.kind] += 1
        return Material(tuple(self._pairs), paraphrase)

    async def _questions_of(self, prompt: str, *, attempt: int = 0, **values: Any) -> list[str]:
        """New questions of a reply."""
        reply = await self._ask(
            prompt, replies.Questions, attempt=attempt, document=self._text, **values
        )
        new = []
        for question in reply.questions[:MOST_QUESTIONS]:
            same = re.sub(r"\W+", " ", question.casefold()).strip()
            if not same or len(question) > LONGEST_QUESTION:
                self._counted.rejected["question empty or too long"] += 1
            elif same in self._asked:
                self._counted.rejected["question asked already"] += 1
            else:
                self._asked.add(same)
                new.append(question)
        if len(reply.questions) > MOST_QUESTIONS:
            beyond = len(reply.questions) - MOST_QUESTIONS
            self._counted.rejected["question beyond the most of a reply"] += beyond
        self._questions += new
        return new

    async def _accept(self, kind: str, questions: Sequence[str]) -> int:
        """Answer and judge questions; keeps the order. Returns how many pairs were accepted."""
        pairs = await asyncio.gather(*(self._pair(kind, question) for question in questions))
        accepted = [pair for pair in pairs if pair is not None]
        self._pairs += accepted
        return len(accepted)

    async def _pair(self, kind: str, question: str) -> Pair | None:
        values: dict[str, Any] = {"document": self._text, "question": question}
        rejected = self._counted.rejected
        try:
            reply = await self._ask("answer", replies.AnswerReply, **values)
            if not reply.answerable or not reply.answer:
                rejected["not in the document"] += 1
                return None
            if len(reply.answer) > LONGEST_ANSWER:
                rejected["answer too long"] += 1
                return None
            verdict = await self._ask("judge", replies.Verdict, answer=reply.answer, **values)
        except CallFailedError as error:
            rejected[error.reason] += 1
            return None
        if not verdict.correct:
            rejected["judged wrong"] += 1
            return None
        return Pair(kind, question, reply.answer)

    async def _cover(self) -> None:
        """Ask about what no pair covers, until nothing is missing.

        A document of which something is missing after the last round is left out.
        """
        for number in range(self._limits.rounds + 1):
            pairs = [{"question": p.question, "answer": p.answer} for p in self._pairs]
            reply = await self._ask(
                "coverage", replies.Coverage, attempt=number, document=self._text, pairs=pairs
            )
            missing = [fact for fact in reply.missing if fact][:MOST_QUESTIONS]
            if not missing:
                self._counted.rounds[number] += 1
                return
            if number == self._limits.rounds:
                break
            values = {"questions": self._questions, "missing": missing}
            new = await self._questions_of("supplementary_questions", attempt=number, **values)
            await self._accept("simple", new)
        self._counted.rounds[self._limits.rounds] += 1
        raise LeftOutError("facts are missing after all rounds")

    async def _paraphrase(self) -> str:
        """The first attempt that preserves the meaning."""
        reasons = set()
        for number in range(self._limits.attempts):
            try:
                reply = await self._ask(
                    "paraphrase", replies.Paraphrase, attempt=number, document=self._text
                )
                if not reply.paraphrase or reply.paraphrase.split() == self._text.split():
                    reasons.add("not a paraphrase")
                    continue
                check = await self._ask(
                    "check_paraphrase",
                    replies.ParaphraseCheck,
                    attempt=number,
                    document=self._text,
                    paraphrase=reply.paraphrase,
                )
            except CallFailedError as error:
                reasons.add(error.reason)
                continue
            if check.preserved:
                self._counted.attempts[number + 1] += 1
                return reply.paraphrase
            reasons.add("not preserved")
        self._counted.attempts[self._limits.attempts] += 1
        only = reasons.pop() if len(reasons) == 1 else "various reasons"
        raise LeftOutError(f"paraphrase: {only} in all attempts")
