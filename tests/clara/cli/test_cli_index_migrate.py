"""`clara index migrate` with tiny models."""

import json
import signal
import time
from pathlib import Path

import pytest

from clara import Clara, ClaraConfig
from clara.index import MemoryIndex
from clara.sync import migrating
from tests.plugins.warm import kill

RECORDS = [
    {"id": "a", "contents": " ".join(f"Sentence {n} of a long text." for n in range(20)), "n": 1},
    {"id": "b\x1b'", "contents": "Short.", "title": "T\x07"},
    *({"id": f"c{n}", "contents": f"Text {n}."} for n in range(5)),
]


@pytest.fixture(scope="module")
def spans(backbone, tmp_path_factory) -> str:
    """A model of another memory form, document length and dtype."""
    folder = tmp_path_factory.mktemp("spans") / "model"
    config = ClaraConfig(
        memory_form="spans",
        compression_rate=2,
        rates=[2, 8],
        question_rate=2,
        ranking="mean",
        document_length=30,
        dtype="bfloat16",
    )
    Clara.from_backbone(backbone, config, seed=1).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def path(model, write_corpus, tmp_path):
    file = write_corpus(RECORDS)
    Clara.from_pretrained(model).build_index(tmp_path / "index", [f"docs={file}"])
    return str(tmp_path / "index")


def test_another_model_takes_over(clara, refused, path, model, spans, write_corpus, tmp_path):
    line = clara("index", "migrate", "--model", spans, path).stdout
    assert line.startswith("7 compressed again; ")
    before = MemoryIndex.open(path, version=2)
    index = MemoryIndex.open(path)
    assert f"; model {before.fingerprint[:12]} became {index.fingerprint[:12]}; " in line
    assert line.endswith(f": {path}\n")
    assert "index of 7 documents, " in line
    built = str(tmp_path / "built")
    file = write_corpus(RECORDS)
    options = ("--storage", "float32", "--output", built)
    clara("index", "build", "--model", spans, *options, f"docs={file}")
    expected = MemoryIndex.open(built)
    assert index.ids() == expected.ids() != before.ids()
    assert list(index.documents()) == list(expected.documents())
    asked = ("--model", spans, "--json", "What is text 3?", "--index")
    one, two = (json.loads(clara("search", *asked, each).stdout) for each in (path, built))
    assert one["documents"] == two["documents"]
    line = refused("search", "--model", model, "--index", path, "What?")
    assert "was written by another model" in line
    lines = clara("index", "versions", path).stdout.splitlines()
    assert lines[-1].endswith(f", model {index.fingerprint[:12]}")
    assert lines[-2].endswith(f", model {before.fingerprint[:12]}")
    last = json.loads(clara("index", "versions", path, "--json").stdout)["versions"][-1]
    assert last["fingerprint"] == index.fingerprint
    clara("index", "restore", path, str(last["number"] - 1))
    clara("search", "--model", model, "--index", path, "What?")


def test_storage_and_nothing_to_do(clara, path, model, spans):
    line = clara("index", "migrate", "--model", model, path).stdout
    assert line == f"{path}: is of this model and has these settings already; nothing was changed\n"
    options = ("--model", spans, path, "--json", "--storage", "int8", "--compression-rate", "8")
    found = json.loads(clara("index", "migrate", *options).stdout)
    index = MemoryIndex.open(path)
    assert (found["changed"], found["documents"], found["resumed"]) == (True, 7, 0)
    assert (found["storage"], index.storage) == ("int8", "int8")
    assert index.settings["compression_rate"] == 8
    assert found["fingerprint"] == index.fingerprint
    assert found["index_documents"] == 7
    assert not json.loads(clara("index", "migrate", *options).stdout)["changed"]


def test_what_is_refused(clara, refused, path, model, spans, write_corpus, tmp_path):
    migrate = ("index", "migrate", "--model", spans)
    assert "not found" in refused(*migrate, str(tmp_path / "none"))
    assert "not an index" in refused(*migrate, model)
    assert "model folder '/none' does not exist" in refused(
        "index", "migrate", "--model", "/none", path
    )
    line = refused(*migrate, path, "--compression-rate", "4")
    assert "one of the rates that the model is trained for (2, 8), got 4" in line
    line = refused(*migrate, path, "--overflow", "error")
    assert "document 'a' has" in line
    assert line.endswith("the limit is 30; the index stays as it is")
    assert "'int3' is not one of" in refused(*migrate, path, "--storage", "int3", code=2)
    before = MemoryIndex.open(path)
    assert before.fingerprint == Clara.from_pretrained(model).fingerprint
    result = clara(*migrate, path, "--compression-rate", "4", "--any-rate", quiet=False)
    assert "the model is not trained for compression rate 4" in result.stderr


def test_texts_that_were_cut(clara, model, spans, write_corpus, tmp_path):
    file, path = write_corpus(RECORDS), str(tmp_path / "cut")
    options = ("--output", path, "--overflow", "truncate")
    clara("index", "build", "--model", model, *options, f"docs={file}")
    result = clara("index", "migrate", "--model", spans, path, quiet=False)
    assert "it holds only their beginnings" in result.stderr
    assert MemoryIndex.open(path).settings["overflow"] == "truncate"


def test_in_python(path, spans):
    done = Clara.from_pretrained(spans).migrate_index(path, storage="int4")
    assert (done.changed, done.built.added) == (True, 7)
    assert MemoryIndex.open(path).storage == "int4"


@pytest.mark.slow
def test_killed_and_gone_on_with(start_stuck, clara, model, spans, write_corpus, tmp_path):
    records = [{"id": f"d{n}", "contents": f"Number {n}. " * (1 + n % 20)} for n in range(1200)]
    path = str(tmp_path / "index")
    Clara.from_pretrained(model).build_index(path, [f"docs={write_corpus(records)}"])
    running = start_stuck(3 * migrating.BATCH, "index", "migrate", "--model", spans, path)
    journal = Path(path, "_migration", "journal.jsonl")
    while running.poll() is None and not (journal.exists() and b'"stored"' in journal.read_bytes()):
        time.sleep(0.02)
    kill(running)
    assert (running.returncode, running.communicate()) == (-signal.SIGKILL, ("", ""))
    assert MemoryIndex.open(path).fingerprint == Clara.from_pretrained(model).fingerprint
    found = json.loads(clara("index", "migrate", "--model", spans, path, "--json").stdout)
    assert found["resumed"] >= migrating.BATCH
    assert found["resumed"] + found["documents"] == 1200
    texts = {each["id"]: each["contents"] for each in records}
    index = MemoryIndex.open(path)
    for entry in index.documents():
        parts = [part.text for part in index.texts(entry.rows)]
        assert "".join(parts) == texts[entry.document_id]
