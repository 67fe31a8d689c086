"""Turn documents into the token sequences that the compressor reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clara.config import Overflow
from clara.data.records import Document, DocumentLike, as_documents
from clara.text.packing import CompressorInput, chunk_spans, compressor_input
from clara.text.tokenizer import SafeTokenizer, check_text

__all__ = [
    "DocumentLike",
    "Passage",
    "as_documents",
    "compressor_inputs",
    "prepare_passages",
    "prepare_questions",
]


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


def prepare_passages(
    tokenizer: SafeTokenizer,
    documents: Sequence[Document],
    *,
    limit: int,
    overflow: Overflow,
    token_for_eos: bool = True,
) -> list[Passage]:
    """Tokenise documents and bring each within `limit` tokens.

    "chunk" splits a long document, "error" refuses it. "truncate" cuts it.

    Args:
        token_for_eos: a text that is cut has no end-of-sequence token, as it does not end there;
            give its place to one more token of the text.

    Raises:
        ValueError: a document is empty, over the limit with "error", or has the name of another
            document's chunk; names its id.
    """
    passages: list[Passage] = []
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
            most = limit + token_for_eos
            kept = tokens.ids[:most]
            cut = tokens.starts[most] if len(tokens.ids) > most else len(text)
            passages.append(Passage(name, name, title, text[:cut], kept, complete=False))
        else:
            spans = chunk_spans(text, tokens, limit)
            edges = [0, *(tokens.starts[begin] for begin, _ in spans[1:]), len(text)]
            for number, (begin, end) in enumerate(spans):
                part = text[edges[number] : edges[number + 1]]
                passages.append(
                    Passage(f"{name}#{number}", name, title, part, tokens.ids[begin:end])
                )
    _check_names(passages)
    return passages


def compressor_inputs(
    tokenizer: SafeTokenizer,
    passages: Sequence[Passage],
    *,
    n_memory: int | None = None,
    rate: int | None = None,
) -> list[CompressorInput]:
    """What the compressor or query reasoner reads of passages.

    Args:
        n_memory: memory tokens of every passage, in memory form "learned".
        rate: else tokens per memory token, see `compressor_input`.
    """
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return [
        compressor_input(
            passage.tokens,
            bos=bos,
            eos=eos if passage.complete else None,
            n_memory=n_memory,
            rate=rate,
        )
        for passage in passages
    ]


def _check_names(passages: Sequence[Passage]) -> None:
    """Refuse a document whose id is the name of another document's chunk, such as "a#0"."""
    owner: dict[str, str] = {}
    for passage in passages:
        other = owner.setdefault(passage.id, passage.document_id)
        if other != passage.document_id:
            raise ValueError(
                f"documents {other!r} and {passage.document_id!r} both have a part named "
                f"{passage.id!r}; change one of the ids"
            )


def prepare_questions(
    tokenizer: SafeTokenizer,
    questions: Sequence[str],
    *,
    limit: int,
    overflow: Overflow,
    token_for_eos: bool = True,
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
            token_for_eos=token_for_eos,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("document 'question", "'question")) from error
