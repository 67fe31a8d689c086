import json
import math

import pytest

from clara.reports.results import (
    FORMAT,
    Measurement,
    Promise,
    Results,
    ResultsError,
    ratios,
    read_results,
    usual,
)

ROW = {"suite": "s", "case": "c", "implementation": "ours", "samples": [1.0, 2.0]}
EMPTY = {"format": FORMAT, "environment": {}, "ceilings": {}, "measurements": [], "promises": []}


@pytest.fixture
def refused(tmp_path):
    """Why a file of that content cannot be read."""

    def read(content):
        file = tmp_path / "results.json"
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ResultsError) as caught:
            read_results(file)
        assert str(caught.value).startswith(f"{file}: ")
        return str(caught.value).removeprefix(f"{file}: ")

    return read


def test_what_is_written_is_read_back(make, tmp_path):
    results = make()
    results.write(tmp_path / "new" / "cpu.json")
    assert read_results(tmp_path / "new" / "cpu.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cpu.json"]


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path):
    file = tmp_path / "cpu.json"
    Results({"device": "a"}).write(file)
    with pytest.raises(ValueError, match="JSON compliant"):
        Results({"device": math.nan}).write(file)
    assert read_results(file).environment == {"device": "a"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ("[]", "is not a results file: 'format' is not 'clara-benchmark/1'"),
        ('{"format": "clara-benchmark/2"}', "is not a results file"),
        ({**EMPTY, "environment": []}, "'environment' must be an object"),
        ({**EMPTY, "environment": {"a": {"b": 1}}}, "'environment' must be an object of strings"),
        ({**EMPTY, "environment": {"a": [[1]]}}, "'environment' must be"),
        ({**EMPTY, "environment": {"a": math.nan}}, "'environment' must be"),
        ({**EMPTY, "ceilings": {"bandwidth": "fast"}}, "'ceilings' must be an object of numbers"),
        ({**EMPTY, "ceilings": {"bandwidth": math.inf}}, "'ceilings' must be"),
        ({**EMPTY, "measurements": {}}, "'measurements' must be a list"),
        ({**EMPTY, "measurements": [1]}, "measurements[0]: must be an object"),
        ({k: v for k, v in EMPTY.items() if k != "promises"}, "'promises' must be a list"),
        ({**EMPTY, "promises": [{"what": "x"}]}, "promises[0]: lacks the field 'measured'"),
        (
            {**EMPTY, "promises": [{"what": "x", "measured": 1, "outcome": "great"}]},
            "promises[0]: outcome must be one of kept, missed, not reachable here",
        ),
        ({**EMPTY, "measurements": [ROW, ROW]}, "measurements[1]: 'c' is there twice"),
    ],
)
def test_a_file_that_is_none_of_results(refused, content, reason):
    assert refused(content).startswith(reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"case": 3}, "case must be a string"),
        ({"unit": "parsecs"}, "unit must be s or bytes, got 'parsecs'"),
        ({"unit": "x" * 10**6}, "unit must be s or bytes"),
        ({"samples": []}, "there must be either samples or a reason"),
        ({"withheld": "no"}, "there must be either samples or a reason"),
        ({"samples": [math.nan]}, "samples must be"),
        ({"samples": [math.inf]}, "samples must be"),
        ({"samples": [-1]}, "samples must be"),
        ({"samples": [True]}, "samples must be"),
        ({"samples": ["1"]}, "samples must be"),
        ({"samples": [10**400]}, "samples must be"),
        ({"samples": [1e300]}, "samples must be"),
        ({"samples": [5e-324]}, "samples must be"),
        ({"samples": 1}, "samples must be a list"),
        ({"parameters": []}, "parameters must be an object"),
        ({"parameters": {"rate": None}}, "parameters must be strings or numbers"),
        ({"parameters": {"rate": [4]}}, "parameters must be strings or numbers"),
        ({"quantities": {"tokens": "4"}}, "quantities must be numbers"),
        ({"speed": 1}, "has an unknown field 'speed'"),
    ],
)
def test_a_damaged_measurement(refused, changes, reason):
    message = refused({**EMPTY, "measurements": [{**ROW, **changes}]})
    assert message.startswith(f"measurements[0]: {reason}")
    assert len(message) < 200


@pytest.mark.parametrize("name", ["suite", "case", "implementation"])
def test_a_measurement_without_a_name(refused, name):
    row = {key: value for key, value in ROW.items() if key != name}
    assert refused({**EMPTY, "measurements": [row]}) == f"measurements[0]: lacks the field '{name}'"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultsError, match="No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(ResultsError, match="Is a directory"):
        read_results(tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsError, match="is not JSON"):
        read_results(tmp_path / "image.png")


def test_percentiles_lie_between_samples():
    found = Measurement("s", "c", "i", samples=[5.0, 1.0, 2.0, 4.0, 3.0])
    assert found.median == 3.0
    assert found.spread == pytest.approx((1.8, 4.2))
    assert Measurement("s", "c", "i", samples=[1.0, 3.0]).spread == pytest.approx((1.4, 2.6))
    assert Measurement("s", "c", "i", samples=[7.0]).spread == (7.0, 7.0)


def test_ratios_are_of_rounds():
    ours = Measurement("s", "c", "ours", samples=[1.0, 2.0, 0.0, 4.0])
    theirs = Measurement("s", "c", "theirs", samples=[3.0, 8.0, 5.0])
    assert ratios(ours, theirs) == [3.0, 4.0]


def test_per_second():
    found = Measurement("s", "c", "i", samples=[0.5], quantities={"tokens": 10, "documents": 0})
    assert found.per_second("tokens") == 20
    assert found.per_second("documents") == 0
    assert found.per_second("queries") is None
    memory = Measurement("s", "c", "i", unit="bytes", samples=[5.0], quantities={"tokens": 10})
    assert memory.per_second("tokens") is None


def test_the_usual_leaves_sweeps_out():
    def of(**parameters):
        return Measurement("s", "c", "i", parameters, samples=[1.0])

    swept = [of(k=5, documents=1000), of(k=1, documents=1000), of(k=5, documents=10), of(rate=4)]
    assert usual(swept) == [swept[0], swept[3]]
    assert usual(swept, but=("k",)) == [swept[0], swept[1], swept[3]]
    smoke = [of(documents=100, k=5), of(documents=100, k=5, rate=4), of(documents=7, k=5)]
    assert usual(smoke) == smoke[:2]
    assert usual([]) == []


def test_promises_need_numbers():
    with pytest.raises(ValueError, match="number 'measured'"):
        Promise("x", math.nan)
    with pytest.raises(ValueError, match="at_least and at_most"):
        Promise("x", 1.0, at_least=math.inf)


def test_promises_are_judged():
    kept = Promise.judged("fast", 3.2, at_least=3, possible=3.5)
    assert (kept.outcome, kept.missed) == ("kept", False)
    assert str(kept) == "fast: 3.2 (promised 3)"
    missed = Promise.judged("fast", 2.9, at_least=3, possible=3.5)
    assert missed.missed
    assert str(missed).endswith("MISSED")
    beyond = Promise.judged("fast", 2.5, at_least=3, possible=2.8)
    assert beyond.outcome == "not reachable here"
    assert not beyond.missed
    assert str(beyond).endswith("not reachable here: the limit allows at most 2.8")
    assert Promise.judged("small", 0.02, at_most=0.01).missed
    small = Promise.judged("small", 0.005, at_most=0.01)
    assert str(small) == "small: 0.005 (promised at most 0.01)"


def test_a_file_holds_a_promise_without_the_reason(tmp_path):
    beyond = Promise.judged("fast", 2.5, at_least=3, possible=2.8)
    assert beyond.reason
    file = tmp_path / "results.json"
    Results({}, promises=[beyond]).write(file)
    assert read_results(file).promises == [Promise("fast", 2.5, 3, None, "not reachable here")]
    stored = json.loads(file.read_text())["promises"][0]
    assert list(stored) == ["what", "measured", "at_least", "at_most", "outcome"]
