"""The JSON of SQuAD v1.1 and v2.0, which XQuAD and many sets in other languages share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from clara.data.lines import Fields, identifier, not_json
from clara.data.records import Document
from clara.data.values import DataError, kind, shown
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.layouts.located import Located, Path, checked


def read(path: Path) -> Dataset:
    """Read a file of articles, paragraphs and questions.

    Every paragraph becomes a document with the id "TITLE/NUMBER", where the number counts the
    paragraphs of that title from 0 on, and with the article's title; a paragraph that is there
    again is the same document. A question's only positive is its paragraph. One with
    "is_impossible" has no answer: its plausible answers are ignored.

    Raises:
        DataError: names the file and the place in it, such as "data[0]: paragraphs[2]: qas[1]":
            the JSON is not whole, a field is missing or of another type, a question has no answers
            without "is_impossible", or two questions have one id.
    """
    place = os.fspath(path)
    whole = _parsed(path)
    documents: dict[str, Document] = {}
    located: list[Located] = []
    first: dict[str, str] = {}
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for article in whole.objects("data"):
        title = article.optional_text("title")
        for paragraph in article.objects("paragraphs"):
            text = paragraph.text("context")
            if text not in names:
                number = numbers.get(title or "", 0)
                numbers[title or ""] = number + 1
                names[text] = f"{title}/{number}" if title else str(number)
                documents[names[text]] = Document(names[text], text, title)
            for question in _questions(paragraph, names[text]):
                name = question.question.id
                if name in first:
                    raise DataError(
                        f"{question.where}: id {shown(name)} is also that of {first[name]}"
                    )
                first[name] = question.where.removeprefix(f"{place}: ")
                located.append(question)
    return checked(located, documents, place)


def _questions(paragraph: Fields, document: str) -> Iterator[Located]:
    for entry in paragraph.objects("qas"):
        answerable = not entry.flag("is_impossible", False)
        answers: list[str] = []
        if answerable:
            answers = [answer.text("text").strip() for answer in entry.objects("answers")]
            if not answers:
                raise DataError(f"{entry.where}: field 'answers' is empty")
        question = EvaluatedQuestion(
            id=identifier(entry.values, "id", entry.where),
            question=entry.text("question").strip(),
            golden_answers=tuple(dict.fromkeys(answers)),
            positives=(document,) if answerable else (),
            answerable=answerable,
        )
        yield Located(entry.where, question)


def _parsed(path: Path) -> Fields:
    place = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file, strict=False)
    except OSError as error:
        raise DataError(f"{place}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not valid UTF-8: byte 0x{error.object[error.start]:02x}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.lineno}: {not_json(error)}") from error
    except RecursionError as error:
        raise DataError(f"{place}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be a JSON object with the field 'data', got {kind(value)}")
    return Fields(place, value)
