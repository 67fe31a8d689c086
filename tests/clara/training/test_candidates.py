"""The memory of candidates, made before a run begins."""

import pytest

from clara.index import MemoryIndex
from clara.training import candidates
from clara.training.batches import candidate_id
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


def test_candidates_that_another_run_adds_first(make_model, tmp_path, monkeypatch):
    texts = ["The harbour lies in the north.", "Salt is traded for grain.", "The mill burned down."]
    one, two = (CandidateMemory(make_model(), tmp_path / "index") for _ in range(2))
    real = MemoryIndex.add

    def late(index, compressed):
        monkeypatch.setattr(MemoryIndex, "add", real)
        two.add([texts[1], "Only theirs."], show_progress_bar=False)
        real(index, compressed)

    monkeypatch.setattr(MemoryIndex, "add", late)
    one.add(texts, show_progress_bar=False)
    names = [candidate_id(text) for text in [*texts, "Only theirs."]]
    assert sorted(one.index.ids()) == sorted(names)
    assert one.read(names).texts == [*texts, "Only theirs."]


@pytest.mark.parametrize(("made", "other"), [("flattened", "mean"), ("mean", "flattened")])
def test_an_index_of_another_ranking_is_named_with_both(make_model, tmp_path, made, other):
    memory = CandidateMemory(make_model(ranking=made), tmp_path / "index")
    memory.add(["The mill burned down."], show_progress_bar=False)
    model = make_model(ranking=other)
    with pytest.raises(ValueError, match=f"was made with ranking {made}, this run has {other}"):
        CandidateMemory(model, tmp_path / "index")
    with pytest.raises(ValueError, match=f'ranking "{other}", the index ranks by "{made}"'):
        model.answer(["What burned?"], memory.index)
