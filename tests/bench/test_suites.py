"""What the suites of `pytest bench` share: turns, what they record, ways to answer."""

import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.baselines.text_rag import TextRag
from bench.promises import Promise
from bench.questions import LINGUA, MEMORY, MERGED, ONLINE, REFERENCE, TEXT, Found, Ways, filler
from bench.recording import Recorder
from bench.turns import Turns, median_ratio
from bench.workload import cut, document_lengths, documents, load_model, sources
from clara.reports.results import read_results

pytest_plugins = ["pytester"]

RATE, LENGTH = 8, 48
BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def ways(backbone):
    return Ways(load_model(backbone, RATE, document_length=LENGTH))


@pytest.fixture(scope="module")
def found(ways):
    return Found.of(ways.model, corpus=60, top_k=3, length=LENGTH - 8)


class TestTurns:
    def test_everything_runs_once_a_round_and_every_other_round_backwards(self):
        seen = []
        turns = Turns({name: lambda name=name: seen.append(name) for name in "abc"}).run(3)
        assert "".join(seen) == "abccbaabc"
        assert all(len(seconds) == 3 for seconds in turns.seconds.values())

    def test_ratios_are_of_rounds(self):
        turns = Turns({"slow": list, "fast": list})
        turns.seconds = {"slow": [4.0, 30.0, 9.0], "fast": [2.0, 10.0, 3.0]}
        assert turns.ratio("slow", "fast") == 3.0
        assert turns.ratio("slow", "fast") == median_ratio([4, 30, 9], [2, 10, 3])
        assert turns.fastest(["slow", "fast", "none"]) == "fast"
        assert turns.median("slow") == 9.0


class TestRecorder:
    def test_the_file_is_written_after_each_measurement(self, tmp_path):
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
        recorder.promise(Promise("p", 1.0, at_least=2.0))
        recorder.promise(Promise("q", 1.0, at_least=2.0, possible=1.5))
        results = read_results(file)
        assert [each.withheld for each in results.measurements] == ["", "", "differs", ""]
        assert results.measurements[-1].unit == "bytes"
        assert [each.outcome for each in results.promises] == ["missed", "not reachable here"]

    def test_ceilings_are_those_of_this_machine(self):
        recorder = Recorder(None, {})
        recorder.measure_ceilings(torch.device("cpu"))
        assert 1e8 < recorder.results.ceilings["bandwidth"] < 1e13
        assert 1e8 < recorder.results.ceilings["matrix_rate"] < 1e14


class TestWorkload:
    def test_texts_are_cut_to_tokens(self, ways):
        tokenizer = ways.model.tokenizer.tokenizer
        texts = cut(sources(3), [5, 17, 40], tokenizer)
        counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        assert counts == [5, 17, 40]

    def test_long_texts_are_there(self):
        assert all(len(text.split()) > 5000 for text in sources(3, 5000))

    def test_lengths_are_those_of_published_passages(self, ways):
        assert statistics.fmean(document_lengths(500)) == pytest.approx(96, abs=2)
        assert len(set(documents(20, ways.model.tokenizer.tokenizer))) > 10


class TestWays:
    def test_all_answer_what_they_have_to(self, ways, found):
        assert set(ways.calls(found, 5)) == {MEMORY, MERGED, ONLINE, TEXT, REFERENCE}
        assert ways.differences(found, 5) == {}

    @pytest.mark.skipif(find_spec("llmlingua") is not None, reason="llmlingua is installed")
    def test_what_is_missing_says_why(self, ways, found):
        assert LINGUA not in ways.calls(found, 1)
        assert ways.missing == {LINGUA: "llmlingua is not installed"}

    @pytest.mark.parametrize(
        ("changed", "name"),
        [
            ("text.answer", TEXT),
            ("reference.answer", REFERENCE),
            ("merged.answer", MERGED),
        ],
    )
    def test_an_answer_that_differs_is_found(self, ways, found, monkeypatch, changed, name):
        side, method = changed.split(".")
        other = "no such answer"
        if side == "merged":
            (answer,) = ways.model.answer(["Who?"], found.index, top_k=1, max_new_tokens=1)
            object.__setattr__(answer, "text", other)
            monkeypatch.setattr(ways.merged, method, lambda *a, **k: [answer])
        else:
            monkeypatch.setattr(getattr(ways, side), method, lambda *a, **k: other)
        wrong = ways.differences(found, 3)
        assert list(wrong) == [name]
        assert other in wrong[name]

    def test_stages_are_kept_for_each_call(self, ways, found):
        ways.laps.clear()
        ways.calls(found, 2)[MEMORY]()
        ways.calls(found, 2)[ONLINE]()
        assert {len(laps) for laps in ways.laps.values()} == {1}
        (lap,) = ways.laps[MEMORY, 2]
        assert set(lap) == {"query", "rank", "generate"}
        assert all(value > 0 for value in lap.values())

    def test_work_is_counted_of_all_that_computes(self, ways, found):
        calls = ways.calls(found, 2)
        for name in (MEMORY, MERGED, TEXT):
            calls[name]()
            calls[name]()  # the words that prompts begin with are read before
        amounts = {name: ways.work.amounts(name) for name in (MEMORY, MERGED, TEXT)}
        assert amounts[MERGED] == amounts[MEMORY]
        assert amounts[TEXT]["positions"] == ways.prompt_tokens(found)[TEXT] + 1

    def test_prompts_are_as_long_as_said(self, ways, found):
        counts = ways.prompt_tokens(found)
        assert counts[TEXT] > 3 * (LENGTH - 8)
        per_document = LENGTH // RATE + 1  # and its separator
        one = Found(found.index, 60, 1, found.texts[:1], found.folder)
        assert counts[MEMORY] - ways.prompt_tokens(one)[MEMORY] == 2 * per_document

    def test_random_rows_are_searched_but_never_found(self, ways, found):
        assert len(found.index) == 60
        assert not any(text == "filler" for text in found.texts)
        (best,) = found.index.search(ways.model.encode_queries(["What?"]), 60)
        assert sum(hit.text == "filler" for hit in best) == 50
        compressed = ways.model.compress(["The river."])
        rows = filler(compressed, 3, 8)
        assert rows.memory.std() == pytest.approx(compressed.memory.std().item(), rel=0.1)

    def test_the_merged_twin_shares_the_backbone(self, ways):
        assert ways.merged.backbone is ways.model.backbone
        assert ways.merged._merged is not None
        assert ways.model._merged is None

    def test_text_is_read_by_the_bare_backbone(self, ways, found):
        text = TextRag(ways.model)
        assert not any("lora" in name for name, _ in text.backbone.named_parameters())
        (bare,) = ways.model.answer_from_text(["Who?"], [found.texts], max_new_tokens=4)
        assert text.answer("Who?", found.texts, 4).strip().startswith(bare.strip())


@pytest.mark.slow
def test_a_missed_promise_fails_only_where_sizes_are_judged(pytester, monkeypatch):
    """With the benchmarks' own conftest."""
    monkeypatch.setenv("PYTHONPATH", str(BENCH))
    pytester.makeconftest((BENCH / "conftest.py").read_text())
    pytester.makepyfile(
        test_one="""
        def test_kept(promise): promise("kept", 2.0, at_least=1.0)
        def test_missed(promise): promise("missed", 0.5, at_least=1.0)
        def test_rate(rate, recorder):
            recorder.seconds("one", "case", {"ours": [0.1]}, {"rate": rate})
        """
    )
    run = pytester.runpytest_subprocess("--size", "small", "--results", "r.json")
    run.assert_outcomes(passed=4, failed=1)
    run.stdout.fnmatch_lines(["*kept: 2 (promised 1)", "*missed: 0.5 (promised 1), MISSED"])
    results = read_results(pytester.path / "r.json")
    assert [each.outcome for each in results.promises] == ["kept", "missed"]
    assert [each.parameters["rate"] for each in results.measurements] == [4, 16, 128]
    assert results.environment["size"] == "small"
    assert "--size small" in results.environment["command"]
    quiet = pytester.runpytest_subprocess("--size", "smoke", "-m", "one")
    quiet.assert_outcomes(passed=5)
