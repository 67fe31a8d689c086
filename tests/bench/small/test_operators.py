"""The calls that compute-sanitizer watches on a GPU."""

import torch

from bench.operators.case import Unavailable
from bench.small import __main__ as small
from bench.small import operators


def test_every_call_works_on_cpu(capsys):
    assert small.main(["operators", "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(operators.calls()))
    assert all(line.endswith(": ok") for line in lines)
    assert len(lines) >= 14
    assert last == f"{len(lines)} operators passed"


def test_a_wrong_result_fails(monkeypatch, capsys):
    right = operators.compute
    asked = []

    def wrong(function, inputs):
        asked.append(function)
        found = right(function, inputs)
        return [each * torch.nan for each in found] if len(asked) == 2 else found

    monkeypatch.setattr(operators, "compute", wrong)
    assert small.main(["operators", "--device", "cpu"]) == 1
    assert "sparsemax, 1 columns: FAILED, differs by inf" in capsys.readouterr().out


def test_what_is_missing_is_named_and_what_fails_fails(monkeypatch, capsys):
    def missing(device):
        raise Unavailable("there is none")

    def broken(device):
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setitem(small.CHECKS, "operators", lambda: iter([("a", missing), ("b", broken)]))
    assert small.main(["operators", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a: missing, there is none",
        "b: FAILED, RuntimeError: out of memory",
        "1 of 2 operators failed",
    ]
