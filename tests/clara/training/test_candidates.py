"""The memory of candidates, made before a run begins."""

from clara.training import candidates
from clara.training.candidates import CandidateMemory


def test_compressing_many_says_how_far_it_is(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(candidates, "_AT_ONCE", 2)
    monkeypatch.setattr(candidates, "_SECONDS", -1)
    memory = CandidateMemory(make_model(), tmp_path / "index")
    capsys.readouterr()
    assert memory.add(f"Text {row}." for row in range(5)) == 5
    said = [line for line in capsys.readouterr().err.splitlines() if "candidates" in line]
    assert said == [f"compress candidates: {count} so far" for count in (2, 4, 5)]
    monkeypatch.setattr(candidates, "_SECONDS", 30)
    assert memory.add(f"Text {row}." for row in range(9)) == 4
    assert "candidates" not in capsys.readouterr().err
