"""Systems that a tiny model answers for."""

import time

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.data.records import Document
from clara.evaluation import evaluate
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.entries import Entry
from clara.evaluation.errors import EvaluationError, UnavailableError
from clara.evaluation.rankers.ours import MemoryRanker
from clara.evaluation.registry import SYSTEMS, entries_of, rankers_by_name
from clara.evaluation.systems.encoded import EncodedQuestions
from clara.evaluation.systems.memory import MemorySystem, NoMemory, ShuffledMemory
from clara.evaluation.systems.setup import Setup, TunedReader
from clara.evaluation.systems.store import ComputedMemory, IndexedMemory, documents_of
from clara.evaluation.systems.text import ClosedBook, TextSystem
from clara.index import MemoryIndex

from ..random_adapters import draw_adapters

TEXTS = [f"Country {n} has {7 * n} rivers and a coast of {n} km." for n in range(6)]
DOCUMENTS = [Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
LONG = Document("long", " ".join(TEXTS[1:]))  # two chunks of at most 64 tokens
QUESTIONS = ["How many rivers?", "How long is the coast of country 3?"]
RATED = {"clara@4": 4, "clara@16": 16}
GIVEN = [DOCUMENTS[:2], [DOCUMENTS[3], LONG]]


@pytest.fixture(scope="module")
def spans_model(tiny_backbone):
    config = ClaraConfig(
        memory_form="spans",
        compression_rate=4,
        rates=(1, 4, 16),
        document_length=64,
        lora_rank=4,
        lora_alpha=8,
        dtype="float32",
    )
    return draw_adapters(Clara.from_backbone(tiny_backbone("llama"), config), seed=0)


def test_answers_from_memory_are_the_models_own(tiny_model):
    system = MemorySystem(ComputedMemory(tiny_model), max_new_tokens=5)
    answers = system.answer(QUESTIONS, GIVEN)
    memory = [tiny_model.compress(given) for given in GIVEN]
    expected = tiny_model.generate(QUESTIONS, memory, max_new_tokens=5)
    assert [each.text for each in answers] == [text.strip() for text in expected]
    chunks = len(memory[1])
    assert chunks > 2
    assert [each.vectors for each in answers] == [8, 4 * chunks]
    assert [each.kept_bytes for each in answers] == [8 * 48 * 4, 4 * chunks * 48 * 4]
    assert [each.document_tokens for each in answers] == [sum(m.token_counts) for m in memory]
    assert [each.prompt_tokens for each in answers] == [
        tiny_model.prompt_tokens(QUESTIONS[0], 2),
        tiny_model.prompt_tokens(QUESTIONS[1], chunks),
    ]
    assert [each.text_prompt_tokens for each in answers] == [
        tiny_model.text_prompt_tokens(question, [each.text for each in given])
        for question, given in zip(QUESTIONS, GIVEN, strict=True)
    ]


def test_a_model_in_spans_serves_several_rates(spans_model):
    setup = Setup(spans_model, rates=(4, 16), max_new_tokens=5)
    made = entries_of(setup, ["clara"], [], [], controls=False)
    assert [entry.name for entry in made] == [
        *("clara@4+clara", "clara@4+gold"),
        *("clara@16+clara", "clara@16+gold"),
    ]
    four, sixteen = (setup.memory(rate) for rate in (4, 16))
    tokens = four.read(GIVEN[0])[0].tokens
    assert four.read(GIVEN[0])[0].vectors == -(-tokens // 4)
    assert sixteen.read(GIVEN[0])[0].vectors == -(-tokens // 16)
    answers = MemorySystem(sixteen, max_new_tokens=5).answer(QUESTIONS, GIVEN)
    memory = [spans_model.compress(given, compression_rate=16) for given in GIVEN]
    expected = spans_model.generate(QUESTIONS, memory, max_new_tokens=5)
    assert [each.text for each in answers] == [text.strip() for text in expected]
    with pytest.raises(ValueError, match=r"must be one of the rates .* got 3"):
        setup.memory(3)


def test_swapped_memory_has_as_many_vectors_of_the_other_documents(spans_model, monkeypatch):
    memory = ComputedMemory(spans_model)
    system = ShuffledMemory(memory, max_new_tokens=5)
    seen = []
    monkeypatch.setattr(
        "clara.evaluation.systems.memory.answers_to",
        lambda model, questions, prompts, joined, *rest: (seen.extend(joined), ([""], 1.0))[1],
    )
    short = Document("short", "A b c.")
    (answered,) = system.answer_swapped(QUESTIONS[:1], [[LONG, short]], [[DOCUMENTS[4], LONG]])
    own = [len(part) for each in memory.read([LONG, short]) for part in each.parts]
    other = [part for each in memory.read([DOCUMENTS[4], LONG]) for part in each.parts]
    expected = [
        other[at % len(other)][torch.arange(count) % len(other[at % len(other)])]
        for at, count in enumerate(own)
    ]
    assert torch.equal(seen[0], torch.cat(expected))
    assert answered.vectors == sum(own)
    assert answered.prompt_tokens == spans_model.prompt_tokens(QUESTIONS[0], own)


def test_without_memory_the_generator_reads_an_empty_background(tiny_model):
    (own,) = NoMemory(ComputedMemory(tiny_model), max_new_tokens=5).answer(QUESTIONS[:1], [[]])
    (closed,) = ClosedBook(tiny_model, max_new_tokens=5).answer(QUESTIONS[:1], [DOCUMENTS])
    assert own.prompt_tokens == closed.prompt_tokens == tiny_model.prompt_tokens(QUESTIONS[0], [])
    assert (own.vectors, own.kept_bytes, own.text_prompt_tokens) == (None, None, None)
    assert [own.text] == [
        text.strip() for text in tiny_model.generate(QUESTIONS[:1], [[]], max_new_tokens=5)
    ]
    assert own.text != closed.text  # the adapters of this model change what it says


def test_text_is_read_by_the_bare_backbone_or_by_an_adapter(tiny_model):
    bare = TextSystem(tiny_model, max_new_tokens=5)
    texts = [[each.text for each in given] for given in GIVEN]
    expected = tiny_model.answer_from_text(QUESTIONS, texts, max_new_tokens=5)
    answers = bare.answer(QUESTIONS, GIVEN)
    assert [each.text for each in answers] == [text.strip() for text in expected]
    assert all(each.prompt_tokens == each.text_prompt_tokens for each in answers)
    tuned = TextSystem(tiny_model, name="text-tuned", adapter="generator", max_new_tokens=5)
    assert [each.text for each in tuned.answer(QUESTIONS, GIVEN)] != [a.text for a in answers]
    assert tuned.settings["model"] != bare.settings["model"]


def test_what_decides_the_answers_is_in_the_settings(tiny_model, tiny_backbone):
    config = tiny_model.config.replace(backbone=None)
    other = draw_adapters(Clara.from_backbone(tiny_backbone("llama"), config), seed=1)
    systems = [MemorySystem(ComputedMemory(model)) for model in (tiny_model, other)]
    one, two = (system.settings for system in systems)
    assert one == MemorySystem(ComputedMemory(tiny_model)).settings
    assert {name for name in one if one[name] != two[name]} == {"model", "fingerprint"}


def test_a_prompt_that_does_not_fit_names_its_question(tiny_model):
    many = [Document(f"m{n}", " ".join(TEXTS)) for n in range(20)]
    with pytest.raises(EvaluationError, match=r"question 'How many rivers.*use a smaller top_k"):
        TextSystem(tiny_model).answer(QUESTIONS[:1], [many])


def index_of(model, path, storage=None):
    return MemoryIndex.create(
        path,
        fingerprint=model.fingerprint,
        memory_tokens=4,
        hidden_size=48,
        storage=storage,
        settings=model.config.index_settings(),
    )


def test_an_index_that_stores_memory_otherwise_is_another_system(tiny_model, tmp_path):
    settings = []
    for storage in ("float32", "int8"):
        stored = IndexedMemory(tiny_model, index_of(tiny_model, tmp_path / storage, storage))
        held = stored.settings["index"]
        assert (held["storage"], held["dtype"]) == (storage, "float32")
        settings.append(MemorySystem(stored).settings)
    assert settings[0] != settings[1]


def test_an_index_gives_documents_and_memory(tiny_model, tiny_backbone, tmp_path):
    index = index_of(tiny_model, tmp_path / "index")
    compressed = tiny_model.compress([*DOCUMENTS, LONG])
    index.add(compressed)
    assert documents_of(index) == {each.id: each for each in [*DOCUMENTS, LONG]}
    stored, computed = IndexedMemory(tiny_model, index), ComputedMemory(tiny_model)
    assert stored.rate == 16
    for one, other in zip(stored.read(GIVEN[1]), computed.read(GIVEN[1]), strict=True):
        assert one.tokens == other.tokens
        for mine, theirs in zip(one.parts, other.parts, strict=True):
            torch.testing.assert_close(mine, theirs)
    # A run that was begun with one of them does not go on with the other.
    assert MemorySystem(stored).settings != MemorySystem(computed).settings
    assert MemoryRanker(stored).settings != MemoryRanker(computed).settings
    setup = Setup(tiny_model, index=index)
    assert isinstance(setup.memory(16), IndexedMemory)
    with pytest.raises(EvaluationError, match="holds no document 'new'"):
        stored.read([Document("new", "text")])
    config = tiny_model.config.replace(backbone=None)
    other = draw_adapters(Clara.from_backbone(tiny_backbone("llama"), config), seed=1)
    with pytest.raises(EvaluationError, match=r"was written by another model .* evaluate the"):
        Setup(other, index=index)


def test_entries_of_names(tiny_model, capsys):
    setup = Setup(tiny_model, tuned=TunedReader(tiny_model, "generator"))
    names = [
        entry.name
        for entry in entries_of(setup, ["clara", "text-tuned", "closed-book"], ["random"], [])
    ]
    assert names == [
        *(f"clara@16+{ranker}" for ranker in ("random", "clara", "gold")),
        *(f"clara-shuffled@16+{ranker}" for ranker in ("random", "clara", "gold")),
        "clara-none",
        "text-tuned+random",
        "text-tuned+gold",
        "closed-book",
    ]
    with pytest.raises(EvaluationError, match=r"unknown system 'x'; systems are clara, text, "):
        entries_of(setup, ["x"], [], [])
    with pytest.raises(EvaluationError, match=r"unknown ranker 'x'; rankers are clara, bm25, "):
        entries_of(setup, ["text"], ["x"], [])
    asked = [EvaluatedQuestion("q7", "Who?", ("x",))]  # nobody knows by which document
    with pytest.raises(EvaluationError, match=r"'gold' needs .* 'q7' has no 'positives'"):
        entries_of(setup, ["text"], ["gold"], asked)
    with pytest.raises(EvaluationError, match=r"'gold' needs .* 'q7' has no 'positives'"):
        rankers_by_name(setup, ["gold"], asked)
    assert [each.name for each in entries_of(setup, ["text"], ["random"], asked)] == ["text+random"]
    with pytest.raises(EvaluationError, match="ranker 'contrastive' needs the model"):
        entries_of(setup, ["text"], ["contrastive"], [])
    bare = Setup(tiny_model, has_adapters=False)
    with pytest.raises(EvaluationError, match="memory needs a model with adapters"):
        entries_of(bare, ["clara"], ["random"], [])


def test_a_system_that_is_not_here_is_left_out(tiny_model, monkeypatch, capsys):
    def missing(setup, rate):
        raise UnavailableError("its package is not installed")

    kind = type(SYSTEMS["text"])(missing)
    monkeypatch.setitem(SYSTEMS, "rare", kind)
    made = entries_of(Setup(tiny_model), ["rare", "closed-book"], ["random"], [])
    assert [entry.name for entry in made] == ["closed-book"]
    line = "system rare is left out: its package is not installed\n"
    assert capsys.readouterr().err == line


def test_every_entry_is_ranked_by_memory_of_its_own_rate(spans_model):
    setup = Setup(spans_model, rates=(16, 4), max_new_tokens=5)
    made = entries_of(setup, ["clara", "text", "lead"], ["clara"], [])
    assert [entry.name for entry in made if not entry.name.endswith("+gold")] == [
        *("clara@16+clara", "clara-shuffled@16+clara", "clara-none"),
        *("clara@4+clara", "clara-shuffled@4+clara"),
        *("text+clara@16", "text+clara@4"),
        *("lead@16+clara", "lead@4+clara"),
    ]
    by_name = {entry.name: entry for entry in made}
    for rate in (4, 16):
        entries = [by_name[f"clara@{rate}+clara"], by_name[f"text+clara@{rate}"]]
        assert entries[0].ranker is entries[1].ranker is by_name[f"lead@{rate}+clara"].ranker
        assert entries[0].ranker.memory is setup.memory(rate)
        assert entries[0].system.memory is setup.memory(rate)
        assert {each.described()["ranker"] for each in entries} == {f"clara@{rate}"}
    alone = rankers_by_name(setup, ["clara", "random"], [])
    assert [each.name for each in alone] == ["clara@16", "clara@4", "random"]
    # People's own crossings say both rates where they differ.
    assert Entry(by_name["clara@4+clara"].system, alone[0]).name == "clara@4+clara@16"
    with pytest.raises(ValueError, match=r"must be one of the rates .* got 3"):
        entries_of(Setup(spans_model, rates=(4, 3)), ["text"], ["clara"], [])


def test_rankings_of_every_rate_are_those_of_the_model(spans_model, monkeypatch, tmp_path):
    asked = [
        EvaluatedQuestion(f"q{n}", f"Which coast is {n} km?", (str(n),), (f"d{n}",))
        for n in range(6)
    ]
    encoded = []
    encode = spans_model.encode_queries

    def counted(questions):
        encoded.append(tuple(questions))
        time.sleep(0.2)
        return encode(questions)

    monkeypatch.setattr(spans_model, "encode_queries", counted)
    setup = Setup(spans_model, rates=(4, 16))
    done = evaluate([], asked, DOCUMENTS, rankers=rankers_by_name(setup, ["clara"], asked),
                    output=tmp_path / "run")  # fmt: skip
    texts = [each.question for each in asked]
    assert encoded == [tuple(texts)] * 2  # once to warm up, and once for both rates
    lines = {name: [e for e in done.rankings if e["ranker"] == name] for name in RATED}
    assert done.rankings == [*lines["clara@4"], *lines["clara@16"]]
    for name, rate in RATED.items():
        expected = spans_model.rank(
            texts, spans_model.compress(DOCUMENTS, compression_rate=rate), top_k=6
        )
        for line, scores, rows in zip(lines[name], expected.scores, expected.indices, strict=True):
            assert line["ranked"] == [DOCUMENTS[row].id for row in rows.tolist()]
            assert line["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
            # The time of encoding is also that of the rate that did not encode again.
            assert line["timings_ms"]["rank"] >= 200 / len(asked)
        trec = (tmp_path / "run" / f"ranking.{name}.trec").read_text().splitlines()
        assert trec[0].split()[:4] == ["q0", "Q0", lines[name][0]["ranked"][0], "1"]
        assert trec[0].split()[-1] == name
    assert lines["clara@4"][0]["scores"] != lines["clara@16"][0]["scores"]
    # Stopped within the second rate, it goes on with the same numbers.
    file = tmp_path / "run" / "rankings.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:8]))
    again = rankers_by_name(Setup(spans_model, rates=(4, 16)), ["clara"], asked)
    more = evaluate([], asked, DOCUMENTS, rankers=again, output=tmp_path / "run")
    assert [{**line, "timings_ms": None} for line in more.rankings] == [
        {**line, "timings_ms": None} for line in done.rankings
    ]


def test_encodings_beyond_the_limit_are_computed_again(spans_model):
    texts = [["Which coast?", "How many rivers?"], ["Who?"], ["When?"]]
    row = spans_model.encode_queries(["Who?"]).nbytes
    encoded = EncodedQuestions(spans_model, most_bytes=2 * row)
    expected = [spans_model.encode_queries(each) for each in texts]
    found = [[encoded.encode(each) for each in texts] for _ in range(3)]
    for queries in found:
        assert all(torch.equal(one, other) for (one, _), other in zip(queries, expected))
    saved = [[seconds > 0 for _, seconds in queries] for queries in found]
    # The first batch of all is not kept, and two others leave no room for it.
    assert saved == [[False, False, False], [False, True, True], [False, True, True]]


def test_the_contrastive_ranker_shares_memory_of_the_same_compressor(tiny_model, spans_model):
    setup = Setup(tiny_model, contrastive=tiny_model)
    (entry, *_) = entries_of(setup, ["text"], ["contrastive"], [])
    assert entry.ranker.memory is setup.memory(16)
    assert entry.ranker.name == "contrastive"
    other = Setup(tiny_model, contrastive=spans_model)
    (entry, *_) = entries_of(other, ["text"], ["contrastive"], [])
    assert entry.ranker.memory.model is spans_model
