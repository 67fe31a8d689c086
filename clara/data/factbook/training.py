"""Write the training data of a small model from the World Factbook.

A file holds passages and questions of one split's countries only; see `divided`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clara.data.candidate_questions import CandidateQuestion
from clara.data.factbook.answers import folded
from clara.data.factbook.asking import Asked, ask_all, guessable
from clara.data.factbook.build import load_factbook
from clara.data.factbook.candidates import Candidates
from clara.data.factbook.drawing import drawn
from clara.data.factbook.evaluation import CANDIDATES, COUNTS, KINDS, Evaluation, easy_kinds
from clara.data.factbook.paraphrases import paraphrase_records
from clara.data.factbook.passages import PASSAGE_TOKENS, build_passages, divided
from clara.data.records import Document, write_jsonl
from clara.data.unanswerable import REFUSAL

RANKED = {"train": 10_000, "validation": 2_000, "test": 2_000}
"""The most questions with candidates, by split: each takes twenty passages on disk."""

# 64 documents, 16 with each of these fields, so that a question alone does not give its answer.
OVERFIT_FIELDS = ("Coastline", "Population, total", "Airports", "Electricity, consumption")
OVERFIT_COUNTRIES = 16

Record = dict[str, Any]


def write_training_data(
    folder: str | os.PathLike[str], max_tokens: int = PASSAGE_TOKENS
) -> dict[str, int]:
    """Write the passages and the questions about them; the folder is made.

    For each split: documents.<split>.jsonl with all questions of a passage in one record, and
    ranking.<split>.jsonl, questions with candidates. For validation and test also
    instruct.<split>.jsonl, questions with the passage that answers them. Besides docs.jsonl, all
    passages as a corpus, and overfit.jsonl, 64 records that a model must be able to learn by heart.

    Also for each split: paraphrases.<split>.jsonl, passages told in sentences;
    two-chunks.<split>.jsonl, questions that need two of their candidates;
    unanswerable.<split>.jsonl, questions that no candidate answers; and to evaluate with,
    questions.<split>.jsonl, questions.two-chunks.<split>.jsonl and
    questions.unanswerable.<split>.jsonl, which name candidates by the ids of docs.jsonl.

    Args:
        max_tokens: limit of a passage by `estimated_tokens`.

    Returns:
        Records by file name. The same package gives the same bytes.

    Raises:
        FactbookError: as `load_factbook` and `build_passages`.
        OSError: a file cannot be written.
    """
    countries = load_factbook()
    corpus = build_passages(countries, max_tokens)
    files: dict[str, list[Any]] = {"docs.jsonl": corpus}
    easy: frozenset[str] = frozenset()
    splits = divided(countries)
    uninformative = easy_kinds(splits["train"])
    for split, members in splits.items():
        slugs = {country.slug for country in members}
        passages = [passage for passage in corpus if passage.id.split("/")[0] in slugs]
        asked = ask_all(members, passages)
        files[f"documents.{split}.jsonl"] = list(document_records(passages, asked))
        if split == "train":
            easy = guessable(asked)
            files["overfit.jsonl"] = overfit_records(passages, asked)
        hard = [each for each in asked if each.kind not in easy]
        if split != "train":
            files[f"instruct.{split}.jsonl"] = instruct_records(passages, hard)
        files[f"ranking.{split}.jsonl"] = list(ranking_records(passages, hard, RANKED[split]))
        files[f"paraphrases.{split}.jsonl"] = list(paraphrase_records(passages, asked, members))
        evaluation = Evaluation(countries, members, passages, asked, uninformative)
        for kind in KINDS:
            questions = evaluation.questions(kind, COUNTS[kind][split])
            name = f"{split}.jsonl" if kind == "facts" else f"{kind}.{split}.jsonl"
            files[f"questions.{name}"] = [each.fields() for each in questions]
            if kind != "facts":
                files[f"{kind}.{split}.jsonl"] = candidate_records(passages, questions)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        write_jsonl(target / name, records)
    return {name: len(records) for name, records in files.items()}


def document_records(passages: Iterable[Document], asked: Iterable[Asked]) -> Iterator[Record]:
    """All questions of a passage in one record, in random order; in order of the passages.

    A question is left out if the passage has two answers to it. A passage that nothing is asked
    about has no record.
    """
    answers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for each in asked:
        for name in each.positives:
            for question in (*each.named, *each.bare):
                answers[name][question].add(each.answer)
    for passage in passages:
        plain = [q for q, found in answers[passage.id].items() if len(found) == 1]
        questions = drawn(plain, None, passage.id)
        if questions:
            yield _record(passage, [(q, next(iter(answers[passage.id][q]))) for q in questions])


def instruct_records(passages: Iterable[Document], asked: Iterable[Asked]) -> list[Record]:
    """Each question in one of its wordings with the passage that answers it, in random order."""
    texts = {passage.id: passage.text for passage in passages}
    records = []
    for each in drawn(asked, None, "instruct"):
        (question,) = drawn((*each.named, *each.bare), 1, each.country, each.kind)
        document = texts[each.positives[0]]
        records.append({"question": question, "docs": [document], "answer": each.answer})
    return records


def ranking_records(
    passages: Sequence[Document], asked: Sequence[Asked], count: int
) -> Iterator[Record]:
    """Up to `count` questions that name their country, each with `CANDIDATES` candidates.

    The answer is in one of them, whose position is in "pos_index".
    """
    texts = {passage.id: passage.text for passage in passages}
    candidates = Candidates(passages)
    for each in drawn(asked, count, "ranking"):
        (question,) = drawn(each.named, 1, each.country, each.kind)
        names = candidates.of(each, CANDIDATES)
        yield {
            "question": question,
            "docs": [texts[name] for name in names],
            "pos_index": [names.index(each.positives[0])],
            "answer": each.answer,
        }


def candidate_records(
    passages: Iterable[Document], questions: Iterable[CandidateQuestion]
) -> list[Record]:
    """Records of end-to-end training: the candidates' texts, and the positions of the golds.

    The answer to a question without one is `REFUSAL`.
    """
    texts = {passage.id: passage.text for passage in passages}
    return [
        {
            "question": each.question,
            "docs": [texts[name] for name in each.candidates],
            "pos_index": [each.candidates.index(name) for name in each.positives],
            "answer": each.golden_answers[0] if each.answerable else REFUSAL,
        }
        for each in questions
    ]


def overfit_records(passages: Iterable[Document], asked: Iterable[Asked]) -> list[Record]:
    """64 passages with questions that do not name the country: "Coastline?".

    Nobody can give the answers without the right passage: every question is asked about several
    passages, and every time has another answer.
    """
    texts = {passage.id: passage for passage in passages}
    facts: dict[str, dict[str, Asked]] = defaultdict(dict)  # of a passage, by question
    for each in asked:
        for question in each.bare[:1]:
            for name in each.positives:
                facts[name][question] = each
    answers: dict[str, set[str]] = defaultdict(set)  # so far, by question
    chosen: dict[str, list[tuple[str, str]]] = {}
    for label in OVERFIT_FIELDS:
        holders = [n for n in facts if any(each.label == label for each in facts[n].values())]
        wanted = len(chosen) + OVERFIT_COUNTRIES
        for name in drawn(holders, None, label):
            new = {
                question: each.answer
                for question, each in facts[name].items()
                if folded(each.answer) not in answers[question]
            }
            anchored = any(facts[name][question].label == label for question in new)
            if name in chosen or not anchored or len(chosen) == wanted:
                continue
            for question, answer in new.items():
                answers[question].add(folded(answer))
            chosen[name] = list(new.items())
    common = {
        question for question, found in answers.items() if len(found) >= OVERFIT_COUNTRIES // 2
    }
    kept = {name: [pair for pair in pairs if pair[0] in common] for name, pairs in chosen.items()}
    return [_record(texts[name], pairs) for name, pairs in kept.items()]


def _record(passage: Document, pairs: Iterable[tuple[str, str]]) -> Record:
    questions, answers = zip(*pairs, strict=True)
    return {"docs": [passage.text], "questions": list(questions), "answers": list(answers)}
