import json
import shutil

import pytest
from typer.testing import CliRunner

from clara import Clara, ClaraConfig
from clara.cli.app import app
from clara.index import MemoryIndex
from clara.model.answers import Answer
from clara.terminal.printing import UNTRAINED, printable

QUESTION = "How many rivers has country 3?"


@pytest.fixture
def on(model, index):
    """The arguments of a command on model and index."""
    return lambda command, *more: (command, "--model", model, "--index", index, *more)


@pytest.fixture(scope="module")
def expected(model, index):
    """The answer of the library itself."""
    return Clara.from_pretrained(model).answer(
        [QUESTION], MemoryIndex.open(index), top_k=2, max_new_tokens=6
    )[0]


def test_search_json(clara, on, expected):
    printed = clara(*on("search", "--top-k", "2", "--json", QUESTION)).stdout
    assert len(printed.splitlines()) == 1
    found = json.loads(printed)
    assert set(found) == {"question", "trained", "documents", "timings_ms"}
    assert found["question"] == QUESTION
    assert found["trained"] is False
    assert found["documents"] == [
        {
            "id": each.id,
            "title": each.title,
            "score": each.score,
            "text": each.text,
            "place": None,
            "metadata": {},
        }
        for each in expected.documents
    ]
    assert set(found["timings_ms"]) == {"query", "rank"}
    assert all(isinstance(value, float) and value > 0 for value in found["timings_ms"].values())


def test_search_for_readers(clara, on, expected):
    printed = clara(*on("search", "--top-k", "2", QUESTION)).stdout
    lines = printed.splitlines()
    for line, each in zip(lines[1::2], expected.documents):
        assert f"{each.score:.4f}" in line
        assert each.id in line
        assert each.title in line
    for line, each in zip(lines[2::2], expected.documents):
        assert each.text.split(".")[0] in line
    assert lines[-2].startswith("time: query ")
    assert lines[-1] == UNTRAINED


def test_documents_are_reranked(clara, refused, on, model, index):
    options = ("--top-k", "2", "--rerank", "4", "--json", QUESTION)
    printed = json.loads(clara(*on("search", *options)).stdout)["documents"]
    loaded, opened = Clara.from_pretrained(model), MemoryIndex.open(index)
    found = loaded.find(loaded.encode_queries([QUESTION]), opened, 4)
    (best,) = loaded.rerank([QUESTION], found, 2)
    assert [(each["id"], each["score"]) for each in printed] == [
        (each.id, each.score) for each in best.documents
    ]
    asked = json.loads(clara(*on("ask", "--max-new-tokens", "1", *options)).stdout)
    assert asked["documents"] == printed
    line = refused(*on("search", "--rerank", "2", QUESTION), code=2)
    assert line.endswith("--rerank must be at least --top-k (5), got 2")


def test_more_documents_asked_for_than_there_are(clara, on):
    found = json.loads(clara(*on("search", "--top-k", "50", "--json", QUESTION)).stdout)
    scores = [each["score"] for each in found["documents"]]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)


def test_ask_json(clara, on, expected):
    arguments = ("--top-k", "2", "--max-new-tokens", "6", "--json", QUESTION)
    printed = clara(*on("ask", *arguments)).stdout
    assert len(printed.splitlines()) == 1
    found = json.loads(printed)
    timings = found.pop("timings_ms")
    assert set(timings) == {"query", "rank", "generate"}
    assert all(isinstance(value, float) and value > 0 for value in timings.values())
    assert found == {
        "question": QUESTION,
        "answer": expected.text,
        "trained": False,
        "documents": [
            {
                "id": each.id,
                "title": each.title,
                "score": each.score,
                "text": each.text,
                "place": None,
                "metadata": {},
            }
            for each in expected.documents
        ],
        "prompt_tokens": expected.prompt_tokens,
        "text_prompt_tokens": expected.text_prompt_tokens,
    }
    assert isinstance(found["prompt_tokens"], int)
    assert isinstance(found["text_prompt_tokens"], int)


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_ask_for_readers(clara, on, expected, stream):
    arguments = ("--top-k", "2", "--max-new-tokens", "6", *stream, QUESTION)
    answer, _, rest = clara(*on("ask", *arguments)).stdout.partition("\n\n")
    assert answer.strip() == printable(expected.text)
    for each in expected.documents:
        assert f"{each.score:.4f}  {each.id}" in rest
    counts = f"{expected.prompt_tokens} tokens, {expected.text_prompt_tokens} with"
    assert counts in rest
    *_, timings, note = rest.splitlines()
    assert timings.startswith("time: query ")
    assert ", generate " in timings
    assert note == UNTRAINED


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_a_blank_answer_is_explained(clara, on, monkeypatch, stream, blank):
    def answer(self, questions, documents, **options):
        (found,) = self.find(self.encode_queries(questions), documents, 1)
        timings = {"query": 1.0, "rank": 1.0, "generate": 1.0}
        return [Answer(blank, found.documents, 1, 2, timings)]

    monkeypatch.setattr(Clara, "answer", answer)
    monkeypatch.setattr(Clara, "stream", lambda *arguments, **options: iter(blank))
    printed = clara(*on("ask", *stream, QUESTION)).stdout
    assert printed.startswith("(empty answer)\n\n")
    assert printed.count(UNTRAINED) == 1
    if not stream:
        assert json.loads(clara(*on("ask", "--json", QUESTION)).stdout)["answer"] == blank


@pytest.fixture(scope="module")
def trained(backbone, index, tmp_path_factory):
    """A model whose memory is that of `model`, and whose generator was trained."""
    config = ClaraConfig(document_length=64, compression_rate=16, dtype="float32")
    made = Clara.from_backbone(backbone, config)
    for name, value in made.adapters.parameters("generator").items():
        if "lora_B" in name:
            value.data.fill_(1e-3)
    folder = tmp_path_factory.mktemp("trained") / "model"
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", ["search", "ask"])
def test_a_trained_model_is_not_called_untrained(clara, index, trained, command):
    on = (command, "--model", trained, "--index", index, QUESTION)
    assert "untrained" not in clara(*on).stdout
    assert json.loads(clara(*on, "--json").stdout)["trained"] is True


@pytest.mark.parametrize("command", ["search", "ask"])
def test_a_question_from_standard_input(on, command):
    def found(given, *more):
        arguments = on(command, "--json", *more)
        return CliRunner().invoke(app, arguments, input=given)

    done = found(b"\xef\xbb\xbfWie viele Fl\xc3\xbcsse?\nHat es welche?\n\n", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["question"] == "Wie viele Flüsse?\nHat es welche?"
    for given, reason in ((b"", "the question is empty"), (b"\n", "empty"), (b"\xff", "UTF-8")):
        done = found(given, "-")
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert reason in line


@pytest.mark.usefixtures("without_shipped_models")
@pytest.mark.parametrize("command", ["search", "ask"])
def test_model_and_index_from_the_environment(
    clara, refused, monkeypatch, model, index, tmp_path, command
):
    monkeypatch.setenv("CLARA_MODEL", model)
    monkeypatch.setenv("CLARA_INDEX", index)
    assert json.loads(clara(command, "--json", QUESTION).stdout)["question"] == QUESTION
    # What is given comes first.
    assert "none: not found" in refused(command, "--index", str(tmp_path / "none"), QUESTION)
    monkeypatch.setenv("CLARA_MODEL", str(tmp_path / "none"))
    assert "none' does not exist" in refused(command, QUESTION)
    monkeypatch.setenv("CLARA_MODEL", "")
    assert "--model" in refused(command, QUESTION, code=2)


def test_hostile_documents_cannot_steer_the_terminal(clara, model, write_corpus, tmp_path):
    records = [
        {
            "id": f"id\x1b[2J{n}",
            "contents": f"Text \x1b]0;owned\x07 [red]{n}[/red] \u202e:smile: and\nmore",
            "title": "[bold]T[/bold] [/] \x9b31m",
        }
        for n in range(2)
    ]
    target = str(tmp_path / "index")
    clara("compress", "--model", model, "--corpus", write_corpus(records), "--output", target)
    on = ("--model", model, "--index", target)
    for command in (
        ("search", *on, "q"),
        ("ask", *on, "--max-new-tokens", "2", "q"),
        ("ask", *on, "--max-new-tokens", "2", "--stream", "q"),
    ):
        printed = clara(*command).stdout
        assert printed.replace("\n", "").isprintable()
        assert "[bold]T[/bold] [/]" in printed
    printed = clara("search", *on, "--json", "q").stdout
    assert printed.isascii()
    assert json.loads(printed)["documents"][0]["title"] == records[0]["title"]


@pytest.mark.parametrize("command", ["search", "ask"])
def test_bad_usage(refused, on, command):
    assert "--top-k" in refused(*on(command, "--top-k", "0", QUESTION), code=2)
    assert "--top-k" in refused(*on(command, "--top-k", "many", QUESTION), code=2)
    assert "question is empty" in refused(*on(command, ""), code=2)
    assert "question is empty" in refused(*on(command, " \n"), code=2)
    assert "UTF-8" in refused(*on(command, "broken \udcff"), code=2)
    assert "question" in refused(*on(command), code=2)
    assert "--device" in refused(*on(command, "--device", "gpu", QUESTION), code=2)


def test_bad_usage_of_ask(refused, on):
    assert "--max-new-tokens" in refused(*on("ask", "--max-new-tokens", "0", QUESTION), code=2)
    line = refused(*on("ask", "--json", "--stream", QUESTION), code=2)
    assert "--stream and --json" in line


@pytest.mark.parametrize("command", ["search", "ask"])
def test_bad_input(refused, on, command, model, other_model, index, tmp_path):
    def line(*more):
        return refused(*on(command, *more, QUESTION))

    assert "not found" in line("--index", str(tmp_path / "none"))
    assert "not an index" in line("--index", str(tmp_path))
    assert "not an index" in line("--index", model)
    assert "does not exist" in line("--model", str(tmp_path / "none"))
    assert "config.json" in line("--model", index)
    assert "another model" in line("--model", other_model)
    assert "/no/such" in line("--backbone", "/no/such")
    assert "the limit is 64" in refused(*on(command, "long " * 100))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "compressor" / "adapter_model.safetensors").unlink()
    assert "compressor" in line("--model", str(damaged))


def test_stream_over_the_prompt_budget(refused, on):
    line = refused(*on("ask", "--stream", "--max-new-tokens", "2040", QUESTION))
    assert "the budget is 8" in line


def test_empty_index(refused, model, tmp_path):
    MemoryIndex.create(
        tmp_path / "empty",
        fingerprint=Clara.from_pretrained(model).fingerprint,
        memory_tokens=4,
        hidden_size=48,
    )
    for command in ("search", "ask"):
        line = refused(command, "--model", model, "--index", str(tmp_path / "empty"), QUESTION)
        assert "the index is empty" in line


@pytest.mark.slow
def test_process_keeps_stdout_to_one_object(process, on):
    result = process(*on("ask", "--max-new-tokens", "3", "--json", QUESTION))
    assert result.returncode == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert set(json.loads(result.stdout)) == {
        "question",
        "answer",
        "trained",
        "documents",
        "timings_ms",
        "prompt_tokens",
        "text_prompt_tokens",
    }
