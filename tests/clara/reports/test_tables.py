import csv
import io

import pytest

from clara.reports.growth import curves
from clara.reports.results import Measurement, Promise, Results
from clara.reports.tables import (
    Table,
    amount,
    at,
    csv_text,
    growth_rows,
    growth_table,
    limit_share,
    measurement_rows,
    promise_table,
    short,
    suite_tables,
    times,
)


def test_markdown_shows_text_as_it_is():
    hostile = "a|b\nc <script>alert(1)</script> [x](javascript:y) `z` *w* \x1b[31m \u202e & \\"
    (line,) = Table("", ("h",), [(hostile,)]).markdown(0).splitlines()[2:]
    assert line == (
        r"| a\|b c &lt;script&gt;alert(1)&lt;/script&gt; \[x\](javascript:y) \`z\` \*w\* "
        "\ufffd\\[31m \ufffd &amp; \\\\ |"
    )


def test_markdown_aligns_figures():
    table = Table("Title", ("name", "figure"), [("a", "1")], figures=1, note="A note.")
    assert table.markdown(3) == (
        "### Title\n\nA note.\n\n| name | figure |\n| --- | ---: |\n| a | 1 |\n"
    )


def test_the_table_of_a_suite():
    results = Results(
        {},
        {"bandwidth": 1e9, "matrix_rate": 1e12},
        [
            Measurement(
                *("operators", "sparsemax forward", "ours", {"rate": 16, "rows": 4096}),
                samples=[0.002, 0.004, 0.003],
                quantities={"bytes": 1.5e6},
            ),
            Measurement(
                *("operators", "sparsemax forward", "eager", {"rows": 4096, "rate": 16}),
                samples=[0.02, 0.08, 0.06],
            ),
            Measurement("operators", "sparsemax forward", "peer", withheld="not installed"),
        ],
    )
    (table,) = suite_tables(results).values()
    assert table.title == "All measurements: operators"
    assert table.head[-3:] == ("relative cost", "throughput", "share of the limit")
    assert table.rows[0] == (
        *("sparsemax forward", "16x, 4,096 rows", "ours"),
        *("3.00 ms", "2.40 ms to 3.60 ms", "", "500 MB/s", "50%"),
    )
    assert table.rows[1][3:] == ("60.0 ms", "36.0 ms to 72.0 ms", "20.0 × ours", "", "")
    assert table.rows[2][2:] == ("peer", "not measured", "not installed", "", "", "")


def test_a_column_without_figures_is_left_out():
    results = Results({}, {}, [Measurement("x", "case", "ours", samples=[1.0, 1.0])])
    (table,) = suite_tables(results).values()
    assert table.head == ("case", "settings", "implementation", "median", "20th to 80th percentile")
    assert list(table.rows) == [("case", "", "ours", "1.00 s", "1.00 s to 1.00 s")]


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"rate": 16, "k": 5, "documents": 1000}, "16x, k = 5, 1,000 documents"),
        ({"queries": 1, "columns": 576, "dtype": "int8"}, "1 query, 576 columns, int8"),
        ({"size": 2048, "of": "tokens of a document"}, "2,048 tokens of a document"),
        ({"size": 3, "backbone": "Other"}, "size = 3, backbone = Other"),
        ({"rate": "high", "documents": "all"}, "rate = high, documents = all"),
    ],
)
def test_settings_in_words(parameters, shown):
    assert at(Measurement("s", "c", "i", parameters, samples=[1.0])) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (0.00012, "1.20e-04"),
        (0.4, "0.40"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (34.47, "34.5"),
        (99.96, "100"),
        (1234.5, "1,234"),
    ],
)
def test_factors_have_about_three_digits(ratio, shown):
    assert times(ratio) == shown


def test_growth_is_said_between_neighbouring_sizes():
    points = [
        Measurement("growth", "search", "ours", {"size": size, "of": "rows"}, samples=[cost])
        for size, cost in ((10, 1e-3), (1000, 1e-3), (100_000, 0.1))
    ]
    found = curves(Results({}, {}, points))
    assert list(growth_table(found).rows) == [
        ("search", "10 to 1,000 rows", "1.00 ms to 1.00 ms", "0.00"),
        ("", "1,000 to 100,000 rows", "1.00 ms to 100 ms", "1.00"),
    ]
    assert growth_rows(found)[2] == ["search", "rows", "s", 1e3, 1e5, 1e-3, 0.1, pytest.approx(1)]


def test_the_limit_is_the_slower_of_two():
    ceilings = {"bandwidth": 10.0, "matrix_rate": 100.0}

    def share(**quantities):
        found = Measurement("operators", "c", "i", samples=[4.0], quantities=quantities)
        return limit_share(found, ceilings)

    assert share(bytes=10.0, flops=200.0) == 0.5
    assert share(bytes=20.0, flops=100.0) == 0.5
    assert share(flops=100.0) == 0.25
    assert share() is None


def test_promises_beside_earlier_ones():
    now = [
        Promise("a", 4.5, at_least=4),
        Promise("b", 0.7, at_most=0.6, outcome="missed"),
        Promise("c", 1.0, at_least=2, outcome="not reachable here"),
    ]
    table = promise_table(now, [Promise("b", 0.5, at_most=0.6)])
    assert list(table.rows) == [
        ("a", "at least 4", "4.5", "kept", ""),
        ("b", "at most 0.6", "0.7", "missed", "0.5, kept"),
        ("c", "at least 2", "1", "not reachable here", ""),
    ]
    assert table.marks == ["good", "bad", ""]
    assert len(promise_table(now).head) == 4


def test_csv_has_every_measurement(make):
    results = make()
    rows = list(csv.DictReader(io.StringIO(csv_text(measurement_rows(results)))))
    assert len(rows) == len(results.measurements)
    for row, found in zip(rows, results.measurements, strict=True):
        assert row["implementation"] == found.implementation
        assert row["withheld"] == found.withheld
        if found.samples:
            assert float(row["median"]) == found.median
            assert int(row["samples"]) == len(found.samples)
        for name, value in found.quantities.items():
            assert float(row[f"{name} per call"]) == value
        for name, value in found.parameters.items():
            assert row[name] == str(value)


def test_csv_holds_no_formulas():
    text = csv_text([["=1+1", "@x", "+1", "-", "a\x1b[0m\nb", -1.5]])
    assert text == "'=1+1,'@x,'+1,'-,a\ufffd[0m b,-1.5\n"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0, "s", "0 ns"),
        (4e-10, "s", "0.400 ns"),
        (1.234e-5, "s", "12.3 µs"),
        (0.0999, "s", "99.9 ms"),
        (0.09999, "s", "100 ms"),
        (1.1, "s", "1.10 s"),
        (4321.0, "s", "4,321 s"),
        (17, "bytes", "17 bytes"),
        (2048, "bytes", "2.00 KiB"),
        (1.5 * 2**30, "bytes", "1.50 GiB"),
    ],
)
def test_amounts(value, unit, shown):
    assert amount(value, unit) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(16, "16"), (16.0, "16"), (1234567, "1,234,567"), (0.1234, "0.123"), (123.4, "123")],
)
def test_short_numbers(value, shown):
    assert short(value) == shown


def test_numbers_of_any_size_are_short():
    assert max(len(short(value)) for value in (1e30, -1e30, 1e-30, 1e15, 123456.7)) <= 9
