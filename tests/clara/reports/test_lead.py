import pytest

from clara.reports.comparison import compare
from clara.reports.lead import lead
from clara.reports.results import Measurement, Promise, Results


def of(suite, case, name, seconds, **parameters):
    return Measurement(suite, case, name, parameters, samples=[seconds] * 3)


def answers(rate, memory, text):
    at = {"rate": rate, "k": 5, "documents": 1000}
    return [
        of("question", "time to first token", "memory", memory, **at),
        of("question", "time to first token", "text", text, **at),
    ]


COMPRESS = [
    of("compress", "throughput", "ours", 2.0, rate=4),
    of("compress", "throughput", "reference way", 5.0, rate=4),
]
TRAINING = [
    of("training", "pretraining step", "ours", 0.5),
    of("training", "pretraining step", "reference way", 0.25),
]
OPERATORS = [
    of("operators", "a", "ours", 1.0),
    of("operators", "a", "eager", 2.0),
    of("operators", "b", "ours", 3.0),
    of("operators", "b", "eager", 2.0),
    of("operators", "c", "ours", 3.0),
]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [*answers(4, 0.5, 1.0), *answers(16, 0.25, 1.0), *COMPRESS],
            "At 16x compression, the first token of an answer takes 250 ms from memory tokens and "
            "1.00 s from the documents' text: memory is 4.00 times as fast.",
        ),
        (
            answers(8, 2.0, 1.0),
            "At 8x compression, the first token of an answer takes 2.00 s from memory tokens and "
            "1.00 s from the documents' text: memory is 0.50 times as fast.",
        ),
        (
            [*answers(4, 0.5, 1.0)[:1], *COMPRESS, *TRAINING],
            "At 4x compression, compressing documents takes 2.00 s; the reference implementation's "
            "way takes 5.00 s: ours is 2.50 times as fast.",
        ),
        (
            [*TRAINING, *OPERATORS],
            "A pretraining step takes 500 ms; the reference implementation's way takes 250 ms: "
            "ours is 0.50 times as fast.",
        ),
        (OPERATORS, "Ours is the fastest in 1 of the 2 cases with other measurements."),
    ],
)
def test_the_main_result(rows, sentence):
    assert lead(Results({}, {}, rows))[1] == sentence


def test_where_it_was_measured():
    environment = {"device": "Example", "threads": 1, "date": "2026-11-26", "commit": "0123"}
    found = lead(Results(environment, {}, [*OPERATORS, *COMPRESS, *answers(4, 1.0, 1.0)]))
    assert found[0] == (
        "Measured on Example with 1 thread, 2026-11-26, commit 0123: answers to questions, "
        "compression and operators."
    )
    assert lead(Results({}, {}, [of("x", "c", "ours", 1.0)])) == ["Measured: x."]
    withheld = Measurement("x", "c", "ours", withheld="no")
    assert lead(Results({}, {}, [withheld])) == ["This file holds no measurements."]


def test_a_time_of_nothing_is_no_result():
    rows = [*answers(4, 0.0, 1.0), *COMPRESS]
    assert "compressing documents" in lead(Results({}, {}, rows))[1]


def test_promises_are_counted():
    outcomes = ("kept", "missed", "kept", "not reachable here")
    promises = [Promise(str(n), 1.0, outcome=each) for n, each in enumerate(outcomes)]
    (*_, said) = lead(Results({}, {}, [], promises))
    assert said == "2 of 4 promises are kept; missed: 1; not reachable on this machine: 1."
    (*_, said) = lead(Results({}, {}, [], promises[:1]))
    assert said == "1 of 1 promises are kept."


def test_a_comparison_is_counted():
    before = Results({}, {}, [of("x", name, "ours", 1.0) for name in "abc"])
    after = Results({}, {}, [of("x", name, "ours", t) for name, t in zip("abc", (2.0, 1.0, 0.4))])
    (*_, said) = lead(after, compare(before, after))
    assert said == (
        "Compared with the earlier run, 1 of 3 measurements are slower or larger, 1 are faster or "
        "smaller, and 1 are the same within noise."
    )
    assert lead(after, [])[-1] == "The earlier run has no measurement in common with this one."
