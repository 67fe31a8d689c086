"""Systems and rankers by the names that people give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clara.data.values import shown
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.entries import Entry, checked
from clara.evaluation.errors import EvaluationError, UnavailableError
from clara.evaluation.rankers.given import GivenRanker, GoldRanker, RandomRanker
from clara.evaluation.rankers.ours import MemoryRanker
from clara.evaluation.rankers.protocol import Ranker
from clara.evaluation.systems.cached import PrefixCacheSystem
from clara.evaluation.systems.memory import MemorySystem, NoMemory, ShuffledMemory
from clara.evaluation.systems.protocol import System
from clara.evaluation.systems.setup import Setup
from clara.evaluation.systems.shortened import ShortenedText
from clara.evaluation.systems.store import ComputedMemory, DocumentMemory
from clara.evaluation.systems.text import ClosedBook, TextSystem
from clara.terminal.printing import say

MakeSystem = Callable[[Setup, int], System]
"""Makes a system at a compression rate, which one without rates does not look at."""

MakeRanker = Callable[[Setup, int], Ranker]
"""Makes a ranker at a compression rate, which one without rates does not look at."""


@dataclass(frozen=True)
class SystemKind:
    """A kind of system.

    Attributes:
        make: makes one of them.
        has_rate: there is one for each compression rate.
        controls: made along with it, for the same ranker and rate.
        own_rankers: names of rankers that choose its documents besides those that are asked for.
        reads_documents: False if it needs no ranker.
    """

    make: MakeSystem
    has_rate: bool = False
    controls: tuple[MakeSystem, ...] = ()
    own_rankers: tuple[str, ...] = ("gold",)
    reads_documents: bool = True


@dataclass(frozen=True)
class RankerKind:
    """A kind of ranker.

    Attributes:
        make: makes one of them.
        has_rate: there is one for each compression rate. It ranks for a system of its own rate, and
            for every system that has none.
    """

    make: MakeRanker
    has_rate: bool = False


def _clara(setup: Setup, rate: int) -> System:
    return MemorySystem(setup.memory(rate), max_new_tokens=setup.max_new_tokens)


def _shuffled(setup: Setup, rate: int) -> System:
    return ShuffledMemory(setup.memory(rate), max_new_tokens=setup.max_new_tokens)


def _no_memory(setup: Setup, rate: int) -> System:
    return NoMemory(setup.memory(rate), max_new_tokens=setup.max_new_tokens)


def _text(setup: Setup, rate: int) -> System:
    return TextSystem(setup.model, max_new_tokens=setup.max_new_tokens)


def _tuned(setup: Setup, rate: int) -> System:
    if setup.tuned is None:
        raise EvaluationError("system 'text-tuned' needs the model of a clara train text run")
    model, adapter = setup.tuned
    return TextSystem(
        model, name="text-tuned", adapter=adapter, max_new_tokens=setup.max_new_tokens
    )


def _lingua(setup: Setup, rate: int) -> System:
    from clara.evaluation.systems.lingua import LinguaSystem

    return LinguaSystem(setup.model, rate, max_new_tokens=setup.max_new_tokens)


def _lead(setup: Setup, rate: int) -> System:
    return _shortened(setup, "lead", rate)


def _sentences(setup: Setup, rate: int) -> System:
    return _shortened(setup, "sentences", rate)


def _shortened(setup: Setup, kind: Literal["lead", "sentences"], rate: int) -> System:
    return ShortenedText(
        setup.model,
        kind,
        rate,
        has_adapters=setup.has_adapters,
        max_new_tokens=setup.max_new_tokens,
    )


def _prefix_cache(setup: Setup, rate: int) -> System:
    return PrefixCacheSystem(setup.model, max_new_tokens=setup.max_new_tokens)


def _closed_book(setup: Setup, rate: int) -> System:
    return ClosedBook(setup.model, max_new_tokens=setup.max_new_tokens)


SYSTEMS: dict[str, SystemKind] = {
    "clara": SystemKind(
        _clara,
        has_rate=True,
        controls=(_shuffled, _no_memory),
        own_rankers=("clara", "gold"),
    ),
    "text": SystemKind(_text),
    "text-tuned": SystemKind(_tuned),
    "lead": SystemKind(_lead, has_rate=True),
    "sentences": SystemKind(_sentences, has_rate=True),
    "prefix-cache": SystemKind(_prefix_cache),
    "llmlingua2": SystemKind(_lingua, has_rate=True),
    "closed-book": SystemKind(_closed_book, reads_documents=False),
}
"""Add a kind here to offer a system by name."""


def _ours(setup: Setup, rate: int) -> Ranker:
    return MemoryRanker(setup.memory(rate), encoded=setup.encoded)


def _bm25(setup: Setup, rate: int) -> Ranker:
    from clara.evaluation.rankers.bm25 import Bm25Ranker

    return Bm25Ranker()


def _minilm(setup: Setup, rate: int) -> Ranker:
    from clara.evaluation.rankers.minilm import MiniLmRanker

    return MiniLmRanker(device=setup.model.device)


def _contrastive(setup: Setup, rate: int) -> Ranker:
    model = setup.contrastive
    if model is None:
        raise EvaluationError(
            "ranker 'contrastive' needs the model of a clara train contrastive run"
        )
    memory: DocumentMemory = ComputedMemory(model)
    if setup.has_adapters and model.memory_space.accepts(setup.model.fingerprint):
        memory = setup.memory(rate)  # of the same compressor
    return MemoryRanker(memory, model=model, name="contrastive")


RANKERS: dict[str, RankerKind] = {
    "clara": RankerKind(_ours, has_rate=True),
    "bm25": RankerKind(_bm25),
    "minilm": RankerKind(_minilm),
    "contrastive": RankerKind(_contrastive),
    "random": RankerKind(lambda setup, rate: RandomRanker(setup.seed)),
    "gold": RankerKind(lambda setup, rate: GoldRanker()),
    "given": RankerKind(lambda setup, rate: GivenRanker()),
}
"""Add a kind here to offer a ranker by name."""


class _Rankers:
    """The rankers of a run, each made once, when it is first asked for."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._made: dict[tuple[str, int], Ranker] = {}

    def of(self, names: Sequence[str], rate: int | None = None) -> list[Ranker]:
        """Rankers by name: those that have a rate at this one, or at all of them."""
        every = self._setup.rates
        return [
            self._at(name, at)
            for name in names
            for at in (
                (every if rate is None else (rate,)) if RANKERS[name].has_rate else every[:1]
            )
        ]

    def _at(self, name: str, rate: int) -> Ranker:
        if (name, rate) not in self._made:
            self._made[name, rate] = RANKERS[name].make(self._setup, rate)
        return self._made[name, rate]


def check_names(given: Sequence[str], known: Mapping[str, Any], what: str) -> None:
    """Refuse a name that is not known, and a name that is given twice.

    Args:
        what: "system" or "ranker".

    Raises:
        EvaluationError: names it, and what would be accepted.
    """
    for name in given:
        if name not in known:
            raise EvaluationError(f"unknown {what} {name!r}; {what}s are {', '.join(known)}")
        if given.count(name) > 1:
            raise EvaluationError(f"{what} {name!r} is given {given.count(name)} times")


def _without_gold(questions: Sequence[EvaluatedQuestion]) -> EvaluatedQuestion | None:
    """The first question with an answer of which nobody knows which document holds it."""
    return next((each for each in questions if each.answerable and not each.positives), None)


def _check_gold(rankers: Sequence[str], questions: Sequence[EvaluatedQuestion]) -> None:
    """Refuse to call documents gold of which that is not known."""
    lacking = _without_gold(questions)
    if "gold" in rankers and lacking is not None:
        raise EvaluationError(
            f"ranker 'gold' needs to know which documents hold the answers, and question "
            f"{shown(lacking.id)} has no 'positives'"
        )


def rankers_by_name(
    setup: Setup, names: Sequence[str], questions: Sequence[EvaluatedQuestion]
) -> list[Ranker]:
    """Rankers to evaluate without any system; one that has a rate at each of the rates.

    Raises:
        EvaluationError: a name is not known, or something is missing that a ranker needs.
    """
    check_names(names, RANKERS, "ranker")
    _check_gold(names, questions)
    return _Rankers(setup).of(names)


def entries_of(
    setup: Setup,
    systems: Sequence[str],
    rankers: Sequence[str],
    questions: Sequence[EvaluatedQuestion],
    *,
    controls: bool = True,
) -> list[Entry]:
    """The entries of systems and rankers by name.

    A system that reads documents is crossed with the rankers, and with "gold" where it is known
    for every question that has an answer which documents hold it; CLaRa also with its own ranker.
    That ranks by memory of the rate of the system, and of every rate for a system that has none. A
    system that cannot run here is left out with a line on standard error that says why.

    Args:
        controls: bring the controls of CLaRa along.

    Raises:
        EvaluationError: a name is not known, or something is missing that a system or ranker needs.
    """
    check_names(systems, SYSTEMS, "system")
    check_names(rankers, RANKERS, "ranker")
    _check_gold(rankers, questions)
    known = _without_gold(questions) is None
    made = _Rankers(setup)
    entries: dict[str, Entry] = {}
    for name in systems:
        kind = SYSTEMS[name]
        own = [each for each in kind.own_rankers if each != "gold" or known]
        names = list(dict.fromkeys([*rankers, *own])) if kind.reads_documents else []
        if kind.reads_documents and not names:
            raise EvaluationError(
                f"system {name!r} reads documents and no ranker is given that chooses them; "
                f"rankers are {', '.join(RANKERS)}"
            )
        rates = setup.rates if kind.has_rate else setup.rates[:1]
        chosen = {at: made.of(names, at if kind.has_rate else None) for at in rates}
        try:
            new = _entries(kind, setup, chosen, controls)
        except UnavailableError as error:
            say(f"system {name} is left out: {error}")
            continue
        entries.update((entry.name, entry) for entry in new)
    return checked(list(entries.values()))


def _entries(
    kind: SystemKind, setup: Setup, chosen: Mapping[int, Sequence[Ranker]], controls: bool
) -> list[Entry]:
    """
    Args:
        chosen: the rankers of each rate that there is a system of.
    """
    entries = []
    for rate, rankers in chosen.items():
        for make in (kind.make, *(kind.controls if controls else ())):
            system = make(setup, rate)
            entries += (
                [Entry(system, ranker) for ranker in rankers]
                if system.reads_documents
                else [Entry(system)]
            )
    return entries
