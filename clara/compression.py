"""From documents to the token sequences that the compressor reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clara.config import Overflow
from clara.data.records import Document
from clara.packing import chunk_spans
from clara.tokenizer import SafeTokenizer, check_text

DocumentLike = str | Document | Mapping[str, Any]
"""A text, a `Document`, or a mapping with "contents" and perhaps "id" and "title"."""


@dataclass(frozen=True)
class Passage:
    """A document, or a chunk of one, ready to be compressed.

    Attributes:
        tokens: document tokens.
        complete: False when the end was cut off; the end-of-sequence token is then left out.
    """

    id: str
    document_id: str
    title: str | None
    text: str
    tokens: list[int]
    complete: bool = True


def as_documents(documents: Iterable[DocumentLike]) -> list[Document]:
    """Documents from any accepted form; a document without an id gets its position as id.

    Raises:
        TypeError, ValueError: names the position of a document that has no usable text.
    """
    if isinstance(documents, str | Mapping | Document):
        raise TypeError("documents must be a list of documents, got a single one")
    records = []
    for position, document in enumerate(documents):
        if isinstance(document, Document):
            check_text(document.text, f"documents[{position}].text")
            records.append(document)
        elif isinstance(document, str):
            check_text(document, f"documents[{position}]")
            records.append(Document(id=str(position), text=document))
        elif isinstance(document, Mapping):
            text = document.get("contents")
            if not isinstance(text, str):
                raise ValueError(f"documents[{position}]: 'contents' must be a string")
            check_text(text, f"documents[{position}]: 'contents'")
            name, title = document.get("id"), document.get("title")
            records.append(
                Document(
                    id=str(position if name is None else name),
                    text=text,
                    title=None if title is None else str(title),
                )
            )
        else:
            raise TypeError(
                f"documents[{position}] must be a string, Document or mapping, "
                f"got {type(document).__name__}"
            )
    return records


def prepare_passages(
    tokenizer: SafeTokenizer,
    documents: Sequence[Document],
    *,
    limit: int,
    overflow: Overflow,
) -> list[Passage]:
    """Tokenise documents and bring each within `limit` tokens.

    "chunk" splits a long document, "error" refuses it. "truncate" cuts it and gives the place
    of its end-of-sequence token to one more token, since the text does not end there.

    Raises:
        ValueError: a document is empty, or over the limit with "error"; names its id.
    """
    passages = []
    encoded = tokenizer.encode_texts([document.text for document in documents])
    for document, tokens in zip(documents, encoded, strict=True):
        name, title, text = document.id, document.title, document.text
        if not text.strip() or not tokens.ids:
            raise ValueError(f"document {name!r} is empty")
        if len(tokens.ids) <= limit:
            passages.append(Passage(name, name, title, text, tokens.ids))
        elif overflow == "error":
            raise ValueError(
                f"document {name!r} has {len(tokens.ids)} tokens, the limit is {limit}"
            )
        elif overflow == "truncate":
            kept = tokens.ids[: limit + 1]
            cut = tokens.starts[limit + 1] if len(tokens.ids) > limit + 1 else len(text)
            passages.append(Passage(name, name, title, text[:cut], kept, complete=False))
        else:
            spans = chunk_spans(text, tokens, limit)
            edges = [0, *(tokens.starts[begin] for begin, _ in spans[1:]), len(text)]
            for number, (begin, end) in enumerate(spans):
                part = text[edges[number] : edges[number + 1]]
                passages.append(
                    Passage(f"{name}#{number}", name, title, part, tokens.ids[begin:end])
                )
    return passages


def prepare_questions(
    tokenizer: SafeTokenizer,
    questions: Sequence[str],
    *,
    limit: int,
    overflow: Overflow,
) -> list[Passage]:
    """Tokenise questions; one over the limit is refused unless `overflow` is "truncate".

    Raises:
        TypeError, ValueError: names the question that is not a text, empty, or too long.
    """
    if isinstance(questions, str):
        raise TypeError("questions must be a list of strings, got a single string")
    questions = list(questions)
    for row, question in enumerate(questions):
        check_text(question, f"questions[{row}]")
        if not question.strip():
            raise ValueError(f"questions[{row}] is empty")
    records = [Document(id=f"question {row}", text=q) for row, q in enumerate(questions)]
    try:
        return prepare_passages(
            tokenizer,
            records,
            limit=limit,
            overflow="truncate" if overflow == "truncate" else "error",
        )
    except ValueError as error:
        raise ValueError(str(error).replace("document 'question", "'question")) from error
