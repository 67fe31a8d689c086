"""The figures of a run, against values computed by hand."""

import pytest

from clara.evaluation.folder import RunFolder
from clara.evaluation.summary import summarise

SCORES = ("exact_match", "f1", "cover_substring", "cover_tokens")


def described(name, control=None):
    system, _, ranker = name.partition("+")
    kind, _, rate = system.partition("@")
    return {
        "entry": name,
        "system": kind,
        "rate": int(rate) if rate else None,
        "ranker": ranker or None,
        "control": control,
        "trained": None,
    }


def lines(name, right, *, milliseconds=10.0, **fields):
    """Lines of ten questions, the first `right` of which are answered rightly."""
    return [
        {
            "entry": name,
            "question": f"q{n}",
            "ranked": ["a", "b"],
            "prompt_tokens": 20 + n,
            "text_prompt_tokens": None,
            "scores": dict.fromkeys(SCORES, float(n < right)),
            "answer_type": "number" if n < 4 else "place",
            "timings_ms": {"generate": milliseconds},
            **fields,
        }
        for n in range(10)
    ]


def summary_of(entries, *answers, documents=()):
    folder = RunFolder(None)
    for each in answers:
        folder.answers.add(each)
    folder.documents = list(documents)
    return summarise(folder, {"entries": entries, "documents": 7, "questions": 10}, {"threads": 1})


def test_means_of_an_entry():
    kept = {"vectors": 8, "document_tokens": 30, "kept_bytes": 4096}
    made = summary_of(
        [described("clara@4+gold")],
        lines("clara@4+gold", 6, text_prompt_tokens=50, **kept),
    )
    (entry,) = made["entries"]
    assert (made["questions"], made["documents"]) == (10, 7)
    assert entry["scores"]["exact_match"]["mean"] == pytest.approx(0.6)
    low, high = (entry["scores"]["exact_match"][end] for end in ("low", "high"))
    assert 0.2 <= low < 0.6 < high <= 0.9
    assert entry["prompt_tokens"] == 24.5
    assert entry["text_prompt_tokens"] == 50
    assert entry["compression"] == pytest.approx(30 / 8)
    assert entry["bytes_per_document"] == 2048
    assert entry["timings_ms"]["generate"]["median"] == 10
    assert entry["by_type"] == {
        "number": {"questions": 4, "exact_match": 1.0},
        "place": {"questions": 6, "exact_match": pytest.approx(1 / 3)},
    }
    assert entry["reads_memory"] is None  # there are no controls to compare with


@pytest.mark.parametrize(
    ("shuffled", "none", "reads"), [(5, 0, True), (6, 0, False), (0, 6, False), (0, 5, True)]
)
def test_the_mark_looks_at_the_better_control(shuffled, none, reads):
    """Exactly ten points above it are enough."""
    entries = [
        described("clara@4+gold"),
        described("clara@16+gold"),
        described("clara-shuffled@4+gold", "shuffled"),
        described("clara-shuffled@16+gold", "shuffled"),
        described("clara-none", "none"),
    ]
    made = summary_of(
        entries,
        lines("clara@4+gold", 6),
        lines("clara@16+gold", 9),
        lines("clara-shuffled@4+gold", shuffled),
        lines("clara-shuffled@16+gold", 2),
        lines("clara-none", none),
    )
    marks = {each["entry"]: each["reads_memory"] for each in made["entries"]}
    assert marks == {
        "clara@4+gold": reads,
        "clara@16+gold": True,
        "clara-shuffled@4+gold": None,
        "clara-shuffled@16+gold": None,
        "clara-none": None,
    }


def test_break_even():
    """0.5 s to prepare a document, 20 ms an answer instead of 45: paid after 20 questions."""
    entries = [
        described(name) for name in ("clara@4+gold", "clara@8+gold", "clara@4+x", "text+gold")
    ]
    made = summary_of(
        entries,
        lines("clara@4+gold", 1, milliseconds=20.0, kept_bytes=1),
        lines("clara@8+gold", 1, milliseconds=45.0, kept_bytes=1),
        lines("clara@4+x", 1, kept_bytes=1),
        lines("text+gold", 1, milliseconds=45.0),
        documents=[
            {"system": "clara@4", "seconds_per_document": 0.5},
            {"system": "clara@8", "seconds_per_document": 0.4},
        ],
    )
    paid, never = made["break_even"]  # nobody reads the text of the documents of ranker x
    assert (paid["entry"], paid["against"]) == ("clara@4+gold", "text+gold")
    assert paid["questions_per_document"] == pytest.approx(20)
    assert paid["why"] == (
        "0.500 s to prepare a document; an answer takes 20 ms from what is kept, 45 ms from text"
    )
    assert never["questions_per_document"] is None
    assert never["why"] == ("an answer is not faster: 45 ms from what is kept, 45 ms from text")


def test_break_even_of_kept_lists():
    """Two documents of 0.5 s each are kept as one list, which answers 25 ms faster."""
    made = summary_of(
        [described("prefix-cache+gold"), described("text+gold")],
        lines("prefix-cache+gold", 1, milliseconds=20.0, kept_bytes=1),
        lines("text+gold", 1, milliseconds=45.0),
        documents=[{"system": "prefix-cache", "seconds_per_document": 0.5}],
    )
    (paid,) = made["break_even"]
    assert paid["questions_per_document"] == pytest.approx(40)
    assert paid["why"].startswith("1.000 s to prepare a list of documents; an answer takes 20 ms")


def test_the_time_of_a_batch_is_one_measurement():
    """Three batches of 4, 4 and 2 questions: no interval can be narrower than three values tell."""
    answers = lines("text+gold", 1)
    for row, line in enumerate(answers):
        line["timings_ms"] = {"generate": [5.0, 7.0, 90.0][row // 4]}
    (entry,) = summary_of([described("text+gold")], answers)["entries"]
    assert entry["timings_ms"]["generate"] == {"median": 7.0, "low": 5.0, "high": 90.0}


def test_what_was_measured_once_has_no_interval():
    (entry,) = summary_of([described("text+gold")], lines("text+gold", 1))["entries"]
    assert entry["timings_ms"] == {"generate": {"median": 10.0}}


def test_without_the_time_of_preparing_there_is_no_break_even():
    made = summary_of(
        [described("clara@4+gold"), described("text+gold")],
        lines("clara@4+gold", 1, kept_bytes=1),
        lines("text+gold", 1, milliseconds=45.0),
    )
    (even,) = made["break_even"]
    assert even["questions_per_document"] is None
    assert "were prepared before this run" in even["why"]


def test_pairs_are_tested_on_the_questions_that_all_have():
    made = summary_of(
        [described("one"), described("two"), described("three")],
        lines("one", 10),
        lines("two", 0)[:9],
        lines("three", 5),
    )
    assert made["questions"] == 9
    found = {(each["a"], each["b"], each["score"]): each for each in made["pairs"]}
    assert list(found) == [
        (a, b, score)
        for a, b in (("one", "two"), ("one", "three"), ("two", "three"))
        for score in ("exact_match", "f1")
    ]
    assert found["one", "two", "f1"]["difference"] == 1
    # Nine differences of one sign: two of the 512 ways to draw signs are as far from 0.
    assert found["one", "two", "exact_match"]["p"] == pytest.approx(2 / 512)
    assert found["one", "three", "f1"]["difference"] == pytest.approx(4 / 9)
