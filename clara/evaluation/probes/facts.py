"""Facts of the World Factbook's countries that no training sees, for probes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from clara.data.factbook.asking import Asked, ask_all, guessable
from clara.data.factbook.build import build_documents, load_factbook
from clara.data.factbook.candidates import Candidates
from clara.data.factbook.drawing import drawn
from clara.data.factbook.passages import divided
from clara.data.records import Document
from clara.evaluation.errors import EvaluationError
from clara.evaluation.probes.conditions import ProbeSettings


@dataclass(frozen=True)
class Facts:
    """Documents about countries of the test split, and what can be asked of them.

    Facts are left out that can be guessed: their answer is right for many countries.
    """

    documents: list[Document]
    asked: list[Asked]
    seed: int

    @classmethod
    def load(cls, settings: ProbeSettings) -> Facts:
        """Read the installed package.

        Raises:
            FactbookError: the package is not installed, or documents are too short for a field.
        """
        countries = divided(load_factbook())["test"]
        documents = build_documents(countries, settings.count_tokens, settings.document_tokens)
        asked = ask_all(countries, documents)
        easy = guessable(asked)
        return cls(documents, [each for each in asked if each.kind not in easy], settings.seed)

    @cached_property
    def texts(self) -> dict[str, str]:
        return {document.id: document.text for document in self.documents}

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self.documents)

    def drawn(self, purpose: str, count: int, asked: list[Asked] | None = None) -> list[Asked]:
        """Draw facts for a purpose.

        Args:
            asked: to draw from; default all.

        Raises:
            EvaluationError: there are fewer than `count`.
        """
        known = self.asked if asked is None else asked
        if len(known) < count:
            raise EvaluationError(
                f"the Factbook has {len(known)} facts for the probe {purpose}, {count} questions "
                "were asked for"
            )
        return drawn(known, count, purpose, str(self.seed))

    def question(self, fact: Asked) -> str:
        """The question for a fact, with the country's name."""
        (question,) = drawn(fact.named, 1, fact.country, fact.kind, str(self.seed))
        return question

    def distractors(self, fact: Asked, count: int) -> list[str]:
        """The ids of `count` documents without the answer that are hard to tell from the right one.

        Every other one is about the same country, the others about the same field of another one.

        Raises:
            EvaluationError: there are not so many.
        """
        gold = fact.positives[0]
        near: list[str] = []
        far: list[str] = []
        for name in self._candidates.of(fact, 2 * count + 1):
            if name != gold:
                own = name.startswith(f"{fact.country}/")
                (near if own else far).append(name)
        mixed = [name for pair in zip(near, far) for name in pair]
        mixed += [name for name in (*near, *far) if name not in mixed]
        if len(mixed) < count:
            raise EvaluationError(
                f"there are {len(mixed)} documents beside the one that holds the answer, {count} "
                "were asked for"
            )
        return mixed[:count]


@lru_cache(maxsize=1)
def facts_of(settings: ProbeSettings) -> Facts:
    """`Facts.load`, once for all probes of the same settings."""
    return Facts.load(settings)
