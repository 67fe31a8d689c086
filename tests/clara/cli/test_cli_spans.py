"""Commands with a model in memory form "spans"."""

import json

import pytest

from clara import Clara, ClaraConfig
from clara.index import MemoryIndex


@pytest.fixture(scope="module")
def spans(backbone, tmp_path_factory):
    """A model folder that is trained for rates 2 and 8."""
    folder = tmp_path_factory.mktemp("spans") / "model"
    config = ClaraConfig(
        memory_form="spans",
        compression_rate=2,
        rates=[2, 8],
        question_rate=2,
        document_length=64,
        dtype="float32",
    )
    Clara.from_backbone(backbone, config).save_pretrained(folder)
    return str(folder)


def compress(model, corpus, output, *more):
    return ("compress", "--model", model, "--corpus", corpus, "--output", str(output), *more)


def test_an_index_has_one_rate(clara, refused, spans, write_corpus, tmp_path):
    corpus, output = write_corpus(count=5), tmp_path / "index"
    printed = clara(*compress(spans, corpus, output, "--compression-rate", "8", "--json")).stdout
    found = json.loads(printed)
    index = MemoryIndex.open(output)
    tokens = sum(index.get(index.ids()).token_counts)
    written = sum(index.get(index.ids()).counts)
    assert written == sum(-(-count // 8) for count in index.get(index.ids()).token_counts)
    assert found["nominal_compression"] == 8
    assert found["effective_compression"] == pytest.approx(tokens / written)
    assert found["short_documents"] == 0
    line = refused(*compress(spans, corpus, output, "--resume", "--compression-rate", "2"))
    assert "was created with --compression-rate 8; --compression-rate 2 does not match" in line
    more = write_corpus(count=7)
    again = json.loads(clara(*compress(spans, more, output, "--resume", "--json")).stdout)
    assert (again["documents"], again["nominal_compression"]) == (2, 8)


def test_questions_to_an_index(clara, spans, write_corpus, tmp_path):
    output = tmp_path / "index"
    clara(*compress(spans, write_corpus(count=5), output))
    asked = ("--model", spans, "--index", str(output), "--json", "Which country has 14 rivers?")
    found = json.loads(clara("search", *asked, "--top-k", "3").stdout)["documents"]
    assert len(found) == 3
    assert sorted((each["score"] for each in found), reverse=True) == [e["score"] for e in found]
    answer = json.loads(clara("ask", "--max-new-tokens", "2", "--top-k", "2", *asked).stdout)
    index = MemoryIndex.open(output)
    counts = index.get([each["id"] for each in answer["documents"]]).counts
    model = Clara.from_pretrained(spans)
    assert answer["prompt_tokens"] == model.prompt_tokens(asked[-1], counts)
    streamed = ("--model", spans, "--index", str(output), "--max-new-tokens", "2", asked[-1])
    assert f"prompt: {model.prompt_tokens(asked[-1], index.get(index.ids()).counts)} tokens" in (
        clara("ask", *streamed).stdout
    )


def test_a_rate_that_is_not_trained(clara, refused, spans, write_corpus, tmp_path):
    corpus = write_corpus(count=3)
    output = tmp_path / "index"
    line = refused(*compress(spans, corpus, output, "--compression-rate", "4"))
    assert "one of the rates that the model is trained for (2, 8), got 4" in line
    assert not output.exists()
    result = clara(
        *compress(spans, corpus, output, "--compression-rate", "4", "--any-rate"), quiet=False
    )
    assert "the model is not trained for compression rate 4, only for 2, 8" in result.stderr
    assert MemoryIndex.open(output).settings["compression_rate"] == 4
    clara(*compress(spans, write_corpus(count=4), output, "--resume"))


def test_learned_memory_has_one_rate(refused, model, write_corpus, tmp_path):
    line = refused(
        *compress(model, write_corpus(count=1), tmp_path / "index", "--compression-rate", "4")
    )
    assert 'compression_rate must be 16, the only one of a model in memory form "learned"' in line


def test_a_new_model(clara, backbone, tmp_path):
    folder = str(tmp_path / "model")
    options = ("--memory-form", "spans", "--compression-rate", "4")
    printed = clara("init", backbone, folder, *options).stdout
    assert "become one memory token for every 4 tokens." in printed
    found = json.loads(clara("info", folder, "--json").stdout)
    assert (found["memory_form"], found["ranking"], found["memory_tokens"]) == (
        *("spans", "mean"),
        None,
    )
    assert found["rates"] == [1, 2, 4, 8, 16, 32, 64, 128]
    shown = clara("info", folder).stdout
    assert "memory form: spans\n" in shown
    assert "rates: 1, 2, 4, 8, 16, 32, 64, 128\n" in shown
    assert "one memory token for every 4 tokens" in (tmp_path / "model" / "README.md").read_text()


def test_a_text_that_does_not_fit_is_named_before_any_work(
    refused, clara, backbone, write_corpus, tmp_path
):
    """With a limit that fits the backbone's 2,048 positions at a high rate alone."""
    folder, output = str(tmp_path / "model"), tmp_path / "index"
    options = ("--memory-form", "spans", "--document-length", "1900")
    clara("init", backbone, folder, *options)
    long = {"id": "long", "contents": "The river has a long course. " * 220}
    corpus = write_corpus([{"id": "short", "contents": "A mill."}, long])
    for overflow in ("truncate", "chunk"):
        line = refused(
            *compress(folder, corpus, output, "--compression-rate", "1", "--overflow", overflow)
        )
        assert "document 'long" in line
        assert "which do not fit the backbone's 2048 positions" in line
        assert not output.exists()
    clara(*compress(folder, corpus, output, "--compression-rate", "16", "--overflow", "truncate"))


def test_a_question_that_does_not_fit(spans):
    model = Clara.from_pretrained(spans, document_length=2000)
    with pytest.raises(ValueError, match=r"'question 0' has .* ask a shorter question, or use"):
        model.encode_queries(["What is the river of the hills? " * 130])
