"""Examples that become the task of repeating a document."""

import random
import re

import pytest

from clara.data.examples import AnswerExample, PretrainingExample
from clara.training.collators import CompressionCollator
from clara.training.curriculum import Curriculum, CurriculumError
from clara.training.encoder import Encoder
from clara.training.moments import Moment
from clara.training.prompts import RECONSTRUCTION_TASK
from clara.training.reconstruction import CurriculumCollator, window

TEXT = (
    "The river runs past the old mill, naïve as ever, and under the bridge of 1874. 🎓 It floods."
)
EXAMPLES = [
    AnswerExample(f"Who lives in number {row}?", (f"Ada is in {row}. " + TEXT,), f"Ada {row}")
    for row in range(12)
]


def count(model, text):
    return len(model.tokenizer.encode_texts([text])[0].ids)


@pytest.mark.parametrize("tokens", [1, 2, 5, 24, 10_000])
def test_a_window_is_a_piece_of_the_text_within_the_limit(tiny_model, tokens):
    generator = random.Random(1)
    pieces = {window(tiny_model.tokenizer, TEXT, tokens, generator) for _ in range(60)}
    for piece in pieces:
        assert piece in TEXT
        assert piece == piece.strip()
        # A character may take more tokens than one.
        assert count(tiny_model, piece) <= tokens or len(piece) == 1
    if tokens == 10_000:
        assert pieces == {TEXT}
    elif tokens > 1:
        assert len(pieces) > 10
        whole = [count(tiny_model, piece) for piece in pieces if len(piece) > 1]
        assert max(whole) == tokens


def test_every_part_of_a_text_is_read(tiny_model):
    generator = random.Random(2)
    pieces = {window(tiny_model.tokenizer, TEXT, 8, generator) for _ in range(600)}
    covered = [False] * len(TEXT)
    for piece in pieces:
        start = TEXT.index(piece)
        covered[start : start + len(piece)] = [True] * len(piece)
    assert all(covered[place] for place, character in enumerate(TEXT) if character != " ")


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_text_of_nothing(tiny_model, text):
    assert window(tiny_model.tokenizer, text, 4, random.Random(1)) == ""


@pytest.fixture
def seen(tiny_model):
    """A function that gives the examples which a curriculum makes of `EXAMPLES`."""

    def go(phases, moment, examples=EXAMPLES, longest=64):
        collator = CurriculumCollator(
            lambda drawn, **options: drawn,
            Curriculum(tiny_model.config, phases),
            tiny_model.tokenizer,
            longest,
        )
        return collator(examples, moment)

    return go


def test_the_share_of_examples_that_repeat(seen):
    phases = [{"reconstruction": [1.0, 0.0]}]
    assert all(each.answers == each.documents for each in seen(phases, Moment(0, 101, 1)))
    assert seen(phases, Moment(100, 101, 1)) == EXAMPLES
    half = [each for step in range(60) for each in seen(phases, Moment(50, 101, step))]
    repeated = sum(isinstance(each, PretrainingExample) for each in half)
    assert repeated / len(half) == pytest.approx(0.5, abs=0.06)
    # What is not to be repeated is as it was: whole documents.
    assert {each for each in half if isinstance(each, AnswerExample)} <= set(EXAMPLES)


def test_windows_are_of_the_documents_and_differ_between_moments(seen, tiny_model):
    phases = [{"reconstruction": 1.0, "text_tokens": 6}]
    first, again, later = (seen(phases, Moment(0, 10, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != later
    for made, example in zip(first, EXAMPLES):
        assert made.documents[0] in example.documents[0]
        assert count(tiny_model, made.documents[0]) <= 6
        assert made.answers == made.documents
        assert made.questions == (RECONSTRUCTION_TASK,)


def test_whole_documents_are_repeated_up_to_the_models_limit(seen, tiny_model):
    long = AnswerExample("Who?", (TEXT * 4,), "Ada")
    short = EXAMPLES[:1]
    assert count(tiny_model, long.documents[0]) > 64
    made = seen([{"reconstruction": 1.0}], Moment(0, 10, 1), [long])[0].documents[0]
    assert 60 <= count(tiny_model, made) <= 64
    phases = [{"reconstruction": 1.0, "text_tokens": 10_000}]
    limit = count(tiny_model, short[0].documents[0])
    assert seen(phases, Moment(0, 10, 1), short, limit)[0].documents == short[0].documents
    assert count(tiny_model, seen(phases, Moment(0, 10, 1), [long])[0].documents[0]) <= 64


def test_one_of_several_documents_is_repeated(seen):
    examples = [AnswerExample("Who?", ("It is Ada.", "It is Ben.", "It is Cid."), "Ada")] * 30
    made = seen([{"reconstruction": 1.0}], Moment(0, 10, 1), examples)
    assert {each.documents for each in made} == {(text,) for text in examples[0].documents}


def test_the_batch_asks_for_the_document_and_nothing_else(tiny_model):
    """From the examples to the tokens that are trained on."""
    encoder = Encoder(tiny_model.tokenizer, tiny_model.config, None)
    curriculum = Curriculum(tiny_model.config, [{"reconstruction": 1.0}])
    collator = CurriculumCollator(
        CompressionCollator(encoder), curriculum, tiny_model.tokenizer, 64
    )
    example = PretrainingExample("qa", ("Who?",), ("Ada",), ("It is Ada, in Ayr.",))
    batch = collator([example], Moment(0, 1, 0))
    ids, targets = batch.prompts.batch.ids, batch.prompts.targets
    assert tiny_model.tokenizer.decode(ids[targets].tolist()).strip() == "It is Ada, in Ayr."
    prompt = tiny_model.tokenizer.decode([i for i in ids[: targets[0]].tolist() if i >= 0])
    assert RECONSTRUCTION_TASK in prompt
    assert "Ada" not in prompt
    assert batch.counts["tokens"] == len(targets)
    assert len(batch.documents) == 1


def test_some_examples_become_lists_of_numbers(tiny_model):
    collator = CurriculumCollator(
        lambda examples, **_: examples,
        Curriculum(tiny_model.config, [{"reconstruction": 0.3, "numbers": [0.0, 0.6]}]),
        tiny_model.tokenizer,
        500,
    )
    plain = CurriculumCollator(
        lambda examples, **_: examples,
        Curriculum(tiny_model.config, [{"reconstruction": 0.3}]),
        tiny_model.tokenizer,
        500,
    )
    many = EXAMPLES * 40
    first, last = (collator(many, Moment(step, 100, 7)) for step in (0, 99))
    assert first == plain(many, Moment(0, 100, 7))
    lists = [
        each
        for each in last
        if isinstance(each, PretrainingExample) and TEXT not in each.documents[0]
    ]
    assert abs(len(lists) / len(many) - 0.6) < 0.08
    for each in lists:
        assert each.questions == (RECONSTRUCTION_TASK,)
        assert each.answers == each.documents
        lines = [line.split(": ") for line in each.documents[0].split("\n")]
        assert len({name for name, _ in lines}) == 3
        assert all(re.match(r"-?\d{1,3}(,\d{3})*(\.\d{1,3})?(\D|$)", value) for _, value in lines)
    assert len({each.documents for each in lists}) > 0.95 * len(lists)


def test_shares_of_a_phase_are_at_most_one(tiny_model):
    for phase in ({"reconstruction": 0.5, "numbers": 0.6}, {"numbers": [0.2, 1.1]}):
        with pytest.raises(CurriculumError, match="numbers"):
            Curriculum(tiny_model.config, [phase])
