"""Documents of another question, in place of the right ones."""

from __future__ import annotations

from collections.abc import Sequence

from clara.data.values import shown
from clara.evaluation.dataset import Dataset
from clara.evaluation.errors import EvaluationError


def others_of(dataset: Dataset, chosen: Sequence[Sequence[str]], top_k: int) -> list[list[str]]:
    """For each question the documents of another one, none of them right for it.

    It is the next question, and after the last the first, whose documents hold none that the
    question was given and none that answers it. Documents that all questions share are left out.
    Where nothing is left, other documents of the data set take their place. Where the question was
    given all of them, those that are known not to answer it do.

    Args:
        chosen: ids of the documents that each question was given.
        top_k: the most that it gets here.

    Raises:
        EvaluationError: a question has no other document; names it.
    """
    shared = set.intersection(*map(set, chosen)) if chosen else set()
    own = [[name for name in names if name not in shared] for names in chosen]
    return [_other(dataset, chosen, own, row, top_k) for row in range(len(chosen))]


def _other(
    dataset: Dataset,
    chosen: Sequence[Sequence[str]],
    own: Sequence[Sequence[str]],
    row: int,
    top_k: int,
) -> list[str]:
    """The documents for one question.

    Args:
        own: `chosen` without what all questions share.
    """
    question = dataset.questions[row]
    refused = {*question.positives, *chosen[row]}
    best: list[str] = []
    for step in range(1, len(own) if any(own) else 0):
        names = own[(row + step) % len(own)]
        left = [name for name in names if name not in refused]
        if len(left) > len(best):
            best = left
        if best and len(left) == len(names):
            return left
    if best:
        return best
    wanted = max(1, min(top_k, len(chosen[row])))
    others = [name for name in dataset.documents if name not in refused][:wanted]
    if not others and question.positives:
        others = [name for name in dataset.documents if name not in question.positives][:wanted]
    if not others:
        raise EvaluationError(
            f"question {shown(question.id)}: there is no document but its own for the control "
            "with shuffled memory; give more documents or a smaller top_k, or leave the controls "
            "out (--no-controls)"
        )
    return others
