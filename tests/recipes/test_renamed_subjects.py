"""`recipes/renamed_subjects.py`: other names, the same questions and answers."""

import json
from itertools import islice
from random import Random
from types import SimpleNamespace

import pytest

from clara.data.examples import RankingExample, contrastive_example, open_examples

NAMES = [f"Name{letter}" for letter in "abcdefghij"]
TOWNS = "Towns: mostly Ashby, Birchall, Colne, Dunoon, Esher Vale, Frome, Glossop and Hawick"


@pytest.fixture
def script(scripts, monkeypatch):
    countries = [SimpleNamespace(code="xx", name="Colne Islands")]
    monkeypatch.setattr(scripts.renamed, "load_factbook", lambda: countries)
    monkeypatch.setattr(scripts.renamed, "split_of", lambda code: "test")
    return scripts.renamed


def example():
    documents = [f"Chad: Geography\nRoads in Chad: {n} km" for n in range(6)]
    documents += [f"The Gambia: Geography\nCoastline: {n} km" for n in range(6)]
    documents += [f"Niger: Geography\nCoastline: {n} km" for n in range(6)]
    return RankingExample("Coastline of the Gambia?", tuple(documents), (7,), "")


def test_names_of_a_row_change_together(script, monkeypatch):
    monkeypatch.setattr(script, "CHANGED", 1.0)
    monkeypatch.setattr(script, "CHANGED_ANSWER", 1.0)
    places = set()
    for seed in range(20):
        row = script.renamed(example(), NAMES, Random(seed))
        (place,) = row["pos_index"]
        places.add(place)
        own = row["question"].removeprefix("Coastline of the ").removesuffix("?")
        assert own in NAMES
        assert row["docs"][place] == f"The {own}: Geography\nCoastline: 1 km"
        assert len(set(row["docs"])) == script.CANDIDATES
        text = "\n".join(row["docs"])
        assert not any(name in text for name in ("Chad", "Gambia", "Niger"))
        # Each subject has one new name, which no other has, and its passages speak of that.
        kinds = {("Roads" in each, each[:4] == "The ") for each in row["docs"]}
        assert len({script.subject(document) for document in row["docs"]}) == len(kinds)
        for document in row["docs"]:
            if "Roads" in document:
                assert document.count(script.subject(document)) == 2
    assert len(places) > 3


def test_some_names_stay(script):
    rows = [script.renamed(example(), NAMES, Random(seed)) for seed in range(200)]
    kept = sum("Gambia" in row["question"] for row in rows) / 200
    assert kept == pytest.approx(1 - script.CHANGED_ANSWER, abs=0.08)
    chads = [row for row in rows if any("Roads" in document for document in row["docs"])]
    kept = sum(any("Chad" in document for document in row["docs"]) for row in chads) / len(chads)
    assert kept == pytest.approx(1 - script.CHANGED, abs=0.12)


def test_every_example_comes_before_one_comes_again(script):
    unnamed = RankingExample("Who?", ("Ada: born\n1815", "Bob: born\n1816"), (0,), "")
    unknown = RankingExample("Coastline of Chad?", ("Chad: Roads", "Chad: Coastline"), (), "")
    other = RankingExample("Roads of Chad?", ("Chad: Roads\n5", "Mali: Roads\n6"), (0,), "")
    rows = list(islice(script.renamed_rows([unnamed, unknown, other, example()], NAMES), 10))
    kinds = [row["question"].split()[0] for row in rows]
    assert all(
        {first, second} == {"Roads", "Coastline"} for first, second in zip(*[iter(kinds)] * 2)
    )
    with pytest.raises(script.RenamingError, match="no question names the subject"):
        next(script.renamed_rows([unnamed, unknown], NAMES))


def test_names_are_those_in_passages_but_for_held_out_ones(script):
    found = script.names_in(
        [f"Chad: Geography\n{TOWNS}", "Mali: A\nNone: of These Two."], ["Colne"]
    )
    expected = {"Ashby", "Birchall", "Dunoon", "Esher Vale", "Frome", "Glossop", "Hawick"}
    assert set(found) == expected | {"These Two"}
    assert found == sorted(found)
    with pytest.raises(script.RenamingError, match="hold 0 names, at least 8 are needed"):
        script.names_in(["nothing here"], [])


def test_a_file_is_written_alike_each_time_and_never_over_another(script, tmp_path, capsys):
    record = {"question": "Roads of Chad?", "docs": [f"Chad: Roads\n{TOWNS}\nLochs: the Tay"]}
    record |= {"pos_index": [0], "answer": "9"}
    record["docs"] += ["Mali: Roads\nLength: 6 km", "Chad: Coastline\nLength: 7 km"]
    source = tmp_path / "ranking.jsonl"
    source.write_text(json.dumps(record) + "\n")
    values = ["--examples", str(source), "--rows", "30"]
    targets = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for target in targets:
        assert script.main([str(target), *values]) == 0
        assert json.loads(capsys.readouterr().out) == {"names": 8, "rows": 30}
    assert targets[0].read_bytes() == targets[1].read_bytes()
    rows = open_examples(str(targets[0]), "train", contrastive_example)
    assert len(rows) == 30
    assert all("Colne" not in row.question for row in rows)
    assert len({row.question for row in rows}) > 3

    before = targets[0].read_bytes()
    assert script.main([str(targets[0]), *values]) == 1
    assert "exists; name a new file" in capsys.readouterr().err
    assert targets[0].read_bytes() == before
    source.unlink()
    assert script.main([str(tmp_path / "three.jsonl"), *values]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "three.jsonl").exists()
