"""Results in lines of text."""

from bench.printing import aligned, first_line, measurement_line, promise_lines, result_lines
from clara.reports.results import Measurement, Promise, Results

WHERE = {"rate": 16, "backbone": "random:toy"}


def test_columns_are_aligned():
    rows = [("rows", "B"), ("float32", "1"), ("int8", "256")]
    assert aligned(rows) == ["   rows    B", "float32    1", "   int8  256"]


def test_promises_are_counted():
    promises = [
        Promise.judged("fast", 3.2, at_least=3),
        Promise.judged("small", 0.2, at_most=0.1),
    ]
    assert promise_lines(promises) == [
        "fast: 3.2 (promised 3)",
        "small: 0.2 (promised at most 0.1), MISSED",
        "1 of 2 promises are kept",
    ]
    assert promise_lines([]) == []


def test_a_measurement_on_one_line():
    found = Measurement("compress", "throughput", "ours", {"rate": 4}, samples=[0.1, 0.3, 0.2])
    assert measurement_line(found) == "compress: throughput, 4x: ours 200 ms (3 rounds)"
    withheld = Measurement("compress", "throughput", "text", withheld="differs")
    assert measurement_line(withheld) == "compress: throughput: text withheld, differs"


def test_a_line_for_each_case_then_backbones_then_promises():
    results = Results(
        {"backbones": ["random:toy: random weights"], "dry_run": True},
        measurements=[
            Measurement("question", "first", "memory", WHERE, samples=[0.1, 0.3, 0.2]),
            Measurement("question", "first", "text", WHERE, withheld="differs"),
            Measurement("question", "peak", "text", WHERE, "bytes", [3.0 * 2**20]),
            Measurement(
                "compress", "throughput", "ours", WHERE, samples=[2.0], quantities={"documents": 10}
            ),
        ],
        promises=[Promise.judged("fast", 5.5, at_least=5.0)],
    )
    assert result_lines(results) == [
        "question: first, 16x, backbone = random:toy: memory 200 ms; text withheld, differs",
        "question: peak, 16x, backbone = random:toy: text 3.00 MiB",
        "compress: throughput, 16x, backbone = random:toy: ours 2.00 s (5 documents/s)",
        "random:toy: random weights",
        "fast: 5.5 (promised 5)",
        "1 of 1 promises are kept",
        "A dry run on CPU: the times mean nothing.",
    ]


def test_what_a_failure_says():
    assert first_line(RuntimeError("out of memory\nmore")) == "RuntimeError: out of memory"
