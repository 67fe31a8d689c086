"""Runs of `evaluate` with small objects in place of models, and with a tiny model."""

import json
import re
import time
from dataclasses import replace

import pytest

from clara.data.records import Document
from clara.evaluation import Answered, EvaluatedQuestion, EvaluationError, evaluate
from clara.evaluation.deciding import BATCH
from clara.evaluation.entries import Entry
from clara.evaluation.folder import opened
from clara.evaluation.rankers.given import GoldRanker, RandomRanker
from clara.evaluation.rankers.ours import MemoryRanker
from clara.evaluation.systems.memory import MemorySystem, NoMemory, ShuffledMemory
from clara.evaluation.systems.store import ComputedMemory
from clara.evaluation.systems.text import ClosedBook, TextSystem

COUNT = 12
DOCUMENTS = [
    Document(f"d{n}", f"Country {n} has {7 * n} rivers and a coast of {n} km.", f"Country {n}")
    for n in range(COUNT)
]
QUESTIONS = [
    EvaluatedQuestion(
        f"q{n}",
        f"How many rivers does country {n} have?",
        (str(7 * n),),
        (f"d{n}",),
        tuple(f"d{(n + step) % COUNT}" for step in (2, 1, 0, 5)),
    )
    for n in range(COUNT)
]


class Finder:
    """Reads the number of rivers from the first document; counts its calls."""

    name, reads_documents = "finder", True

    def __init__(self):
        self.calls = 0

    def answer(self, questions, documents):
        self.calls += 1
        texts = [" ".join(each.text for each in given) for given in documents]
        return [
            Answered(re.search(r"has (\d+)", text)[1], len(text.split()), {"generate": 2.0})
            for text in texts
        ]


class SwappedFinder(Finder):
    name, kind, control = "finder-shuffled", "finder-shuffled", "shuffled"

    def answer_swapped(self, questions, documents, others):
        for own, other in zip(documents, others, strict=True):
            assert not {each.id for each in own} & {each.id for each in other}
        return self.answer(questions, others)


def run(systems, **settings):
    return evaluate(systems, QUESTIONS, DOCUMENTS, top_k=2, **settings)


def scores(done, field="exact_match"):
    return {each["entry"]: each["scores"][field]["mean"] for each in done.summary["entries"]}


def test_entries_are_scored_and_lines_kept(tmp_path):
    folder = tmp_path / "run"
    done = run([Finder()], rankers=[GoldRanker(), RandomRanker()], output=folder)
    assert scores(done)["finder+gold"] == 1.0
    right = sum(line["ranked"][0] == line["positives"][0] for line in done.rankings[COUNT:])
    assert scores(done)["finder+random"] == right / COUNT
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert lines == done.answers
    assert len(lines) == 2 * COUNT
    assert lines[3] == {
        "entry": "finder+gold",
        "question": "q3",
        "text": "How many rivers does country 3 have?",
        "golds": ["21"],
        "answerable": True,
        "ranked": ["d3", "d5"],
        "gold_rank": 1,
        "prompt_tokens": 22,
        "text_prompt_tokens": None,
        "vectors": None,
        "document_tokens": None,
        "kept_bytes": None,
        "answer": "21",
        "scores": {"exact_match": 1.0, "f1": 1.0, "cover_substring": 1.0, "cover_tokens": 1.0},
        "answer_type": "number",
        "timings_ms": {"generate": 2.0},
    }
    assert json.loads((folder / "summary.json").read_text()) == done.summary
    record = json.loads((folder / "run.json").read_text())
    assert record["format"] == "clara-evaluation/1"
    assert record["settings"] == done.summary["settings"]
    assert [each["entry"] for each in record["settings"]["entries"]] == list(scores(done))
    assert done.summary["entries"][0]["by_type"] == {
        "number": {"questions": COUNT, "exact_match": 1.0}
    }


def test_rankings_are_measured_and_written_for_trec(tmp_path):
    done = run([Finder()], rankers=[GoldRanker(), RandomRanker()], output=tmp_path / "run")
    gold, drawn = done.summary["rankers"]
    assert {name: gold[name]["mean"] for name in ("recall@1", "recall@20", "mrr", "ndcg@10")} == (
        {"recall@1": 1.0, "recall@20": 1.0, "mrr": 1.0, "ndcg@10": 1.0}
    )
    places = [line["ranked"].index(line["positives"][0]) + 1 for line in done.rankings[COUNT:]]
    assert drawn["mrr"]["mean"] == pytest.approx(sum(1 / place for place in places) / COUNT)
    assert drawn["recall@3"]["mean"] == pytest.approx(sum(p <= 3 for p in places) / COUNT)
    qrels = (tmp_path / "run" / "qrels.trec").read_text().splitlines()
    assert qrels[:2] == ["q0 0 d0 1", "q1 0 d1 1"]
    ranking = (tmp_path / "run" / "ranking.gold.trec").read_text().splitlines()
    assert [line.split()[:4] for line in ranking[:2]] == [
        ["q0", "Q0", "d0", "1"],
        ["q0", "Q0", "d2", "2"],
    ]
    assert len(ranking) == 4 * COUNT


def test_preparing_documents_is_no_part_of_ranking():
    class Slow(GoldRanker):
        name, document_seconds = "slow", 0.0

        def rank(self, questions, documents, k):
            begin = time.perf_counter()
            time.sleep(0.2)
            self.document_seconds += time.perf_counter() - begin
            return super().rank(questions, documents, k)

    done = run([Finder()], rankers=[Slow()])
    assert all(0 <= line["timings_ms"]["rank"] < 200 / COUNT / 2 for line in done.rankings)


def test_a_finished_run_is_not_computed_again(tmp_path):
    first, again = Finder(), Finder()
    one = run([first], rankers=[GoldRanker()], output=tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    other = run([again], rankers=[GoldRanker()], output=tmp_path / "run")
    warmed_up = 1
    assert (first.calls, again.calls) == (warmed_up + -(-COUNT // BATCH), 0)
    assert one.answers == other.answers
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}


def test_the_batch_of_a_cut_off_line_is_done_again(tmp_path, capsys):
    folder = tmp_path / "run"
    whole = run([Finder()], rankers=[GoldRanker()], output=folder)
    written = (folder / "answers.jsonl").read_bytes()
    lines = written.splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[:10]) + lines[10][:30])
    finder = Finder()
    continued = run([finder], rankers=[GoldRanker()], output=folder)
    assert finder.calls == 2  # the first of them warms up
    assert continued.answers == whole.answers
    assert (folder / "answers.jsonl").read_bytes() == written
    assert "answers.jsonl: the last line is cut off; it is dropped" in capsys.readouterr().err


def test_a_damaged_line_is_named_and_nothing_is_written(tmp_path):
    folder = tmp_path / "run"
    run([Finder()], rankers=[GoldRanker()], output=folder)
    lines = (folder / "answers.jsonl").read_text().splitlines()
    for damage, message in (
        ("{", r"answers\.jsonl:4: is not a line of an evaluation: not JSON"),
        ('{"entry": 3}', r"answers\.jsonl:4: field 'entry' must be a string, got 3"),
        (lines[3].replace('"f1"', '"f2"'), r":4: field 'scores.f1' must be a number, got None"),
        (lines[3].replace('"ranked"', '"rank"'), r":4: field 'ranked' must be a list, got None"),
    ):
        damaged = "\n".join([*lines[:3], damage, *lines[4:]]) + "\n"
        (folder / "answers.jsonl").write_text(damaged)
        with pytest.raises(EvaluationError, match=message):
            run([Finder()], rankers=[GoldRanker()], output=folder)
        assert (folder / "answers.jsonl").read_text() == damaged


def test_a_run_of_other_settings_is_refused(tmp_path):
    folder = tmp_path / "run"
    run([Finder()], rankers=[GoldRanker()], output=folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(EvaluationError, match=r"other settings: top_k is 2 there and 3 here"):
        evaluate([Finder()], QUESTIONS, DOCUMENTS, top_k=3, rankers=[GoldRanker()], output=folder)
    with pytest.raises(EvaluationError, match=r"other settings: seed is not set there and 1 here"):
        run([Finder()], rankers=[GoldRanker()], output=folder, settings={"seed": 1})
    with pytest.raises(EvaluationError, match=r"other settings: entries is "):
        run([Finder()], rankers=[RandomRanker()], output=folder)
    with pytest.raises(EvaluationError, match=r"other settings: questions is 12 there and 5 here"):
        evaluate(
            [Finder()], QUESTIONS[:5], DOCUMENTS, top_k=2, rankers=[GoldRanker()], output=folder
        )
    changed = [replace(QUESTIONS[0], answerable=False), *QUESTIONS[1:]]
    with pytest.raises(EvaluationError, match=r"other settings: questions_sha256 is "):
        evaluate([Finder()], changed, DOCUMENTS, top_k=2, rankers=[GoldRanker()], output=folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    run([Finder()], rankers=[GoldRanker()], output=folder)
    record = json.loads((folder / "run.json").read_text())
    threads = record["environment"]["threads"]
    record["environment"]["threads"] = threads + 1
    (folder / "run.json").write_text(json.dumps(record))
    assert capsys.readouterr().err == ""
    run([Finder()], rankers=[GoldRanker()], output=folder)
    line = f"was begun in another environment: threads was {threads + 1} and is {threads}; what is"
    assert line in capsys.readouterr().err


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EvaluationError, match=r"holds 'thesis\.txt' and no run\.json"):
        run([Finder()], rankers=[GoldRanker()], output=tmp_path)
    with pytest.raises(EvaluationError, match="is a file, not the folder of an evaluation"):
        run([Finder()], rankers=[GoldRanker()], output=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_two_processes_do_not_write_to_one_run(tmp_path):
    with (
        opened(tmp_path / "run", {}, {}),
        pytest.raises(EvaluationError, match="run: another process is writing there"),
        opened(tmp_path / "run", {}, {}),
    ):
        pass
    with opened(tmp_path / "run", {}, {}):
        pass


def test_controls_are_marked(tmp_path):
    class Memory(Finder):
        name = kind = "finder"

    done = evaluate(
        [Entry(Memory(), GoldRanker()), Entry(SwappedFinder(), GoldRanker())],
        QUESTIONS,
        DOCUMENTS,
        top_k=2,
    )
    assert scores(done) == {"finder+gold": 1.0, "finder-shuffled+gold": 0.0}
    marks = {each["entry"]: each["reads_memory"] for each in done.summary["entries"]}
    assert marks == {"finder+gold": True, "finder-shuffled+gold": None}
    swapped = [line for line in done.answers if "swapped" in line]
    assert {line["entry"] for line in swapped} == {"finder-shuffled+gold"}
    for line in swapped:  # what was read, beside what it stands in place of
        assert len(line["swapped"]) == 2
        assert not {*line["swapped"]} & {*line["ranked"]}
    (pair,) = (each for each in done.summary["pairs"] if each["score"] == "exact_match")
    assert (pair["a"], pair["b"], pair["difference"]) == ("finder+gold", "finder-shuffled+gold", 1)
    assert pair["p"] < 0.01


def test_a_question_that_cannot_be_evaluated_is_named():
    def refused(message, questions=QUESTIONS, **changes):
        question = EvaluatedQuestion(**{**vars(QUESTIONS[0]), "id": "x", **changes})
        with pytest.raises(EvaluationError, match=message):
            evaluate([Finder()], [*questions, question], DOCUMENTS, rankers=[GoldRanker()])

    refused("question 'x': field 'golden_answers' is empty", golden_answers=())
    refused("question 'x': field 'positives' names 'no', which is the id of", positives=("no",))
    refused("question 'x': field 'candidates' names 'no', which is the", candidates=("no",))
    refused("question 'x': field 'candidates' is empty", candidates=())
    refused("question 'x': field 'question' is empty", question=" ")
    refused("question 'q1': this id is given twice", id="q1")
    with pytest.raises(EvaluationError, match="there are no documents to rank"):
        evaluate([Finder()], [EvaluatedQuestion("q", "?", ("x",))], [], rankers=[GoldRanker()])
    with pytest.raises(EvaluationError, match="there are no questions"):
        evaluate([Finder()], [], DOCUMENTS, rankers=[GoldRanker()])
    with pytest.raises(EvaluationError, match="system 'finder' reads documents and no ranker"):
        evaluate([Finder()], QUESTIONS, DOCUMENTS)
    with pytest.raises(EvaluationError, match=r"entry 'finder\+gold' is given 2 times"):
        evaluate([Finder(), Finder()], QUESTIONS, DOCUMENTS, rankers=[GoldRanker()])


def test_an_error_of_a_system_names_entry_and_questions():
    class Picky(Finder):
        name = "picky"

        def answer(self, questions, documents):
            raise ValueError("not this one")

    with pytest.raises(EvaluationError, match=r"picky\+gold, questions 'q0' to 'q7': not this one"):
        run([Picky()], rankers=[GoldRanker()])


def test_a_prompt_that_is_too_long_stops_the_run_before_any_answer(tiny_model, tmp_path):
    long = Document("long", "Country 7 has rivers. " * 600)
    asked = [*QUESTIONS[:9], replace(QUESTIONS[9], candidates=("long",), positives=("long",))]
    entries = [Entry(TextSystem(tiny_model, max_new_tokens=2), GoldRanker())]
    with pytest.raises(EvaluationError, match=r"^text\+gold, questions 'q8' to 'q9': question"):
        evaluate(entries, asked, [*DOCUMENTS, long], top_k=1, output=tmp_path / "run")
    assert not (tmp_path / "run" / "answers.jsonl").exists()


def test_a_question_without_an_answer_is_scored_by_silence():
    class Silent(Finder):
        name, reads_documents = "silent", False

        def answer(self, questions, documents):
            return [Answered("", 1) for _ in questions]

    asked = EvaluatedQuestion("none", "Who rules the moon?", (), answerable=False)
    done = evaluate([Silent()], [asked], DOCUMENTS)
    assert scores(done) == {"silent": 1.0}
    assert done.answers[0]["answerable"] is False


def test_rouge_is_scored_if_asked_for():
    done = run([Finder()], rankers=[GoldRanker()], rouge=True)
    assert scores(done, "rouge_l") == {"finder+gold": 1.0}
    assert "rouge_l" not in run([Finder()], rankers=[GoldRanker()]).answers[0]["scores"]


def test_a_system_that_ranks_is_its_own_ranker():
    class Both(Finder):
        name = "both"

        def rank(self, questions, documents, k):
            return [[(name, 1.0) for name in each.positives] for each in questions]

    done = run([Both()])
    assert scores(done) == {"both+both": 1.0}


@pytest.fixture(scope="module")
def entries_of_tiny_model(tiny_model):
    def make():
        memory = ComputedMemory(tiny_model)
        ours, gold = MemoryRanker(memory), GoldRanker()
        settings = {"max_new_tokens": 4}
        systems = [kind(memory, **settings) for kind in (MemorySystem, ShuffledMemory, NoMemory)]
        return [
            *(Entry(systems[0], each) for each in (ours, gold)),
            *(Entry(systems[1], each) for each in (ours, gold)),
            Entry(systems[2]),
            Entry(TextSystem(tiny_model, **settings), gold),
            Entry(ClosedBook(tiny_model, **settings)),
        ]

    return make


def without_timings(lines):
    return [{**line, "timings_ms": None} for line in lines]


def test_the_same_run_twice_gives_the_same_lines(entries_of_tiny_model, tmp_path):
    one = run(entries_of_tiny_model(), output=tmp_path / "one")
    other = run(entries_of_tiny_model())
    assert without_timings(one.answers) == without_timings(other.answers)
    assert without_timings(one.rankings) == without_timings(other.rankings)
    # Half of the lines away, as after a kill: the rest is computed as it was.
    for name in ("answers.jsonl", "rankings.jsonl"):
        lines = (tmp_path / "one" / name).read_bytes().splitlines(keepends=True)
        (tmp_path / "one" / name).write_bytes(b"".join(lines[: len(lines) // 2]))
    again = run(entries_of_tiny_model(), output=tmp_path / "one")
    assert without_timings(one.answers) == without_timings(again.answers)
    assert without_timings(one.rankings) == without_timings(again.rankings)


def test_figures_of_memory(entries_of_tiny_model, tiny_model, tmp_path):
    done = run(entries_of_tiny_model(), output=tmp_path / "run")
    by_name = {each["entry"]: each for each in done.summary["entries"]}
    ours, text = by_name["clara@16+gold"], by_name["text+gold"]
    assert (ours["system"], ours["rate"], ours["ranker"]) == ("clara", 16, "gold")
    assert ours["bytes_per_document"] == 4 * 48 * 4  # vectors, dimensions, bytes of float32
    tokens = [len(e.ids) for e in tiny_model.tokenizer.encode_texts([d.text for d in DOCUMENTS])]
    (line,) = (
        line
        for line in done.answers
        if line["entry"] == "clara@16+gold" and line["question"] == "q3"
    )
    assert line["document_tokens"] == tokens[3] + tokens[5]
    assert line["vectors"] == 8
    assert ours["text_prompt_tokens"] == text["prompt_tokens"] == text["text_prompt_tokens"]
    assert ours["prompt_tokens"] < text["prompt_tokens"]
    assert by_name["clara-shuffled@16+gold"]["prompt_tokens"] == ours["prompt_tokens"]
    assert by_name["clara-none"]["prompt_tokens"] == by_name["closed-book"]["prompt_tokens"]
    (kept,) = map(json.loads, (tmp_path / "run" / "documents.jsonl").read_text().splitlines())
    assert kept["system"] == "clara@16"
    assert kept["documents"] == COUNT
    assert kept["vectors_per_document"] == 4
    assert kept["bytes_per_document"] == 768
    assert kept["tokens_per_document"] == pytest.approx(sum(tokens) / COUNT)
    (even,) = done.summary["break_even"]
    assert (even["entry"], even["against"]) == ("clara@16+gold", "text+gold")


def test_the_ranker_of_memory_ranks_as_the_model_does(tiny_model):
    memory = ComputedMemory(tiny_model)
    (ranked,) = MemoryRanker(memory).rank(QUESTIONS[:1], {d.id: d for d in DOCUMENTS}, 3)
    chosen = [document for document in DOCUMENTS if document.id in QUESTIONS[0].candidates]
    expected = tiny_model.rank([QUESTIONS[0].question], tiny_model.compress(chosen), top_k=3)
    assert [name for name, _ in ranked] == [chosen[at].id for at in expected.indices[0].tolist()]
    assert [score for _, score in ranked] == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
    # Without candidates of its own a question ranks all documents.
    free = EvaluatedQuestion(**{**vars(QUESTIONS[0]), "candidates": None})
    (ranked,) = MemoryRanker(memory).rank([free], {d.id: d for d in DOCUMENTS}, 3)
    expected = tiny_model.rank([QUESTIONS[0].question], tiny_model.compress(DOCUMENTS), top_k=3)
    assert [name for name, _ in ranked] == [DOCUMENTS[i].id for i in expected.indices[0].tolist()]


def test_what_was_forgotten_is_compressed_again(tiny_model):
    kept, tight = ComputedMemory(tiny_model), ComputedMemory(tiny_model, most_bytes=1000)
    for memory in (kept, tight):
        memory.plan(DOCUMENTS)
    for first in (0, 6, 0):
        chosen = DOCUMENTS[first : first + 2]
        for one, other in zip(kept.read(chosen), tight.read(chosen), strict=True):
            assert (one.parts[0] == other.parts[0]).all()
    assert kept.measures.documents == COUNT
    assert tight.measures.documents == 3 * COUNT
