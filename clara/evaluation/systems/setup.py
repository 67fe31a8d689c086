"""What systems and rankers are made of: a model, and what is kept of documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from clara.evaluation.errors import EvaluationError
from clara.evaluation.systems.encoded import EncodedQuestions
from clara.evaluation.systems.generating import MAX_NEW_TOKENS
from clara.evaluation.systems.store import ComputedMemory, DocumentMemory, IndexedMemory
from clara.index import MemoryIndex
from clara.model.clara import Clara


class TunedReader(NamedTuple):
    """A model that was trained to answer from text.

    Attributes:
        adapter: what reads the text; None for a backbone that was trained itself.
    """

    model: Clara
    adapter: str | None


@dataclass
class Setup:
    """What systems and rankers of one run share.

    Attributes:
        model: whose backbone, tokenizer and prompt all of them use.
        has_adapters: False where `model` is a bare backbone, whose adapters mean nothing.
        rates: compression rates of the systems that have one, see `ClaraConfig.rates`.
        index: gives the memory of documents at its rate; that of other rates is computed.
        tuned: the reader of "text-tuned".
        contrastive: encodes the questions of the ranker "contrastive".
        seed: of what is drawn.
        encoded: questions as `model` encodes them, for rankers of several rates; None where one
            rate leaves nothing to share.
    """

    model: Clara
    has_adapters: bool = True
    rates: tuple[int, ...] = ()
    index: MemoryIndex | None = None
    tuned: TunedReader | None = None
    contrastive: Clara | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    seed: int = 0
    encoded: EncodedQuestions | None = field(init=False, default=None, repr=False)
    _memory: dict[int, DocumentMemory] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.index is not None and self.has_adapters:
            indexed = IndexedMemory(self.model, self.index)
            self._memory[indexed.rate] = indexed
        if not self.rates:
            self.rates = (next(iter(self._memory), self.model.config.compression_rate),)
        if len(self.rates) > 1 and self.has_adapters:
            self.encoded = EncodedQuestions(self.model)

    def memory(self, rate: int) -> DocumentMemory:
        """The memory of documents at a rate, shared by all that read it.

        Raises:
            EvaluationError: there is no model with adapters.
            ValueError: the model is not trained for the rate.
        """
        if not self.has_adapters:
            raise EvaluationError(
                "memory needs a model with adapters; give one, or leave out what reads memory"
            )
        if rate not in self._memory:
            self._memory[rate] = ComputedMemory(self.model, rate)
        return self._memory[rate]
