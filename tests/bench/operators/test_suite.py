"""What `pytest bench/test_operators.py` measures is checked first, rotated and counted right."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

import clara_kernels
from bench.operators import AT_RATE, search
from bench.operators.case import Run, Setting, Unavailable, mapped, operator, wide
from bench.operators.checking import Wrong, check
from bench.operators.memory_attention import Inputs
from bench.operators.sets import last_cache_bytes, set_count
from bench.operators.sparsemax import without_memory
from bench.operators.suite import (
    Timed,
    amounts,
    by_fixture,
    cases,
    find,
    for_seconds,
    line,
    measure,
    time_case,
)
from bench.recording import Recorder

from .toys import broken, missing, not_installed, toy

CPU = torch.device("cpu")
TINY = Setting(CPU, tiny=True, backend="eager")  # traced, but run as it is
SMALL = Setting(CPU, tiny=False, small=True)
FULL = Setting(CPU, tiny=False)
RATES = (4, 16, 128)
NOT_HERE = {
    "varlen_attn needs a GPU",
    "flash-attn needs a GPU",
    "FlexAttention has no backward pass on CPU",
    "on CPU FlexAttention is compiled for all rows only",
    "FAISS is not installed",
    "entmax is not installed",
    "liger_kernel is not installed",
}


def agree(case):
    checked = check(case, TINY)
    assert checked.apart <= case.tolerance
    assert set(checked.withheld.values()) <= NOT_HERE
    assert {*checked.runs, *checked.withheld} == {"ours", *case.baselines}
    assert next(iter(checked.runs)) == "ours"
    assert {"eager", "torch.compile"} < set(checked.runs)


# With many memory tokens and with few; those in between take the same ways.
@pytest.mark.parametrize("rate", [RATES[0], RATES[-1]])
@pytest.mark.parametrize("module", AT_RATE)
def test_every_baseline_computes_the_same(module, rate):
    for case in cases(module, TINY, rate):
        agree(case)


def test_every_sparsemax_computes_the_same():
    for case in without_memory(TINY):
        agree(case)


def test_cases_have_one_name_at_all_sizes_and_rates():
    names = [case.full_name for module in AT_RATE for case in cases(module, TINY, 16)]
    assert Counter(names).most_common(1)[0][1] == 1
    for setting, rate in itertools.product((TINY, SMALL, FULL), RATES):
        assert names == [c.full_name for module in AT_RATE for c in cases(module, setting, rate)]


def test_small_bytes_and_operations():
    case = find("cosine_scores", "cosine_scores, forward", SMALL, 16)
    # 32 queries of 20 documents of 16 memory tokens of 576 values each.
    documents, queries = 32 * 20 * 16 * 576, 32 * 16 * 576
    assert amounts(case) == {
        "bytes": 4 * (documents + queries + 32 * 20),
        "flops": 4 * documents + 2 * queries,
    }
    assert case.flops == 0
    queries, documents = case.inputs(0)
    scores = case.ours((queries, documents)).call()
    assert case.bytes == sum(each.nbytes for each in (queries, documents, scores))


def test_quantized_bytes_are_those_of_its_tensors():
    for bits in (8, 4):
        case = find("quantization", f"quantize_memory, {bits} bits", SMALL, 128)
        memory, *_ = inputs = case.inputs(0)
        found = case.ours(inputs).call()
        assert case.bytes == memory.nbytes + sum(each.nbytes for each in found)
        assert case.operations == 4 * memory.numel()


def test_what_moves_data_only_has_no_operations():
    assert list(amounts(find("select_topk", "select_topk, forward", SMALL, 4))) == ["bytes"]


def test_attention_operations_are_those_of_pairs():
    case = find("memory_attention", "memory_attention, memory rows, forward", TINY, 128)
    inputs = case.inputs(0)
    lengths = inputs.offsets.diff().tolist()
    pairs = sum((n - 1) + n for n in lengths)  # of each document's two memory rows
    assert amounts(case)["flops"] == 4 * 32 * 4 * pairs
    assert case.bytes == 4 * (2 * inputs.q.numel() + inputs.k.numel() + inputs.v.numel())


def test_what_differs_fails_or_is_missing_is_withheld():
    theirs = {
        "wrong": torch.sin,
        "nan": lambda x: x * math.nan,
        "right": torch.exp,
        "gone": missing,
        "absent": not_installed,
        "broken": broken,
        "skipped": torch.exp,
    }
    checked = check(toy(torch.exp, theirs), TINY, {"skipped": "not wanted"})
    assert list(checked.runs) == ["ours", "right"]
    assert checked.withheld.pop("wrong").startswith("its answer differs by ")
    assert checked.withheld == {
        "skipped": "not wanted",
        "nan": "its answer differs by inf of the norm",
        "gone": "toy is not there",
        "absent": "a_package_that_is_not_installed is not installed",
        "broken": "RuntimeError: out of memory",
    }
    with pytest.raises(Unavailable):
        check(toy(missing, {}), TINY)


def test_ours_is_held_to_the_reference():
    reference = {"reference": lambda x: Run(lambda: torch.exp(x))}
    assert check(toy(torch.exp, {}, **reference), TINY).apart == 0
    checked = check(toy(torch.sin, {"eager": torch.exp}, **reference), TINY)
    assert checked.apart > 0.1
    assert "eager" in checked.withheld
    # Without one given, it is the operator's own on float64.
    case = find("cosine_scores", "cosine_scores, forward", TINY, 16)
    assert 0 < check(case, TINY).apart < 1e-6
    rounded = replace(
        case,
        ours=lambda inputs: case.ours(mapped(inputs, lambda x: x.half().to(x.dtype))),
        baselines={},
        reference=lambda inputs: case.ours(wide(inputs)),
    )
    assert check(rounded, TINY, {}).apart > 1e-5


def test_without_the_reference_all_have_to_agree():
    right = check(toy(torch.exp, {"right": torch.exp}), TINY, against_reference=False)
    assert math.isnan(right.apart)
    assert right.differences == {"right": 0}
    right.demand_right_answers(of_all=True)
    wrong = check(toy(torch.exp, {"nan": lambda x: x * math.nan}), TINY, against_reference=False)
    assert wrong.differences == {"nan": math.inf}
    wrong.demand_right_answers(of_all=False)
    with pytest.raises(Wrong, match="ours and a baseline do not compute the same"):
        wrong.demand_right_answers(of_all=True)


def test_what_computes_something_else_on_purpose_is_only_timed():
    nothing = Run(lambda: None, result=lambda value: None)
    case = replace(toy(torch.exp, {}), baselines={"empty": lambda x: nothing})
    recorder = Recorder(None, {})
    timed = measure(case, TINY, for_seconds(TINY), recorder, against_reference=False)
    assert list(timed.seconds) == ["ours", "empty"]
    ours, empty = recorder.results.measurements
    assert ours.quantities == {"bytes": 800}
    assert empty.quantities == {}


def test_what_is_recorded_of_a_case():
    recorder = Recorder(None, {})
    reference = {"reference": lambda x: Run(lambda: torch.exp(x))}
    case = toy(
        torch.exp, {"eager": torch.exp, "gone": missing}, details={"columns": 7}, **reference
    )
    measure(case, TINY, for_seconds(TINY), recorder, {}, rate=4)
    ours, eager, gone = recorder.results.measurements
    assert {each.suite for each in (ours, eager, gone)} == {"operators"}
    assert ours.parameters == eager.parameters == gone.parameters == {"columns": 7, "rate": 4}
    assert len(ours.samples) == len(eager.samples) == 2
    assert eager.quantities == {"bytes": 800, "difference": 0}
    assert gone.withheld == "toy is not there"
    with pytest.raises(Wrong, match="its answer differs from the reference"):
        measure(toy(torch.sin, {}, **reference), TINY, for_seconds(TINY), recorder)
    assert recorder.results.measurements[-1].withheld.startswith("its answer differs from the ref")


def test_sets_in_turns(stand_in, clock):
    taken = []

    def ours(x):
        taken.append(("ours", x.data_ptr()))
        clock.sleep(1e-5)
        return x.exp()

    def slow(x):
        taken.append(("slow", x.data_ptr()))
        clock.sleep(0.05)
        return x.exp()

    case = toy(ours, {"slow": slow}, reference=lambda x: Run(lambda: torch.exp(x)))
    checked = check(case, TINY)
    before = len(taken)
    found = time_case(checked, TINY, by_fixture(stand_in, 2)).seconds
    calls = taken[before + 4 :]  # after estimates of two calls each
    assert {place for _, place in calls} == {place for _, place in taken[:before]}
    assert all(one[1] != other[1] for one, other in itertools.pairwise(calls))
    assert list(found) == ["ours", "slow"]
    assert stand_in.extra_info["calls"] > 1
    # Seconds are of a call, however many there were.
    assert found["ours"] == pytest.approx([1e-5, 1e-5])
    assert found["slow"] == pytest.approx([0.05, 0.05])


def test_sets_exceed_the_cache():
    for module in AT_RATE:
        for case in cases(module, SMALL, 128):
            count = set_count(case, SMALL)
            together = count * case.bytes
            assert count >= 2
            assert together >= min(2 * last_cache_bytes(), 256 << 20) or count == 64
            assert together <= max(2 * case.bytes, (256 << 20) + case.bytes)


def test_size_of_the_last_cache(tmp_path):
    assert last_cache_bytes(tmp_path) == 32 << 20
    for index, size in enumerate(("48K", "2048K", "105M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 105 << 20
    (tmp_path / "index0" / "size").write_text("")
    assert last_cache_bytes(tmp_path) == 32 << 20


def test_line_in_words():
    ceilings = {"bandwidth": 1600.0, "matrix_rate": 1e6}
    seconds = {"ours": [1.0, 2.0, 1.0], "eager": [3.0, 3.0, 2.0]}
    case = toy(torch.exp, {}, operations=1000)
    withheld = {"FAISS": "FAISS is not installed"}
    assert line(case, Timed(seconds, withheld), ceilings) == (
        "ours 1e+03 ms, 2 times eager, 50% of the measured bandwidth, "
        "FAISS withheld (FAISS is not installed)"
    )
    busy = replace(case, operations=750_000)
    assert line(busy, Timed(seconds, {}), ceilings).endswith("75% of the measured matrix rate")


def test_inputs_are_mapped_whatever_holds_them():
    x, offsets = torch.randn(4), torch.tensor([0, 4], dtype=torch.int32)
    found = wide(Inputs(x, x, x, x, offsets))
    assert found.q.dtype == torch.float64
    assert found.offsets is offsets
    pair = wide((x, offsets))
    assert torch.equal(pair[0], x.double())
    assert pair[1] is offsets


def test_a_small_size_has_to_be_given():
    assert [setting.size(3, 1, 2) for setting in (TINY, SMALL, FULL)] == [1, 2, 3]
    assert [setting.dtype for setting in (TINY, SMALL)] == [torch.float32] * 2
    assert FULL.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no small size"):
        SMALL.size(3, 1)


def test_an_operator_that_is_not_there():
    with pytest.raises(Unavailable, match="clara_kernels has no nonsense"):
        operator("nonsense")


def test_bytes_and_flops_of_a_search():
    (case,) = [
        case
        for case in cases("cosine_topk_few", FULL)
        if case.name == "int8, B=8, N=20000, D=32768"
    ]
    rows, norms, queries, results = 20_000 * 32_768, 20_000 * 4, 8 * 32_768 * 4, 8 * 10 * 12
    assert case.bytes == rows + norms + queries + results
    assert case.flops == 2 * 8 * 20_000 * 32_768


def test_without_kernels_a_search_on_a_gpu_is_missing(monkeypatch):
    """Never the reference in their place."""
    rows = type("Rows", (), {"is_cuda": True})()
    monkeypatch.setattr(clara_kernels, "build_info", lambda: {"cuda": None})
    with pytest.raises(Unavailable, match="without CUDA"):
        search._ours(search.Inputs(queries=torch.empty(0), rows=rows))
