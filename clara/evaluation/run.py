"""`evaluate`: answer questions by several systems, and keep a line for each answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clara.data.records import Document, as_documents
from clara.errors.checks import as_integer
from clara.evaluation.answer_types import question_type
from clara.evaluation.checking import check_dataset
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.deciding import BATCH, decisive_settings, environment
from clara.evaluation.entries import Entry, checked, crossed, rankers_of, systems_of
from clara.evaluation.errors import EvaluationError
from clara.evaluation.folder import SUMMARY, Line, RunFolder, opened
from clara.evaluation.metrics import answer_scores
from clara.evaluation.rankers.protocol import Ranker
from clara.evaluation.summary import summarise
from clara.evaluation.swapping import others_of
from clara.evaluation.systems.protocol import (
    Answered,
    CheckingSystem,
    SwappedSystem,
    System,
)
from clara.evaluation.warming import warm_up_memory, warm_up_ranker
from clara.terminal.progress import DocumentProgress, document_progress

RANK_BATCH = 32
"""Questions that are ranked together where each has its own candidates."""

KEPT_RANKS = 100


@dataclass(frozen=True)
class Evaluation:
    """The results of a run.

    Attributes:
        answers, rankings: a dict for each line of answers.jsonl and rankings.jsonl.
        summary: what summary.json holds, see `summarise`.
        folder: of the run; None if it was kept in memory.
    """

    answers: list[Line]
    rankings: list[Line]
    summary: dict[str, Any]
    folder: Path | None


def evaluate(
    systems: Sequence[System] | Sequence[Entry],
    questions: Iterable[EvaluatedQuestion],
    documents: Mapping[str, Document] | Iterable[Document],
    *,
    rankers: Sequence[Ranker] = (),
    top_k: int = 5,
    output: str | os.PathLike[str] | None = None,
    rouge: bool = False,
    settings: Mapping[str, Any] | None = None,
    show_progress_bar: bool = False,
) -> Evaluation:
    """Answer every question by every system, score the answers, and summarise them.

    Args:
        systems: each is crossed with every ranker if it reads documents; or the entries
            themselves. Without any, the rankers alone are evaluated.
        questions: with golden answers and, where they are known, positives and candidates.
            Rankers alone need no golden answers.
        documents: of all questions.
        rankers: choose the documents.
        top_k: documents that a system reads.
        output: folder of the run; a run with the same settings is continued there. None keeps
            everything in memory.
        rouge: score ROUGE-L too, which needs the package rouge-score.
        settings: a JSON object with more that decides the results, kept in run.json.

    Raises:
        EvaluationError: a question cannot be evaluated, a prompt is too long, or the folder holds
            something else or a run of other settings.

    Example:
        >>> class Parrot:
        ...     name, reads_documents = "parrot", False
        ...     def answer(self, questions, documents):
        ...         return [Answered(text=question, prompt_tokens=0) for question in questions]
        >>> asked = EvaluatedQuestion("q1", "Paris", golden_answers=("paris",))
        >>> evaluate([Parrot()], [asked], []).summary["entries"][0]["scores"]["exact_match"]["mean"]
        1.0
    """
    top_k = as_integer(top_k, "top_k", least=1)
    given: list[Any] = list(systems)
    ready = [each for each in given if isinstance(each, Entry)]
    entries = checked(ready) if ready else crossed(given, rankers) if given or not rankers else []
    ranked_by = [*rankers_of(entries), *rankers]
    ranked_by = list({each.name: each for each in ranked_by}.values())
    if not isinstance(documents, Mapping):
        documents = {each.id: each for each in as_documents(documents)}
    dataset = Dataset(list(questions), dict(documents))
    check_dataset(dataset, answered=bool(entries), ranked=bool(ranked_by))
    more = {"rouge": rouge, **(settings or {})}
    if rouge:
        answer_scores("", [""], rouge=True)  # before anything is computed: is the package there?
    decisive = decisive_settings(entries, ranked_by, dataset, top_k, more)
    path = None if output is None else Path(output).expanduser()
    with opened(path, decisive, environment()) as folder:
        run = _Run(entries, ranked_by, dataset, top_k, folder, rouge=rouge)
        total = len(dataset.questions) * (len(entries) + len(ranked_by))
        done = len(folder.answers) + len(folder.rankings)
        with document_progress(
            "evaluate", total, done=done, visible=show_progress_bar, unit="answers"
        ) as bar:
            run.rank_all(bar)
            run.answer_all(bar)
        folder.write_trec()
        summary = summarise(folder, decisive, environment())
        folder.write(SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        return Evaluation(list(folder.answers), list(folder.rankings), summary, path)


class _Run:
    """One run: rankings first, then answers, batch by batch."""

    def __init__(
        self,
        entries: Sequence[Entry],
        rankers: Sequence[Ranker],
        dataset: Dataset,
        top_k: int,
        folder: RunFolder,
        *,
        rouge: bool,
    ) -> None:
        self._entries, self._dataset, self._top_k = entries, dataset, top_k
        self._rankers, self._folder, self._rouge = rankers, folder, rouge
        self._warm: set[str] = set()
        self._before = {line["system"]: line for line in folder.documents}

    def rank_all(self, bar: DocumentProgress) -> None:
        """Rank the candidates of all questions by all rankers."""
        questions, documents = self._dataset.questions, self._dataset.documents
        together = any(question.candidates is None for question in questions)
        size = len(questions) if together else RANK_BATCH
        for ranker in self._rankers:
            self._plan(ranker, self._candidates())
            most, warm = max(KEPT_RANKS, self._top_k), False
            for batch in _batches(questions, size):
                missing = [q for q in batch if (ranker.name, q.id) not in self._folder.rankings]
                if not missing:
                    continue
                with _named(ranker.name, batch):
                    if not warm:
                        warm_up_ranker(ranker, batch, documents, most)
                        warm = True
                    begin, before = time.perf_counter(), _other_seconds(ranker)
                    ranked = ranker.rank(batch, documents, most)
                    seconds = time.perf_counter() - begin - (_other_seconds(ranker) - before)
                took = 1000 * seconds / len(batch)
                self._folder.rankings.add(
                    [
                        {
                            "ranker": ranker.name,
                            "question": question.id,
                            "ranked": [name for name, _ in each],
                            "scores": [score for _, score in each],
                            "positives": list(question.positives),
                            "timings_ms": {"rank": took},
                        }
                        for question, each in zip(batch, ranked, strict=True)
                    ]
                )
                self._keep_measures()
                bar.advance(len(missing))

    def answer_all(self, bar: DocumentProgress) -> None:
        """Answer all questions by all entries; those of one batch by all of them in turn."""
        chosen = {
            ranker.name: [self._chosen(ranker, question) for question in self._dataset.questions]
            for ranker in rankers_of(self._entries)
        }
        swapping = [each for each in self._entries if isinstance(each.system, SwappedSystem)]
        others = {
            each.name: others_of(self._dataset, chosen[each.name], self._top_k)
            for each in rankers_of(swapping)
        }
        for system in systems_of(self._entries):
            lists = others if isinstance(system, SwappedSystem) else {}
            read = [
                names
                for entry in self._entries
                if entry.ranker is not None and entry.system is system
                for given in (chosen, lists)
                for names in given.get(entry.ranker.name, ())
            ]
            self._plan(system, self._documents(dict.fromkeys(n for names in read for n in names)))
        rows = list(range(len(self._dataset.questions)))
        self._check(rows, chosen)
        for batch in _batches(rows, BATCH):
            for entry in self._entries:
                ids = [self._dataset.questions[row].id for row in batch]
                missing = [name for name in ids if (entry.name, name) not in self._folder.answers]
                if not missing:
                    continue
                if entry.name not in self._warm:  # its first batch also waits for what is set up
                    self._answer(entry, batch, chosen, others, warming=True)
                    self._warm.add(entry.name)
                self._folder.answers.add(self._answer(entry, batch, chosen, others))
                self._keep_measures()
                bar.advance(len(missing))

    def _check(self, rows: Sequence[int], chosen: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Let systems refuse what they cannot read before anything is answered."""
        for entry in self._entries:
            if entry.ranker is None or not isinstance(entry.system, CheckingSystem):
                continue
            for batch in _batches(rows, BATCH):
                questions = [self._dataset.questions[row] for row in batch]
                if all((entry.name, each.id) in self._folder.answers for each in questions):
                    continue
                given = [self._documents(chosen[entry.ranker.name][row]) for row in batch]
                with _named(entry.name, questions):
                    entry.system.check([each.question for each in questions], given)

    def _answer(
        self,
        entry: Entry,
        rows: Sequence[int],
        chosen: Mapping[str, Sequence[Sequence[str]]],
        others: Mapping[str, Sequence[Sequence[str]]],
        *,
        warming: bool = False,
    ) -> list[Line]:
        """The lines of the answers of an entry to some questions.

        Args:
            warming: the lines will be thrown away.
        """
        questions = [self._dataset.questions[row] for row in rows]
        texts = [question.question for question in questions]
        ranked: list[Sequence[str]] = [[] for _ in rows]
        if entry.ranker is not None:
            ranked = [chosen[entry.ranker.name][row] for row in rows]
        documents = [self._documents(names) for names in ranked]
        swapped: Sequence[Sequence[str] | None] = [None] * len(rows)
        with _named(entry.name, questions):
            if warming:
                warm_up_memory(entry.system, next(filter(None, documents), []))
            if entry.ranker is not None and isinstance(entry.system, SwappedSystem):
                swapped = [others[entry.ranker.name][row] for row in rows]
                read = [self._documents(names or ()) for names in swapped]
                answers = entry.system.answer_swapped(texts, documents, read)
            else:
                answers = entry.system.answer(texts, documents)
        lines = [
            _line(entry, question, names, answered, rouge=self._rouge)
            for question, names, answered in zip(questions, ranked, answers, strict=True)
        ]
        for line, names in zip(lines, swapped):
            line |= {} if names is None else {"swapped": list(names)}
        return lines

    def _chosen(self, ranker: Ranker, question: EvaluatedQuestion) -> list[str]:
        """The documents that are read for a question."""
        line = self._folder.rankings[ranker.name, question.id]
        names = list(line["ranked"][: self._top_k])
        for name in names:
            if name not in self._dataset.documents:
                raise EvaluationError(
                    f"ranker {ranker.name!r} ranks {name!r} for question {question.id!r}, which is "
                    "the id of no document"
                )
        return names

    def _documents(self, names: Iterable[str]) -> list[Document]:
        return [self._dataset.documents[name] for name in names]

    def _candidates(self) -> list[Document]:
        """All documents that are ranked for any question, in order of need."""
        if any(question.candidates is None for question in self._dataset.questions):
            return list(self._dataset.documents.values())
        asked = (question.candidates or () for question in self._dataset.questions)
        return self._documents(dict.fromkeys(name for names in asked for name in names))

    def _plan(self, part: object, documents: Sequence[Document]) -> None:
        """Say to a system or ranker that keeps something of documents which it will read."""
        if isinstance(memory := getattr(part, "memory", None), _Planned):
            memory.plan(documents)

    def _keep_measures(self) -> None:
        """Write what keeping the documents has taken so far, of earlier processes too."""
        lines = dict(self._before)
        for system in systems_of(self._entries):
            measures = getattr(getattr(system, "memory", None), "measures", None)
            if measures is None or not measures.documents or getattr(system, "control", None):
                continue
            before = self._before.get(system.name, {"documents": 0})
            lines[system.name] = _summed(system.name, before, measures)
        if list(lines.values()) != self._folder.documents:
            self._folder.write_documents(list(lines.values()))


@runtime_checkable
class _Planned(Protocol):
    def plan(self, documents: Iterable[Document]) -> None: ...


def _summed(name: str, before: Mapping[str, Any], measures: Any) -> Line:
    """Means over the documents of earlier processes and of this one."""
    count = before["documents"] + measures.documents

    def mean(field: str, total: float) -> float:
        return float((before.get(field, 0) * before["documents"] + total) / count)

    return {
        "system": name,
        "documents": count,
        "bytes_per_document": mean("bytes_per_document", measures.nbytes),
        "seconds_per_document": mean("seconds_per_document", measures.seconds),
        "tokens_per_document": mean("tokens_per_document", measures.tokens),
        "vectors_per_document": mean("vectors_per_document", measures.vectors),
    }


def _line(
    entry: Entry,
    question: EvaluatedQuestion,
    names: Sequence[str],
    answered: Answered,
    *,
    rouge: bool,
) -> Line:
    right = set(question.positives)
    golds = list(question.golden_answers)
    return {
        "entry": entry.name,
        "question": question.id,
        "text": question.question,
        "golds": golds,
        "answerable": question.answerable,
        "ranked": list(names),
        "gold_rank": next((at for at, name in enumerate(names, 1) if name in right), None),
        "prompt_tokens": answered.prompt_tokens,
        "text_prompt_tokens": answered.text_prompt_tokens,
        "vectors": answered.vectors,
        "document_tokens": answered.document_tokens,
        "kept_bytes": answered.kept_bytes,
        "answer": answered.text,
        "scores": answer_scores(answered.text, golds, rouge=rouge),
        "answer_type": question_type(question),
        "timings_ms": dict(answered.timings_ms),
    }


@contextmanager
def _named(name: str, questions: Sequence[EvaluatedQuestion]) -> Iterator[None]:
    """Add the entry and the questions to a message about them."""
    try:
        yield
    except ValueError as error:  # about what it was given; anything else is a bug
        first, last = questions[0].id, questions[-1].id
        which = f"question {first!r}" if first == last else f"questions {first!r} to {last!r}"
        raise EvaluationError(f"{name}, {which}: {error}") from error


def _other_seconds(ranker: Ranker) -> float:
    """What a ranker has spent so far that is no part of ranking, without what it has been saved."""
    spent = float(getattr(ranker, "document_seconds", 0.0))
    return spent - float(getattr(ranker, "reused_seconds", 0.0))


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), max(size, 1)))
