"""The calls that compute-sanitizer watches on a GPU."""

import torch

from bench.small import operators as small_calls


def test_every_call_works_on_cpu(capsys):
    assert small_calls.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(small_calls.calls()))
    assert all(": ok" in line or ": missing" in line for line in lines)
    assert sum(": ok" in line for line in lines) >= 14


def test_a_wrong_result_fails(monkeypatch, capsys):
    right = small_calls.compute
    asked = []

    def wrong(function, inputs):
        asked.append(function)
        found = right(function, inputs)
        return [each * torch.nan for each in found] if len(asked) == 2 else found

    monkeypatch.setattr(small_calls, "compute", wrong)
    assert small_calls.main(["--device", "cpu"]) == 1
    assert "sparsemax, 1 columns: FAILED, differs by inf" in capsys.readouterr().out
