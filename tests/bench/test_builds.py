"""Large builds, on small corpora."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import builds
from bench.builds import Beside, Stub, build, build_and_kill, held, main, printed
from bench.runs import read_runs
from clara import Clara, ClaraConfig
from clara.data.definitions import Entry
from clara.data.records import Document
from clara.index import MemoryIndex
from clara.sync import build as building

BACKBONE = Path(__file__).resolve().parents[1] / "data" / "reference" / "base"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "docs.jsonl"
    records = [{"id": f"d{n}", "contents": f"The mill {n} of the town. " * 8} for n in range(600)]
    file.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return file


def test_memory_of_the_stub_depends_on_the_text_alone():
    documents = [Document("a", "salt " * 40), Document("b", "grain"), Document("c", "salt " * 40)]
    done = []
    found = Stub()(documents, on_progress=done.append)
    assert done == [3]
    assert found.counts[1] == 1
    assert found.counts[0] == found.counts[2] > 1
    assert found.memory[0].equal(found.memory[2])
    assert not found.memory[1, 1:].any()
    again = Stub()(documents[1:2], on_progress=done.append)
    assert again.memory[0, 0].equal(found.memory[1, 0])


def test_lance_alone_writes_the_same_rows(data, tmp_path, monkeypatch):
    beside, storing = Beside(tmp_path / "index", tmp_path / "rows"), builds.Stopwatch()
    monkeypatch.setattr(building, "PERIOD", 0.0)
    assert build(tmp_path / "index", data, beside, storing).added == 600
    ours, theirs = (builds.lance.dataset(str(tmp_path / name)) for name in ("index", "rows"))
    assert theirs.to_table().equals(ours.to_table())
    assert len(theirs.get_fragments()) == beside.commits == 3
    beside(0, "again")  # of documents that were there already
    assert beside.commits == 3
    assert storing.clock > 0
    assert storing.processor > 0
    assert 0 < beside.lance.clock < beside.away.clock


@pytest.mark.slow
def test_a_build_is_killed(data, tmp_path):
    with pytest.raises(ValueError, match="ended or hangs"):
        build_and_kill(tmp_path / "all", data, 601)
    assert held(tmp_path / "all") == 600
    before = build_and_kill(tmp_path / "index", data, 256)
    assert before in (256, 512, 600)
    assert build(tmp_path / "index", data).added == 600 - before
    assert list(MemoryIndex.open(tmp_path / "index").verify()) == []


def test_the_command_keeps_what_is_finished(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builds, "build_and_kill", lambda *given: build(*given[:2]).added)
    monkeypatch.setattr(
        builds, "write_definitions", lambda path, count: path.write_bytes(data.read_bytes())
    )
    config = ClaraConfig(memory_form="spans", compression_rate=2, document_length=64)
    Clara.from_backbone(str(BACKBONE), config).save_pretrained(tmp_path / "model")
    output = tmp_path / "builds.jsonl"
    options = ["--data", str(data), "--threads", "1", "--folder", str(tmp_path), "--passages", "12"]
    options += ["--output", str(output), "--model", str(tmp_path / "model"), "--name", "tiny"]
    assert main(options) == 0
    assert main(options) == 0
    runs = read_runs(output)
    assert [run.names["corpus"] for run in runs] == [
        "World Factbook",
        "WordNet",
        builds.WITH_MODEL,
    ]
    for run in runs[:2]:
        assert run.found["documents"] == run.found["before"] == 600
        assert 0 < run.found["stored_clock"] < run.found["clock"]
        assert run.found["bytes"] == pytest.approx(run.found["expected_bytes"], rel=0.03)
    assert runs[2].found["documents"] == 12
    assert runs[2].found["build_clock"] > 0
    capsys.readouterr()
    assert main(["--table", "--output", str(output)]) == 0
    assert capsys.readouterr().out == printed(runs)
    assert "| World Factbook | 600 |" in printed(runs)
    assert "| tiny | 12 |" in printed(runs)
    earlier = replace(runs[0], found={k: v for k, v in runs[0].found.items() if "stored" not in k})
    assert printed([earlier, *runs[1:]]).count("|  |") == 1
    with pytest.raises(SystemExit):
        main(["--definitions", "0"])
    assert "--definitions must be at least 1, got 0" in capsys.readouterr().err


def test_entries_of_wordnet_become_documents(tmp_path, monkeypatch):
    entries = [Entry(f"n{n}", "noun", "food", ("salt", "table salt"), "white") for n in range(5)]
    monkeypatch.setattr(builds, "read_wordnet", lambda: entries)
    builds.write_definitions(tmp_path / "w.jsonl", 3)
    lines = (tmp_path / "w.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": f"n{n}", "contents": "salt, table salt (noun): white", "title": "salt"}
        for n in range(3)
    ]
