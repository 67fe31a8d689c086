"""`clara evaluate` on a tiny model."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from clara.evaluation.probes import ProbeSettings


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    records = [
        {
            "id": f"q{n}",
            "question": f"How many rivers does country {n} have?",
            "golden_answers": [str(7 * n)],
            "positives": [f"d{n}"],
        }
        for n in range(6)
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(file)


@pytest.fixture
def arguments(questions, write_corpus, tmp_path):
    return [
        *("evaluate", "--questions", questions, "--documents", write_corpus(count=6)),
        *("--rankers", "random", "--output", str(tmp_path / "run")),
        *("--max-new-tokens", "3", "--top-k", "2"),
    ]


ENTRIES = [
    "clara@16+random",
    "clara@16+clara",
    "clara@16+gold",
    "clara-shuffled@16+random",
    "clara-shuffled@16+clara",
    "clara-shuffled@16+gold",
    "clara-none",
    "text+random",
    "text+gold",
    "closed-book",
]


def test_a_table_with_marks(clara, arguments, model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    done = clara(*arguments, "--model", model)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith("6 questions, 6 documents\n")
    assert [row[0] for row in rows[2:12]] == ENTRIES
    by_entry = dict(zip(ENTRIES, done.stdout.splitlines()[2:12], strict=True))
    assert "untrained; answers do not come from memory" in by_entry["clara@16+gold"]
    assert by_entry["clara-none"].rstrip().endswith("control; untrained")
    assert "untrained" not in by_entry["text+gold"]
    assert "The adapters are untrained" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [each["entry"] for each in summary["entries"]] == ENTRIES
    assert summary["settings"]["limit"] is None
    again = json.loads(clara(*arguments, "--model", model, "--json").stdout)
    assert again == summary
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 60


def test_a_bare_backbone_answers_without_a_model(clara, arguments, backbone):
    done = clara(
        *arguments, "--systems", "text,closed-book", "--backbone", backbone, "--limit", "2"
    )
    assert done.stdout.startswith("2 questions, 6 documents\n")
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:5]]
    assert rows == ["text+random", "text+gold", "closed-book"]
    assert "untrained" not in done.stdout


def test_an_index_gives_texts_and_memory(clara, arguments, model, index, tmp_path):
    arguments[arguments.index("--documents") + 1] = index
    done = clara(*arguments, "--model", model, "--systems", "clara", "--no-controls", "--json")
    summary = json.loads(done.stdout)
    assert [each["entry"] for each in summary["entries"]] == ENTRIES[:3]
    assert not (tmp_path / "run" / "documents.jsonl").exists()
    (even,) = {each["why"] for each in summary["break_even"]} or {""}
    assert even == ""  # there is no entry that reads text
    answers = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kept_bytes"] == 2 * 768 for line in answers)


def test_two_indexes_of_two_models_in_one_report(
    clara, arguments, model, other_model, index, tmp_path
):
    """As `docs/evaluation.md` says: a copy of the index is migrated, and both are evaluated."""
    candidate = str(tmp_path / "candidate")
    shutil.copytree(index, candidate)
    clara("index", "migrate", candidate, "--model", other_model)
    at = arguments.index("--documents") + 1, arguments.index("--output") + 1
    runs = []
    for name, documents in ((model, index), (other_model, candidate)):
        runs.append(str(tmp_path / f"run of {documents.rpartition('/')[2]}"))
        arguments[at[0]], arguments[at[1]] = documents, runs[-1]
        chosen = ("--systems", "clara", "--rankers", "clara", "--no-controls")
        clara(*arguments, "--model", name, *chosen)
    report = str(tmp_path / "report")
    clara("evaluate", "report", *runs, "-o", report)

    def column(file, name):
        with open(tmp_path / "report" / file, newline="") as lines:
            return [row[name] for row in csv.DictReader(lines)]

    other = " (run of candidate)"  # whose scores are the same by chance: untrained models
    assert set(column("rankers.csv", "ranker")) == {"clara@16", "gold", "clara@16" + other}
    entries = ["clara@16+clara", "clara@16+gold"]
    assert column("entries.csv", "entry") == [*entries, *(name + other for name in entries)]
    pairs = list(zip(column("pairs.csv", "first"), column("pairs.csv", "second")))
    for name in entries:
        assert (name, name + other) in pairs


def test_an_index_of_another_model_is_refused(refused, arguments, other_model, index, tmp_path):
    arguments[arguments.index("--documents") + 1] = index
    line = refused(*arguments, "--model", other_model)
    assert "was written by another model" in line
    assert "evaluate the model that wrote it" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message", "code"),
    [
        (("--systems", "clara,oracle"), "unknown system 'oracle'; systems are clara, text, ", 1),
        (("--rankers", "oracle"), "unknown ranker 'oracle'; rankers are clara, ", 1),
        (("--systems", "text,text"), "system 'text' is given 2 times", 1),
        (("--systems", "text,,"), "must be names with commas between them, got 'text,,'", 2),
        (("--rates", "4,many"), "must be whole numbers such as 4,16, got '4,many'", 2),
        (("--rates", "4"), "compression_rate must be 16, the only one of a model", 1),
        (("--systems", "text-tuned"), "needs the model of a clara train text run", 1),
        (("--text-model", "nowhere/at/all"), "--text-model", 1),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    refused, arguments, model, tmp_path, changed, message, code
):
    assert message in refused(*arguments, "--model", model, *changed, code=code)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(refused, arguments):
    assert "'clara' needs --model, a model with adapters" in refused(*arguments, code=2)
    bare = [*arguments, "--systems", "text", "--rankers", "random,clara"]
    assert "'clara' needs --model" in refused(*bare, code=2)
    assert "--output RUN" in refused(*arguments[:5], code=2)
    assert "give --questions FILE and --documents" in refused("evaluate", *arguments[7:9], code=2)


def test_a_run_of_other_settings_is_refused(clara, refused, arguments, backbone, tmp_path):
    bare = [*arguments, "--systems", "closed-book", "--backbone", backbone]
    clara(*bare)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    line = refused(*bare, "--seed", "1")
    assert "is a run of other settings: seed is 0 there and 1 here; choose another folder" in line
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}


def test_needles_by_depth_and_length(clara, backbone, tmp_path, monkeypatch):
    settings = partial(ProbeSettings, lengths=(64, 512, 2048), depths=(0, 50))
    monkeypatch.setattr("clara.evaluation.suites.ProbeSettings", settings)
    folder = tmp_path / "run"
    arguments = ("evaluate", "--suite", "needle", "--limit", "1", "--output", str(folder))
    how = ("--systems", "text", "--max-new-tokens", "1", "--backbone", backbone)
    done = clara(*arguments, *how, quiet=False)
    # The tiny backbone has 2,048 positions.
    assert done.stderr.startswith("left out: needle/2048/0 and 1 more condition, whose text")
    assert "| condition | n | text+given |" in done.stdout
    (entry,) = json.loads((folder / "summary.json").read_text())["entries"]
    assert entry["entry"] == "text+given"
    assert [name for name in entry["by_condition"] if name.count("/") == 2] == [
        "needle/64/0",
        "needle/64/50",
        "needle/512/0",
        "needle/512/50",
    ]
    assert entry["by_condition"]["needle"]["questions"] == 4
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    read = {line["question"]: line["ranked"] for line in lines}
    assert len(read["probe/needle/64/0/0"]) == 1
    many = read["probe/needle/512/50/0"]
    assert len(many) > 5  # more than the default of --top-k
    assert many == [f"probe/needle/512/50/0/{n}" for n in range(len(many))]


@pytest.fixture
def squad(tmp_path):
    """Two paragraphs with a question each, as in XQuAD."""
    paragraphs = [
        {
            "context": f"The river {name} is {length} km long.",
            "qas": [
                {
                    "id": name,
                    "question": f"How long is the {name}?",
                    "answers": [{"text": f"{length} km", "answer_start": 13 + len(name) + 1}],
                }
            ],
        }
        for name, length in (("Isar", 292), ("Oder", 840))
    ]
    file = tmp_path / "xquad.json"
    file.write_text(
        json.dumps({"data": [{"title": "Rivers", "paragraphs": paragraphs}], "version": "1.1"})
    )
    return str(file)


def test_squad_brings_its_documents(clara, squad, backbone, tmp_path):
    done = clara(
        *("evaluate", "--questions", squad, "--systems", "text", "--backbone", backbone),
        *("--rankers", "random", "--output", str(tmp_path / "run"), "--json"),
        *("--max-new-tokens", "3"),
    )
    summary = json.loads(done.stdout)
    assert (summary["questions"], summary["documents"]) == (2, 2)
    lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert {tuple(json.loads(line)["golds"]) for line in lines} == {("292 km",), ("840 km",)}


def test_rankers_alone_need_no_answers(clara, refused, backbone, tmp_path):
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "", "text": "one"}\n{"_id": "d2", "title": "", "text": "two"}\n'
    )
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "Which is two?"}\n')
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\n")
    arguments = ["evaluate", "--questions", str(beir), "--backbone", backbone]
    output = ("--output", str(tmp_path / "run"))
    done = clara(*arguments, *output, "--systems", "none", "--rankers", "gold,random")
    rows = [line.split() for line in done.stdout.splitlines() if line]
    assert rows[0] == ["1", "question,", "2", "documents"]
    assert rows[2][:2] == ["gold", "100.0"]
    line = refused(*arguments, *output, "--systems", "closed-book", "--rankers", "random")
    assert f"{beir / 'queries.jsonl'}:1: 'q1': field 'golden_answers' is empty" in line


@pytest.fixture
def trained(model, tmp_path):
    """A function that makes the folder of a run, as far as it matters here."""

    def make(stage):
        run = tmp_path / stage
        run.mkdir()
        shutil.copytree(model, run / "model")
        (run / "run.json").write_text(json.dumps({"stage": stage, "arguments": {}}))
        return str(run)

    return make


def test_models_of_other_runs(clara, refused, arguments, trained, backbone):
    text, contrastive = trained("text"), trained("contrastive")
    bare = [*arguments, "--backbone", backbone, "--systems", "text-tuned", "--rankers"]
    line = refused(*bare, "random", "--text-model", contrastive)
    assert f"--text-model {contrastive}: was trained by clara train contrastive" in line
    for name in ("compressor", "query_reasoner"):  # the generator alone reads text
        shutil.rmtree(Path(text) / "model" / name)
    done = clara(
        *(*bare, "contrastive", "--text-model", text, "--contrastive-model", contrastive, "--json")
    )
    summary = json.loads(done.stdout)
    names = [each["entry"] for each in summary["entries"]]
    assert names == ["text-tuned+contrastive", "text-tuned+gold"]
    assert [each["ranker"] for each in summary["rankers"]] == ["contrastive", "gold"]
    # But what ranks must be whole, its adapters would be untrained otherwise.
    shutil.rmtree(Path(contrastive) / "model" / "compressor")
    both = [*bare, "contrastive", "--text-model", text, "--contrastive-model", contrastive]
    assert "adapter 'compressor' is missing" in refused(*both)


def test_the_factbook_is_built_in(clara, refused, backbone, thirteen_countries, tmp_path):
    output = ("--output", str(tmp_path / "run"))
    bare = ["evaluate", "--suite", "factbook", "--backbone", backbone, "--limit", "2"]
    done = clara(*bare, *output, "--systems", "none", "--rankers", "gold", "--json")
    assert json.loads(done.stdout)["questions"] == 2
    lines = (tmp_path / "run" / "rankings.jsonl").read_text().splitlines()
    # The few countries of this test have fewer passages than a question usually has candidates.
    assert [len(json.loads(line)["ranked"]) for line in lines] == [10, 10]
    assert all(json.loads(line)["ranked"][0] in json.loads(line)["positives"] for line in lines)
    line = refused(*bare, *output, "--questions", "file.jsonl", code=2)
    assert "--suite has its own --questions and --documents" in line
    bare[2] = "trivia"
    assert "--suite must be factbook, " in refused(*bare, *output, code=2)


def test_paragraphs_are_built_in(clara, backbone, tmp_path):
    output = ("--output", str(tmp_path / "run"), "--backbone", backbone)
    done = clara("evaluate", "--suite", "paragraphs", *output, "--systems", "none", "--json")
    summary = json.loads(done.stdout)
    assert (summary["questions"], summary["documents"]) == (125, 25)
    (ranked,) = summary["rankers"]
    assert ranked["ranker"] == "bm25"
    assert ranked["recall@3"]["mean"] > 0.9
    first = json.loads((tmp_path / "run" / "rankings.jsonl").read_text().splitlines()[0])
    assert (first["question"], first["ranked"][0]) == ("danube/0", "The Danube/0")


def test_an_interrupt_says_how_to_go_on(clara, arguments, backbone, monkeypatch):
    def interrupted(self, bar):
        raise KeyboardInterrupt

    monkeypatch.setattr("clara.evaluation.run._Run.answer_all", interrupted)
    bare = [*arguments, "--systems", "closed-book", "--backbone", backbone]
    done = clara(*bare, code=130)
    assert done.stderr.endswith("keeps what is done; run the same command to continue\n")
