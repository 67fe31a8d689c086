"""Write passages of definitions and of prose, with questions, for training and evaluation."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clara.data.candidate_questions import CandidateQuestion
from clara.data.definitions.asking import Pair, pairs_of
from clara.data.definitions.passages import Page, Piece, in_passages, of_entries, of_texts
from clara.data.definitions.prose import prose_folder, read_prose
from clara.data.definitions.wordnet import FOLDER, DefinitionsError, Entry, read_wordnet
from clara.data.factbook.answers import folded
from clara.data.factbook.build import SPLITS
from clara.data.factbook.drawing import drawn
from clara.data.factbook.passages import PASSAGE_TOKENS
from clara.data.records import Document, write_jsonl

RECONSTRUCTION = "Repeat the background word for word."
"""The task of repeating a passage, in the words that training has for it."""

CANDIDATES = 20
ASKED = 1_000
"""The most questions with candidates in a split that is held out."""

Record = dict[str, Any]


def write_definitions(
    folder: str | os.PathLike[str],
    *,
    wordnet: str | os.PathLike[str] = FOLDER,
    prose: str | os.PathLike[str] | None = None,
    with_prose: bool = True,
    max_tokens: int = PASSAGE_TOKENS,
) -> dict[str, int]:
    """Write docs.jsonl and the files of each split; the folder is made.

    documents.<split>.jsonl holds passages of definitions with all their questions, and
    reconstruction.<split>.jsonl holds records that repeat a passage, of definitions and of prose in
    random order. For validation and test, questions.<split>.jsonl holds questions with candidates.

    Args:
        wordnet: the folder of the package wordnet-base.
        prose: the folder of the package python3.X-doc; the newest that is installed if None.
        with_prose: whether there is prose besides the definitions.
        max_tokens: limit of a passage by `estimated_tokens`. What does not fit is left out.

    Returns:
        Records by file name. The same packages give the same bytes.

    Raises:
        DefinitionsError: a package is missing, or `max_tokens` leaves no room.
        OSError: a file cannot be written.
    """
    entries = read_wordnet(wordnet)
    texts = read_prose(prose or prose_folder()) if with_prose else []
    defined = without_shared(of_entries(entries))
    told = without_shared(of_texts(texts, max_tokens))
    ask = _asker(entries)
    corpus: list[Document] = []
    files: dict[str, list[Any]] = {"docs.jsonl": corpus}
    for split in SPLITS:
        pages = list(in_passages(defined[split], max_tokens))
        asked = {page.document.id: ask(page) for page in pages}
        passages = [page.document for page in pages]
        prosaic = [page.document for page in in_passages(told[split], max_tokens)]
        corpus += [*passages, *prosaic]
        files[f"documents.{split}.jsonl"] = list(document_records(passages, asked))
        repeated = drawn([*passages, *prosaic], None, "reconstruction")
        files[f"reconstruction.{split}.jsonl"] = [repeating(each) for each in repeated]
        if split != "train":
            questions = candidate_questions(passages, asked)
            files[f"questions.{split}.jsonl"] = [each.fields() for each in questions]
    if not any(map(len, files.values())):
        raise DefinitionsError(f"max_tokens = {max_tokens} leaves no room for a definition")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        write_jsonl(target / name, records)
    return {name: len(records) for name, records in files.items()}


def without_shared(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each split. A text that is in two splits stays in the last of `SPLITS` only."""
    every = list(pieces)
    owner: dict[str, str] = {}
    for split in reversed(SPLITS):
        for piece in every:
            if piece.split == split:
                owner.setdefault(folded(piece.told), split)
    parted: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    for piece in every:
        if owner[folded(piece.told)] == piece.split:
            parted[piece.split].append(piece)
    return parted


def document_records(
    passages: Iterable[Document], asked: Mapping[str, Sequence[Pair]]
) -> Iterator[Record]:
    """All questions of a passage in one record, in random order; see `document_questions`."""
    for passage in passages:
        pairs = drawn(asked[passage.id], None, passage.id)
        if pairs:
            yield {
                "docs": [passage.text],
                "questions": [pair.question for pair in pairs],
                "answers": [pair.answer for pair in pairs],
            }


def repeating(passage: Document) -> Record:
    """A record of pretraining whose task is to repeat the passage."""
    return {
        "data_type": "paraphrase",
        "question": [RECONSTRUCTION],
        "answers": [passage.text],
        "docs": [passage.text],
    }


def candidate_questions(
    passages: Sequence[Document], asked: Mapping[str, Sequence[Pair]]
) -> list[CandidateQuestion]:
    """Questions what a word means and which word means something, each with candidates.

    At most one question of an entry, in random order. The wrong candidates are passages of words
    on the same subject first, then any.
    """
    of_title: dict[str | None, list[str]] = defaultdict(list)
    for passage in passages:
        of_title[passage.title].append(passage.id)
    titles = {passage.id: passage.title for passage in passages}
    pairs = {pair: name for name, found in asked.items() for pair in found}
    eligible = [pair for pair in pairs if pair.kind in ("define", "name")]
    questions: dict[str, CandidateQuestion] = {}
    for pair in drawn(eligible, None, "questions"):
        if pair.entry in questions or len(questions) == ASKED:
            continue
        gold = pairs[pair]
        near = drawn(of_title[titles[gold]], CANDIDATES, pair.entry)
        every = drawn(titles, CANDIDATES, pair.entry) if len(near) < CANDIDATES else []
        names = list(dict.fromkeys([gold, *near, *every]))[:CANDIDATES]
        questions[pair.entry] = CandidateQuestion(
            id=f"wordnet/{pair.entry}/{pair.kind}",
            question=pair.question,
            golden_answers=(pair.answer,),
            positives=(gold,),
            candidates=tuple(drawn(names, None, "order", pair.entry)),
        )
    return list(questions.values())


def _asker(entries: Sequence[Entry]) -> Callable[[Page], list[Pair]]:
    """What asks about the entries of a passage; questions with two answers there are left out."""
    words = Counter(word for entry in entries for word in {w.casefold() for w in entry.words})
    definitions = Counter(folded(entry.definition) for entry in entries)

    def ask(page: Page) -> list[Pair]:
        of_page = [piece.entry for piece in page.pieces if piece.entry is not None]
        pairs = list(pairs_of(of_page, words, definitions))
        counts = Counter(folded(pair.question) for pair in pairs)
        return [pair for pair in pairs if counts[folded(pair.question)] == 1]

    return ask
