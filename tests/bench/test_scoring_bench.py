"""The benchmarks of exact search: what they compare with, count, promise and print."""

import importlib
import json

import pytest
import torch
from torch.nn.functional import normalize

import clara_kernels
from bench.baselines.search import FaissSearch, faiss, torch_int8_topk, torch_topk
from bench.operators import SCORING_LIMITS
from bench.operators import __main__ as bench_operators
from bench.operators.case import Setting
from bench.promises import Promise, Report
from bench.scoring.data import QUERIES, furthest_apart, gaussian, groups, recall, word_documents
from bench.small import searches as small_searches
from bench.turns import Turns, median_ratio
from clara_kernels import Corpus, cosine_topk, quantize_memory

KINDS = (gaussian, groups, word_documents)
CPU = torch.device("cpu")
FULL = Setting(CPU, tiny=False)


def test_torch_finds_what_ours_finds():
    rows, queries = gaussian(700, 40)
    scores, found = torch_topk(queries, rows, 5)
    ours = cosine_topk(queries, rows, 5)
    torch.testing.assert_close(scores, ours[0])
    assert furthest_apart(found, ours[1], queries, rows) <= 1e-6


def test_torch_finds_what_ours_finds_in_int8():
    rows, queries = gaussian(704, 40)
    codes, query_codes = quantize_memory(rows)[0], quantize_memory(queries)[0]
    found = torch_int8_topk(query_codes, codes, Corpus(codes).inverse_norms, 5)[1]
    wide, queries = codes.float(), query_codes.float()
    exact = (normalize(queries) @ normalize(wide).T).topk(5).indices
    assert furthest_apart(found, exact, queries, wide) <= 1e-6


@pytest.mark.skipif(faiss() is None, reason="needs faiss")
def test_faiss_finds_what_ours_finds():
    rows, queries = gaussian(700, 40)
    ours = cosine_topk(queries, rows, 5)[1]
    assert furthest_apart(FaissSearch(rows)(queries, 5)[1], ours, queries, rows) <= 1e-6
    assert recall(FaissSearch(rows, bits=8)(queries, 5)[1], ours) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_queries(kind):
    rows, queries = kind(300, 50, seed=3)
    assert rows.shape == (300, 50)
    assert queries.shape == (QUERIES, 50)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(QUERIES))
    assert torch.equal(kind(300, 50, seed=3)[0], rows)
    assert not torch.equal(kind(300, 50, seed=4)[0], rows)


def test_only_gaussian_rows_are_far_from_all_queries():
    of_gaussian, of_groups, of_words = (
        torch_topk(queries, rows, 1)[0].mean()
        for rows, queries in (kind(2000, 576) for kind in KINDS)
    )
    assert of_gaussian < 0.2
    assert of_groups > 0.7
    assert of_words > of_gaussian + 0.2


def test_recall_counts_rows_wherever_they_stand():
    exact = torch.tensor([[1, 2], [3, 4]])
    assert recall(torch.tensor([[2, 1], [3, 9]]), exact) == 0.75


def test_only_rows_that_differ_are_compared():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0]])
    one, other, far = (torch.tensor([[index]]) for index in range(3))
    assert furthest_apart(one, one, queries, rows) == 0
    assert furthest_apart(one, other, queries, rows) == 0
    assert furthest_apart(one, far, queries, rows) == 1


def test_turns():
    order = []
    turns = Turns({name: lambda name=name: order.append(name) for name in "abc"}).run(2)
    assert "".join(order) == "abccba"
    assert "a" in turns
    assert "d" not in turns
    turns.seconds = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 3.0], "c": [9.0, 9.0, 9.0]}
    assert turns.ratio("b", "a") == 2
    assert turns.median("b") == 3
    assert turns.fastest(["c", "b", "d"]) == "b"
    assert turns.fastest(["d"]) is None
    assert median_ratio([1.0, 6.0], [2.0, 4.0]) == 1.0


@pytest.fixture
def benchmark_stand_in():
    class StandIn:
        def pedantic(self, function, setup, rounds):
            for _ in range(rounds):
                setup()
                function()

    return StandIn()


def test_turns_by_the_fixture(benchmark_stand_in):
    order = []
    turns = Turns({name: lambda name=name: order.append(name) for name in "abc"})
    turns.benchmark(benchmark_stand_in, "b", rounds=2)
    assert "".join(order) == "abccba"
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == dict.fromkeys(
        "abc", 2
    )


def test_promises():
    kept = Promise("fast", 3.2, at_least=3, possible=3.5)
    assert (kept.kept, kept.missed) == (True, False)
    assert str(kept) == "fast: 3.2 (promised 3)"
    missed = Promise("fast", 2.9, at_least=3, possible=3.5)
    assert missed.missed
    assert str(missed).endswith("MISSED")
    beyond = Promise("fast", 2.5, at_least=3, possible=2.8)
    assert not beyond.kept
    assert not beyond.missed
    assert str(beyond).endswith("not reachable here: the limit allows at most 2.8")
    assert Promise("small", 0.02, at_most=0.01).missed
    assert str(Promise("small", 0.005, at_most=0.01)) == "small: 0.005 (promised at most 0.01)"


def test_report():
    report = Report()
    for cells in (("float32", "1"), ("int8", "256")):
        report.row("a table", ("rows", "B"), cells)
    report.notes.append("a note")
    report.promises.append(Promise("fast", 3.2, at_least=3))
    judged = report.lines(judged=True)
    assert judged[:4] == ["a table", "   rows    B", "float32    1", "   int8  256"]
    assert "a note" in judged
    assert "fast: 3.2 (promised 3)" in judged
    assert not any("fast" in line for line in report.lines(judged=False))


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "scoring.json"
    arguments = ["--device", "cpu", "--output", str(path)]
    status = bench_operators.main(arguments, SCORING_LIMITS, "scoring.json")
    return status, json.loads(path.read_text())


def test_every_search_agrees_with_its_baseline(dry_run):
    status, content = dry_run
    assert status == 0
    assert {case["operator"] for case in content["cases"]} == set(SCORING_LIMITS)
    for case in content["cases"]:
        assert case["status"] == "measured", case
        for side in case["baselines"].values():
            assert side["ratio"] > 0, case
            if "float32" in case["case"]:
                assert side["difference"] <= 1e-5
    assert content["dry_run"]
    assert all(target["reached"] is None for target in content["targets"])


def test_promised_searches_are_measured_at_full_size():
    promised = {}
    for name in SCORING_LIMITS:
        for case in importlib.import_module(f"bench.operators.{name}").cases(FULL):
            assert case.operator == name
            for target in case.targets:
                assert not target.of or target.of in case.baselines
                promised.setdefault(target.what, []).append(case.name)
    assert {what: len(cases) for what, cases in promised.items()} == {
        "B <= 8: 85% of copy bandwidth": 16,
        "workspace of at most 64 MiB": 24,
        "bfloat16, D=576: 2 times matmul and topk": 1,
        "bfloat16, D=32768: 0.8 times matmul and topk": 1,
        "bfloat16, D=32768: 45% of the matrix rate": 1,
    }
    assert promised["bfloat16, D=576: 2 times matmul and topk"] == [
        "bfloat16, B=256, N=1000000, D=576"
    ]


def test_bytes_and_flops_of_a_search():
    (case,) = [
        case
        for case in importlib.import_module("bench.operators.cosine_topk_few").cases(FULL)
        if case.name == "int8, B=8, N=20000, D=32768"
    ]
    rows, norms, queries, results = 20_000 * 32_768, 20_000 * 4, 8 * 32_768 * 4, 8 * 10 * 12
    assert case.bytes == rows + norms + queries + results
    assert case.flops == 2 * 8 * 20_000 * 32_768


def test_share_of_the_matrix_rate_is_measured():
    case = next(importlib.import_module("bench.operators.cosine_topk_many").cases(FULL))
    target = bench_operators.Target("", "matrix rate", at_least=0.45)
    assert bench_operators._measured(target, found(matrix_share=0.5), case, {}) == 0.5


def found(**ours):
    return {"ours": ours, "baselines": {}}


def test_small_searches(capsys):
    assert small_searches.main(["--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip().endswith("searches passed")


def test_small_searches_notice_what_is_wrong():
    rows, queries = gaussian(50, 20)

    def wrong(device):
        scores, indices = cosine_topk(queries, rows, 4)
        calls.append(device)
        return (scores, indices) if len(calls) == 1 else (scores + 1e-3, indices)

    calls = []
    assert "scores differ from its cosines" in small_searches.problem(queries, rows, wrong, CPU)

    def misses(device):
        scores, indices = cosine_topk(queries, rows, 4)
        calls.append(device)
        return (scores, indices) if len(calls) == 1 else cosine_topk(queries, rows[:40], 4)

    calls = []
    assert "those of the CPU" in small_searches.problem(queries, rows, misses, CPU)


def test_without_kernels_a_search_on_a_gpu_is_missing(monkeypatch):
    """Never the reference in their place."""
    search = importlib.import_module("bench.operators.search")
    rows = type("Rows", (), {"is_cuda": True})()
    monkeypatch.setattr(clara_kernels, "build_info", lambda: {"cuda": None})
    with pytest.raises(search.Unavailable, match="without CUDA"):
        search._ours(search.Inputs(queries=torch.empty(0), rows=rows))
