"""What an evaluation asks of a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from clara.data.records import Document


@dataclass(frozen=True)
class Answered:
    """An answer and what it took.

    Attributes:
        text: the answer, without white space around it.
        prompt_tokens: length of the prompt, memory slots included.
        timings_ms: milliseconds by stage, such as "generate". Questions that are answered in one
            batch share its time equally.
        text_prompt_tokens: length of the same prompt with all of the documents' text; None
            without documents.
        vectors: memory vectors in the prompt; None for a system that has none.
        document_tokens: tokens of the text that the vectors stand for.
        kept_bytes: bytes of what is kept of the documents between questions; None if nothing is.
    """

    text: str
    prompt_tokens: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    text_prompt_tokens: int | None = None
    vectors: int | None = None
    document_tokens: int | None = None
    kept_bytes: int | None = None


class System(Protocol):
    """A way to answer questions. People may bring their own.

    It may have more: `settings`, a JSON object with what decides its answers, such as the digest
    of a model; `control`, "shuffled" or "none", for a system that shows what another one's answers
    are worth; `rate`, an integer, and `kind`, the name without it; `trained`, false for a model
    that has learnt nothing yet; and the methods `rank`, see `Ranker`, and `check`, see
    `CheckingSystem`.
    """

    @property
    def name(self) -> str:
        """The name, such as "text" or "clara@4"; no two systems of a run have the same."""

    @property
    def reads_documents(self) -> bool:
        """False for a system that is given no documents, and so needs no ranker."""

    def answer(
        self, questions: Sequence[str], documents: Sequence[Sequence[Document]]
    ) -> list[Answered]:
        """Answer questions, each from its documents, best first.

        The same questions and documents in one call must give the same answers at any time. A run
        answers its first batch twice, so that what is set up once is not timed, and one that was
        killed asks for a batch again.
        """


@runtime_checkable
class CheckingSystem(Protocol):
    """A system that can say at once that documents are too long for it."""

    def check(self, questions: Sequence[str], documents: Sequence[Sequence[Document]]) -> None:
        """
        Raises:
            ValueError: what it would raise in answering.
        """


@runtime_checkable
class SwappedSystem(Protocol):
    """A control that reads other documents in place of the right ones."""

    def answer_swapped(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[Document]],
        others: Sequence[Sequence[Document]],
    ) -> list[Answered]:
        """Answer questions from the documents of other questions.

        Args:
            documents: the right ones, whose place the others take.
            others: documents of another question for each question.
        """


def settings_of(part: object) -> dict[str, object]:
    """What decides the results of a system or ranker, as a JSON object."""
    return dict(getattr(part, "settings", None) or {})
