"""What benchmarks measure is in the file of results as soon as it is measured."""

import statistics

import torch

from bench.recording import Recorder
from bench.turns import Turns
from clara.reports.results import Promise, read_results


def test_the_file_is_written_after_each_measurement(tmp_path):
    file = tmp_path / "new" / "results.json"
    recorder = Recorder(file, {"device": "d"})
    turns = Turns({"ours": list, "text": list}).run(4)
    recorder.turns("s", "c", turns, {"rate": 4}, {"documents": 5}, {"text": {"tokens": 7}})
    ours, text = read_results(file).measurements
    assert (ours.implementation, ours.quantities) == ("ours", {"documents": 5})
    assert text.quantities == {"documents": 5, "tokens": 7}
    assert ours.samples == turns.seconds["ours"]
    assert ours.median == statistics.median(turns.seconds["ours"])
    recorder.withhold("s", "c", "other", "differs", rate=4)
    recorder.memory("s", "peak", {"ours": 12}, rate=4)
    recorder.promise(Promise.judged("p", 1.0, at_least=2.0))
    recorder.promise(Promise.judged("q", 1.0, at_least=2.0, possible=1.5))
    results = read_results(file)
    assert [each.withheld for each in results.measurements] == ["", "", "differs", ""]
    assert results.measurements[-1].unit == "bytes"
    assert [each.outcome for each in results.promises] == ["missed", "not reachable here"]


def test_ceilings_are_those_of_this_machine(monkeypatch):
    monkeypatch.setattr("bench.ceilings._SECONDS", 0.1)
    monkeypatch.setattr("bench.ceilings._ROUNDS", (1, 2))
    recorder = Recorder(None, {})
    recorder.measure_ceilings(torch.device("cpu"))
    assert 1e8 < recorder.results.ceilings["bandwidth"] < 1e13
    assert 1e8 < recorder.results.ceilings["matrix_rate"] < 1e14


def test_copies_and_going_on(tmp_path):
    file, copy = tmp_path / "results.json", tmp_path / "copy.json"
    recorder = Recorder(file, {"device": "d"}, [copy])
    recorder.seconds("s", "c", {"ours": [1.0]}, {})
    assert file.read_text() == copy.read_text()
    other = Recorder(file, {"device": "other"}, [copy])
    other.resume()
    assert other.results == recorder.results
    other.withhold("s", "c", "text", "differs")
    assert file.read_text() == copy.read_text()
    assert len(read_results(copy).measurements) == 2
