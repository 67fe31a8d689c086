"""Needle questions: a key with its value somewhere in text that says nothing.

In the style of the first retrieval tasks of RULER (Hsieh et al., 2024, arXiv 2404.06654). The text
is cut into documents, as every corpus is; a system that reads all of them in their order reads it
whole. Nothing has to be downloaded or installed.
"""

from __future__ import annotations

import random

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.errors import EvaluationError
from clara.evaluation.probes import words
from clara.evaluation.probes.conditions import Condition, ProbeSettings, condition, question_id

NEEDLE = "The special number for {key} is {value}."
QUESTION = "What is the special number for {key}?"


def needle_conditions(settings: ProbeSettings) -> list[Condition]:
    """Questions by length of the text and depth of the needle in it.

    Returns:
        "needle/64/0", whose needle is the first sentence in 64 tokens, to "needle/8192/100".

    Raises:
        EvaluationError: the needle is longer than a document or the text may be.
    """
    conditions = []
    per_depth = max(1, settings.questions // len(settings.depths))
    for length in settings.lengths:
        for depth in settings.depths:
            name = f"needle/{length}/{depth}"
            questions, documents = [], []
            for number in range(per_depth):
                question, haystack = _asked(settings, name, number, length, depth)
                questions.append(question)
                documents += haystack
            conditions.append(condition(name, questions, documents))
    return conditions


def _asked(
    settings: ProbeSettings, name: str, number: int, length: int, depth: int
) -> tuple[EvaluatedQuestion, list[Document]]:
    identifier = question_id(name, number)
    draw = random.Random(f"{settings.seed}/{identifier}")
    key, value = words.key(draw), str(draw.randrange(10**6, 10**7))
    needle = NEEDLE.format(key=key, value=value)
    texts = _haystack(settings, draw, needle, length, depth)
    documents = [Document(f"{identifier}/{row}", text) for row, text in enumerate(texts)]
    question = EvaluatedQuestion(
        id=identifier,
        question=QUESTION.format(key=key),
        golden_answers=(value,),
        positives=tuple(each.id for each in documents if needle in each.text),
        candidates=tuple(each.id for each in documents),
    )
    return question, documents


def _haystack(
    settings: ProbeSettings, draw: random.Random, needle: str, length: int, depth: int
) -> list[str]:
    """Texts of at most `length` tokens in all, and nearly as many, with the needle in one."""
    count = settings.count_tokens
    room = length - count(needle)
    if room < 0 or count(needle) > settings.document_tokens:
        raise EvaluationError(
            f"the needle has {count(needle)} tokens, which do not fit {length} tokens in documents "
            f"of {settings.document_tokens}"
        )
    sizes = {sentence: count(f" {sentence}") for sentence in words.FILLER}
    filler: list[str] = []
    while fitting := [each for each in words.FILLER if sizes[each] <= room]:
        filler.append(draw.choice(fitting))
        room -= sizes[filler[-1]]
    while True:
        place = round(len(filler) * depth / 100)
        texts = _documents(settings, [*filler[:place], needle, *filler[place:]])
        # Texts may have more tokens than their sentences: some tokenizers add one to each text.
        over = sum(map(count, texts)) - length
        if not filler or over <= 0:
            return texts
        while filler and over > 0:
            over -= sizes[filler.pop()]


def _documents(settings: ProbeSettings, sentences: list[str]) -> list[str]:
    """Sentences in as few texts as hold them in their order."""
    texts: list[str] = []
    for sentence in sentences:
        longer = f"{texts[-1]} {sentence}" if texts else sentence
        if texts and settings.count_tokens(longer) <= settings.document_tokens:
            texts[-1] = longer
        else:
            texts.append(sentence)
    return texts
