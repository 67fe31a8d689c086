"""The table of where the time goes: every operator counts once, and the parts are the whole."""

import pytest
import torch

from bench import breakdown
from bench.breakdown import COLUMNS, OTHER, PARTS, REST, main, measured, part_of, parts_of
from clara.reports.results import read_results


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::linear", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("clara::memory_attention", "attention"),
        ("clara::decode_step", "decoder"),
        ("aten::mul", OTHER),
        ("aten::cat", OTHER),
    ],
)
def test_parts_of_operators(operator, part):
    assert part_of(operator) == part


def test_seconds_of_parts():
    x = torch.randn(300, 300)

    def work():
        for _ in range(20):
            (x @ x).exp()

    found = parts_of(work)
    assert found["matrix products"] > 0
    assert found[OTHER] > 0
    assert found["attention"] == found["decoder"] == 0


def test_what_is_taken_off(monkeypatch):
    """The time of the other work is no part of any figure."""
    now = [0.0]
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: now[0])
    spent = {"whole": {"attention": 5.0, OTHER: 3.0}, "less": {"attention": 2.0, OTHER: 1.0}}
    called = []

    def work(name):
        called.append(name)
        now[0] += 12.0 if name == "whole" else 4.0

    def parts(each):
        each()
        return dict.fromkeys((*PARTS, OTHER), 0.0) | spent[called[-1]]

    monkeypatch.setattr(breakdown, "parts_of", parts)
    seconds, found = measured(lambda: work("whole"), lambda: work("less"), rounds=3)
    assert seconds == [8.0] * 3
    wanted = {"attention": 3.0, OTHER: 2.0, REST: 3.0}
    assert found == dict.fromkeys(COLUMNS, 0.0) | wanted


def test_the_command_writes_figures_and_a_table(backbone, tmp_path, capsys, one_thread):
    file = tmp_path / "results.json"
    options = ["--backbone", str(backbone), "--rounds", "1", "--length", "32"]
    main([*options, "--results", str(file)])
    results = read_results(file)
    names = {each.case for each in results.of("breakdown")}
    assert len(names) == 5
    for each in results.of("breakdown"):
        assert set(each.quantities) == set(COLUMNS)
        assert sum(each.quantities.values()) >= each.median * 0.99
        decodes = each.case.endswith("decoder")
        assert (each.quantities["decoder"] > 0) == decodes
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*names, *PARTS, REST))
