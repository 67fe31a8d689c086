"""The weights that come with the project answer questions of the demonstration from memory."""

import pytest

from clara import Clara
from clara.evaluation.demonstration import RIGHT, mark
from clara.evaluation.demonstration_questions import COUNT, sample
from clara.model import shipped

WANTED = 3


@pytest.mark.slow
def test_three_questions_of_the_demonstration_are_answered_from_memory():
    """Each is asked of the passage that holds its answer, and of another question's passage."""
    model = Clara.from_pretrained(shipped.FACTBOOK, device="cpu")
    documents, questions = sample(COUNT)
    texts = {document.id: document for document in documents}
    right = other = 0
    for place, question in enumerate(questions):
        found = []
        for asked in (question, questions[place - 1]):
            read = model.compress([texts[name] for name in asked.positives])
            (answer,) = model.answer([question.question], read, top_k=1, max_new_tokens=32)
            found.append(mark(answer.text, question.golden_answers) == RIGHT)
        right, other = right + found[0], other + found[1]
        if right - other >= WANTED:
            return
    raise AssertionError(f"{right} of {COUNT} answers are right, {other} from another passage")
