"""Training examples, in the fields that the published data sets use."""

from __future__ import annotations

import os
from abc import abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

from clara.data import recognition
from clara.data.lines import Fields, lines, parsed
from clara.data.values import DataError
from clara.errors import reason


@dataclass(frozen=True)
class PretrainingExample:
    """A task that the generator solves from the memory of `documents`.

    The record `{"data_type", "question", "answers", "docs"}`. For "qa", all the questions and
    answers of the documents, in order. For "paraphrase", `answers[0]`, as `questions[0]` asks.
    """

    task: Literal["qa", "paraphrase"]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class DocumentQuestions:
    """Questions that are each answered from the same documents, whose memory they can share.

    The record `{"docs", "questions", "answers"}`; `answers[i]` is that of `questions[i]`.
    """

    documents: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class AnswerExample:
    """A question to answer from all of `documents`: `{"question", "docs", "answer"}`."""

    question: str
    documents: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class RankingExample:
    """A question to answer from the best of `documents`.

    The record `{"question", "docs", "pos_index"?, and an answer}`.

    Attributes:
        answer: "" where none is needed.
        positives: positions in `documents` of those that hold the answer; empty if not known.
    """

    question: str
    documents: tuple[str, ...]
    positives: tuple[int, ...]
    answer: str


Example = TypeVar(
    "Example",
    PretrainingExample,
    AnswerExample,
    DocumentQuestions,
    AnswerExample | DocumentQuestions,
    RankingExample,
)
Parse = Callable[[Fields], Example]


def pretraining_example(fields: Fields) -> PretrainingExample:
    """Read a record of compression pretraining.

    Raises:
        DataError: as all readers here: a field is missing, empty or of another type; says where.
    """
    task = fields.text("data_type")
    if task not in ("qa", "paraphrase"):
        raise DataError(
            f"{fields.where}: field 'data_type' must be 'qa' or 'paraphrase', got {task!r}"
        )
    answers = fields.texts("answers")
    if task == "paraphrase":
        questions = fields.texts("question") if fields.values.get("question") else ()
        return PretrainingExample("paraphrase", questions, answers, fields.texts("docs"))
    questions = _asked(fields, "question", answers)
    return PretrainingExample("qa", questions, answers, fields.texts("docs"))


def document_questions(fields: Fields) -> DocumentQuestions:
    """Read a record of the questions about one document, or about several.

    A record of compression pretraining with the type "qa" is one too; its questions are in the
    field "question".

    Raises:
        DataError: as `pretraining_example`; also for the type "paraphrase", which asks nothing.
    """
    task = fields.text("data_type") if "data_type" in fields else "qa"
    if task != "qa":
        raise DataError(f"{fields.where}: field 'data_type' must be 'qa', got {task!r}")
    documents, answers = fields.texts("docs"), fields.texts("answers")
    name = "question" if "question" in fields and "questions" not in fields else "questions"
    return DocumentQuestions(documents, _asked(fields, name, answers), answers)


def answer_example(fields: Fields) -> AnswerExample:
    """Read a record of instruction tuning; the answer is looked up as `answer_of` does."""
    return AnswerExample(_question(fields), fields.texts("docs"), answer_of(fields))


def answers_example(fields: Fields) -> AnswerExample | DocumentQuestions:
    """Read a record of instruction tuning: many questions if it has "questions", else one."""
    return document_questions(fields) if "questions" in fields else answer_example(fields)


def ranking_example(fields: Fields) -> RankingExample:
    """Read a record of end-to-end training."""
    return replace(contrastive_example(fields), answer=answer_of(fields))


def contrastive_example(fields: Fields) -> RankingExample:
    """Read a record of contrastive training, which needs no answer."""
    documents = fields.texts("docs")
    positives = fields.positions("pos_index", len(documents))
    return RankingExample(_question(fields), documents, positives, "")


def answer_of(fields: Fields) -> str:
    """Return the first of "answer", "answers", "gold_answer" and "golden_answers" in the record.

    A list gives its first entry.

    Raises:
        DataError: there is none.
    """
    for name in ("answer", "answers", "gold_answer", "golden_answers"):
        if name not in fields:
            continue
        if isinstance(fields.values[name], list):
            return fields.texts(name)[0]
        return fields.text(name)
    raise DataError(f"{fields.where}: field 'answer' is missing")


def _asked(fields: Fields, name: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The list of questions, as many as there are answers."""
    questions = fields.texts(name)
    if len(questions) != len(answers):
        raise DataError(
            f"{fields.where}: there are {len(questions)} questions and {len(answers)} answers"
        )
    return questions


def _question(fields: Fields) -> str:
    if isinstance(fields.values.get("question"), list):
        return fields.texts("question")[0]
    return fields.text("question")


class Examples(Sequence[Example], Generic[Example]):
    """Examples that are read at each access.

    Attributes:
        digest: of their content; None where it is not known.
    """

    digest: str | None

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> list[Example]: ...
    def __getitem__(self, row: int | slice) -> Example | list[Example]:
        if isinstance(row, slice):
            return [self[i] for i in range(len(self))[row]]
        return self._at(range(len(self))[row])

    @abstractmethod
    def _at(self, row: int) -> Example:
        """The example at a place from 0 on."""


class ExampleFile(Examples[Example]):
    """The examples of a file of JSON lines, read from the file at each access.

    Only the offsets of the lines are in memory. Lines are parsed when they are read, so that
    opening a file with millions of lines is quick; an error names the line.

    Attributes:
        digest: of the content of all lines that are not blank.

    Raises:
        DataError: the file cannot be read or holds no line.
    """

    def __init__(self, path: str | os.PathLike[str], parse: Parse[Example]) -> None:
        self._path = os.fspath(path)
        self._parse: Parse[Example] = parse
        self._numbers, self._offsets = array("q"), array("q")
        digest = blake2b(digest_size=16)
        for number, offset, raw in lines(path):
            self._numbers.append(number)
            self._offsets.append(offset)
            digest.update(raw + b"\n")
        self.digest = digest.hexdigest()
        if not self._offsets:
            raise DataError(f"{self._path}: holds no examples")

    def __len__(self) -> int:
        return len(self._offsets)

    def _at(self, row: int) -> Example:
        where = f"{self._path}:{self._numbers[row]}"
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offsets[row])
                raw = file.readline()
        except OSError as error:
            raise DataError(f"{where}: {error.strerror or error}") from error
        return self._parse(Fields(where, parsed(raw.strip(), where)))


class ExampleRows(Examples[Example]):
    """The examples of a table with random access to its rows, such as `datasets.Dataset`.

    Attributes:
        digest: the table's own fingerprint, None where it has none.
    """

    def __init__(self, rows: Any, name: str, parse: Parse[Example]) -> None:
        self._rows, self._name = rows, name
        # Depends on the revision and split of a published data set, not on where it is kept.
        fingerprint = getattr(rows, "_fingerprint", None)
        self.digest = fingerprint if isinstance(fingerprint, str) else None
        self._parse: Parse[Example] = parse
        if not len(rows):
            raise DataError(f"{name}: holds no examples")

    def __len__(self) -> int:
        return len(self._rows)

    def _at(self, row: int) -> Example:
        fields: Mapping[str, Any] = self._rows[row]
        return self._parse(Fields(f"{self._name}: row {row}", fields))


def check_source(source: str) -> Path | None:
    """The file that `source` names; None if it may be the name of a data set.

    Raises:
        DataError: there is no such file, and it cannot be the name of a data set; or the file is
            of another kind, or holds nothing.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if next(lines(path), None) is None:
            raise DataError(f"{source}: holds no examples")
        return path
    if path.is_dir():
        raise DataError(recognition.folder(source, recognition.RECORDS))
    if path.exists():
        raise DataError(f"{source}: is not a file of JSON lines")
    if path.suffix in (".json", ".jsonl") or path.is_absolute() or source.startswith("."):
        raise DataError(f"{source}: no such file")
    if find_spec("datasets") is None:
        raise DataError(
            f"{source}: no such file; reading a data set of that name needs the package datasets: "
            "pip install datasets"
        )
    return None


def open_examples(source: str, split: str, parse: Parse[Example]) -> Examples[Example]:
    """Examples of a file of JSON lines or of a data set.

    Args:
        source: a file, or a name that `datasets` knows, with "name:configuration" for one of
            several configurations.
        split: of the data set; a file has none.

    Raises:
        DataError: no such file or data set, or nothing in it.
    """
    path = check_source(source)
    if path is not None:
        return ExampleFile(path, parse)
    import datasets

    name, _, configuration = source.partition(":")
    try:
        rows = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise DataError(
            f"{source}: no such file, and no data set of that name can be read: {reason(error)}"
        ) from error
    return ExampleRows(rows, f"{source} ({split})", parse)
