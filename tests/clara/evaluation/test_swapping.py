"""The documents of another question."""

import pytest

from clara.data.records import Document
from clara.evaluation.dataset import Dataset, EvaluatedQuestion
from clara.evaluation.errors import EvaluationError
from clara.evaluation.swapping import others_of


def dataset(*positives, documents="abcdef"):
    return Dataset(
        [EvaluatedQuestion(f"q{n}", "?", ("x",), tuple(each)) for n, each in enumerate(positives)],
        {name: Document(name, name) for name in documents},
    )


def test_the_next_question_with_other_documents():
    chosen = [["a", "b"], ["b", "c"], ["d", "e"], ["e", "f"]]
    assert others_of(dataset("a", "b", "d", "e"), chosen, 2) == [
        ["d", "e"],  # the next one shares b
        ["d", "e"],
        ["a", "b"],
        ["a", "b"],
    ]


def test_documents_that_answer_the_question_are_none_of_them():
    # The documents of the second question answer the first, which was given others.
    assert others_of(dataset("c", "c", "e"), [["a"], ["c"], ["e"]], 1) == [["e"], ["e"], ["a"]]


def test_what_all_questions_share_is_left_out():
    chosen = [["a", "f"], ["b", "f"], ["c", "f"]]
    assert others_of(dataset("a", "b", "c"), chosen, 2) == [["b"], ["c"], ["a"]]


def test_without_another_question_other_documents_take_their_place():
    assert others_of(dataset("a"), [["a", "b"]], 2) == [["c", "d"]]
    assert others_of(dataset("a", "a"), [["a"], ["a"]], 1) == [["b"], ["b"]]
    # It was given all of them: the one that does not answer it is left.
    assert others_of(dataset("a", documents="ab"), [["a", "b"]], 2) == [["b"]]


@pytest.mark.parametrize(("positives", "documents"), [("a", "a"), ("", "ab")])
def test_its_own_documents_are_no_control(positives, documents):
    with pytest.raises(EvaluationError, match=r"question 'q0': there is no document but its own"):
        others_of(dataset(positives, documents=documents), [list(documents)], 2)


def test_shared_documents_cost_no_search():
    """The gold document beside the same first ones of the corpus, as of thousands of questions."""
    names = [f"d{n}" for n in range(4_000)]
    chosen = [[name, "x", "y", "z"] for name in names]
    data = dataset(*([name] for name in names), documents=[*names, "x", "y", "z"])
    assert others_of(data, chosen, 4) == [[name] for name in [*names[1:], names[0]]]
