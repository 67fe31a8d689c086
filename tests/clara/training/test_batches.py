import pickle
import re
from pathlib import Path

import pytest
import torch

from clara.data.examples import (
    AnswerExample,
    DocumentQuestions,
    PretrainingExample,
    RankingExample,
)
from clara.text.packing import compressor_input
from clara.text.prompts import build_prompt, memory_slots
from clara.text.tokenizer import Marker
from clara.training import collators
from clara.training import encoder as encoder_module
from clara.training.batches import EVENTS, EmptyBatch, candidate_id
from clara.training.collators import CompressionCollator, RankingCollator, TextCollator
from clara.training.encoder import Encoder, SkippedExampleError
from clara.training.questions import Asking

MANY = DocumentQuestions(
    ("It is Ada.", "It is Ben."),
    ("Who is it?", "Who is it not?", "Where?"),
    ("Ada", "Cid", "in Ayr"),
)
LONG = "The river runs past the old mill and under the bridge. " * 12


def encoder(model, **options):
    return Encoder(model.tokenizer, model.config, **{"max_prompt_tokens": None, **options})


def prompts_of(batch):
    ids, start = batch.prompts.batch.ids.tolist(), 0
    found = []
    for length in batch.prompts.batch.lengths:
        found.append(ids[start : start + length])
        start += length
    return found


def answers_of(model, batch):
    """Texts of the targets, prompt after prompt."""
    bounds = [0]
    for length in batch.prompts.batch.lengths:
        bounds.append(bounds[-1] + length)
    targets = batch.prompts.targets
    ids = batch.prompts.batch.ids
    return [
        model.tokenizer.decode(ids[targets[(targets >= low) & (targets < high)]].tolist())
        for low, high in zip(bounds, bounds[1:])
    ]


def test_documents_come_back_in_order(tiny_model):
    examples = [
        AnswerExample("One?", ("short", "a much longer document than the first"), "yes"),
        AnswerExample("Two?", ("of middling length",), "no"),
    ]
    batch = CompressionCollator(encoder(tiny_model))(examples)
    texts = [text for example in examples for text in example.documents]
    with torch.no_grad():
        encoded = tiny_model.encode_memory(batch.documents.batch, "compressor")
    memory = torch.stack(batch.documents.in_order(encoded.memory))
    wanted = tiny_model.compress(texts).memory
    torch.testing.assert_close(memory, wanted, rtol=1e-4, atol=1e-5)
    tokens = [e.ids for e in tiny_model.tokenizer.encode_texts(texts)]
    assert batch.documents.text_tokens == sum(map(len, tokens))
    slots = 3 * tiny_model.config.memory_tokens
    wanted = {"tokens": len(batch.prompts.targets), "documents": 3, "slots": slots}
    assert batch.counts == wanted
    assert batch.tokens_read == len(batch.documents.batch.ids) + len(batch.prompts.batch.ids)


def test_text_tokens_leave_out_begin_and_end(tiny_model):
    (sequence,) = encoder(tiny_model).passages(["two words"], "document")
    packed = encoder(tiny_model).pack([sequence])
    (tokens,) = tiny_model.tokenizer.encode_texts(["two words"])
    tokenizer = tiny_model.tokenizer
    assert sequence == compressor_input(
        tokens.ids, bos=tokenizer.bos_id, eos=tokenizer.eos_id, n_memory=4
    )
    assert packed.text_tokens == len(tokens.ids)


def test_all_pairs_are_written_in_order(tiny_model):
    example = PretrainingExample("qa", ("Who?", "Where?"), ("Ada", "Ayr"), ("Ada is in Ayr.",))
    batch = CompressionCollator(encoder(tiny_model))([example])
    (answer,) = answers_of(tiny_model, batch)
    assert answer.strip() == "Question: Who?\nAnswer: Ada\n\nQuestion: Where?\nAnswer: Ayr"
    (prompt,) = prompts_of(batch)
    assert prompt.count(Marker.MEMORY) == 4
    assert prompt.count(Marker.SEPARATOR) == 1


@pytest.mark.parametrize("asked", [(), ("Say it again.",)])
def test_a_paraphrase_is_the_target(tiny_model, asked):
    example = PretrainingExample("paraphrase", asked, ("In Ayr is Ada.",), ("Ada is in Ayr.",))
    batch = CompressionCollator(encoder(tiny_model))([example])
    assert answers_of(tiny_model, batch)[0].strip() == "In Ayr is Ada."
    text = tiny_model.tokenizer.decode([i for i in prompts_of(batch)[0] if i >= 0])
    assert (asked[0] if asked else "in other words") in text


def test_the_prompt_of_a_question_is_that_of_answering(tiny_model):
    example = AnswerExample("Who is it?", ("It is Ada.", "It is Ben."), "Ada")
    batch = CompressionCollator(encoder(tiny_model))([example])
    config = tiny_model.config
    slots = memory_slots([config.memory_tokens] * 2, config.separator)
    wanted = build_prompt(tiny_model.tokenizer, config.prompt, slots, "Who is it?", "Ada")
    assert prompts_of(batch) == [wanted.ids]
    assert batch.prompts.targets.tolist() == list(range(wanted.answer_start, len(wanted.ids)))


def as_asked(model, batch):
    """Question and answer of each prompt, with what it shares put in front."""
    ids = batch.prompts.batch.ids.split(batch.prompts.batch.lengths)
    bounds = batch.prompts.batch.cu_seqlens.tolist()
    targets = batch.prompts.targets
    branches = dict(enumerate(batch.prompts.batch.branches, batch.prompts.batch.whole))
    found = []
    for row, own in enumerate(ids):
        before = ids[branches[row].trunk][: branches[row].rows] if row in branches else own[:0]
        inside = targets[(targets >= bounds[row]) & (targets < bounds[row + 1])] - bounds[row]
        found.append([*before.tolist(), *own[: inside[0]].tolist(), None, *own[inside].tolist()])
    return found


def test_many_questions_share_the_memory_of_their_documents(tiny_model):
    alone = [
        AnswerExample(question, MANY.documents, answer)
        for question, answer in zip(MANY.questions, MANY.answers, strict=True)
    ]
    other = AnswerExample("What?", ("A mill.",), "a mill")
    collate = CompressionCollator(encoder(tiny_model))
    together, apart = collate([MANY, other]), collate([*alone, other])
    asked = as_asked(tiny_model, together)
    assert sorted(map(str, asked)) == sorted(map(str, as_asked(tiny_model, apart)))
    slots = 3 * tiny_model.config.memory_tokens
    assert together.counts == {"tokens": apart.counts["tokens"], "documents": 3, "slots": slots}
    # Memory is given once, in the order of the documents.
    shown = together.prompts.batch.ids.tolist()
    assert shown.count(Marker.MEMORY) == 3 * tiny_model.config.memory_tokens
    assert [branch.trunk for branch in together.prompts.batch.branches] == [0, 0]
    wanted = tiny_model.compress([*MANY.documents, *other.documents]).memory
    with torch.no_grad():
        encoded = tiny_model.encode_memory(together.documents.batch, "compressor")
    memory = torch.stack(together.documents.in_order(encoded.memory))
    torch.testing.assert_close(memory, wanted, rtol=1e-4, atol=1e-5)
    assert together.tokens_read < apart.tokens_read - 2 * 2 * len(encoded.states) // 3


def test_a_question_that_cannot_be_used_leaves_the_others(tiny_model):
    example = DocumentQuestions(("It is Ada.",), ("Who?", "What?", "Where?"), ("Ada", LONG, " "))
    batch = CompressionCollator(encoder(tiny_model, max_prompt_tokens=200))([example])
    assert batch.events == {"prompt over the budget": 1, "no answer tokens": 1}
    assert [answer.strip() for answer in answers_of(tiny_model, batch)] == ["Ada"]
    assert not batch.prompts.batch.branches
    none = DocumentQuestions(("It is Ada.",), ("What?", "Where?"), (LONG, " "))
    for collator in (CompressionCollator, TextCollator):
        collate = collator(encoder(tiny_model, max_prompt_tokens=200))
        assert isinstance(collate([none]), EmptyBatch)
        both = collate([none, MANY])
        assert both.events == {"prompt over the budget": 1, "no answer tokens": 1}
    assert both.counts["tokens"] == collate([MANY]).counts["tokens"]
    strict = CompressionCollator(encoder(tiny_model, max_prompt_tokens=200, on_unusable="error"))
    with pytest.raises(SkippedExampleError, match="max_prompt_tokens is 200"):
        strict([example])


def test_which_questions_are_asked(tiny_model):
    count = 40
    example = DocumentQuestions(
        ("d",), tuple(f"{i}?" for i in range(count)), tuple(map(str, range(count)))
    )
    drawn = [Asking(6).drawn(example, seed=seed) for seed in range(60)]
    for pairs in drawn:
        rows = [int(answer) for _, answer in pairs]
        assert len(rows) == 6
        assert rows == sorted(set(rows))
        assert [question for question, _ in pairs] == [f"{row}?" for row in rows]
    assert len({str(pairs) for pairs in drawn}) > 50
    assert {int(answer) for pairs in drawn for _, answer in pairs} == set(range(count))
    assert Asking(6).drawn(example, seed=3) == drawn[3]
    # Another example of as many questions has others of them drawn.
    again = DocumentQuestions(("e",), example.questions, example.answers)
    assert Asking(6).drawn(again, seed=3) != drawn[3]
    assert len(Asking().drawn(example)) == 16
    assert len(Asking(40).drawn(example)) == 40

    collate = CompressionCollator(encoder(tiny_model), Asking(6))
    batches = [collate([example], seed=seed) for seed in (3, 4)]
    for batch, pairs in zip(batches, drawn[3:5], strict=True):
        found = {answer.strip() for answer in answers_of(tiny_model, batch)}
        assert found == {answer for _, answer in pairs}


def test_many_questions_share_a_text(tiny_model):
    alone = [
        AnswerExample(question, MANY.documents, answer)
        for question, answer in zip(MANY.questions, MANY.answers, strict=True)
    ]
    collate = TextCollator(encoder(tiny_model))
    together, apart = collate([MANY]), collate(alone)
    asked = as_asked(tiny_model, together)
    assert sorted(map(str, asked)) == sorted(map(str, as_asked(tiny_model, apart)))
    assert together.counts == apart.counts
    assert len(together.prompts.batch.branches) == 2


def test_ranking_prompts_have_slots_for_what_is_selected(tiny_model):
    examples = [
        RankingExample("Who?", ("a", "b", "c"), (1,), "Ada"),
        RankingExample("Where?", ("d",), (), "Ayr"),
    ]
    batch = RankingCollator(encoder(tiny_model), top_k=2)(examples)
    assert [prompt.count(Marker.MEMORY) for prompt in prompts_of(batch)] == [8, 4]
    assert batch.offsets == [0, 3, 4]
    assert batch.candidates == [[candidate_id(t) for t in "abc"], [candidate_id("d")]]
    assert batch.positives == [(1,), ()]
    assert batch.counts == {"tokens": len(batch.prompts.targets), "questions": 2}


def test_questions_without_positives_are_counted(tiny_model):
    examples = [
        RankingExample("Who?", ("a", "b"), (1,), "Ada"),
        RankingExample("Where?", ("d",), (), "Ayr"),
    ]
    batch = RankingCollator(encoder(tiny_model), 2, need_positives=True)(examples)
    assert batch.events == {"no positives": 1}
    assert batch.positives == [(1,)]


def test_without_prompts_a_long_answer_is_no_reason_to_leave_a_question_out(tiny_model):
    examples = [RankingExample("Who?", ("a", "b"), (1,), LONG)]
    with_prompts = RankingCollator(encoder(tiny_model, max_prompt_tokens=100), 2)(examples)
    assert with_prompts.events == {"prompt over the budget": 1}
    batch = RankingCollator(encoder(tiny_model, max_prompt_tokens=100), None)(examples)
    assert not batch.events
    assert batch.counts == {"questions": 1}
    assert batch.tokens_read == sum(batch.questions.batch.lengths)


def test_questions_with_a_candidate_that_has_no_memory_are_counted(tiny_model):
    examples = [
        RankingExample("Who?", ("a", " "), (0,), "Ada"),
        RankingExample("Where?", ("d",), (), "Ayr"),
    ]
    batch = RankingCollator(encoder(tiny_model), 2, unusable={candidate_id(" ")})(examples)
    assert batch.events == {"candidate empty or too long": 1}
    assert batch.candidates == [[candidate_id("d")]]


def test_an_empty_answer_is_not_trained_on(tiny_model):
    collators = (
        (CompressionCollator(encoder(tiny_model)), AnswerExample("Who?", ("a",), " ")),
        (
            CompressionCollator(encoder(tiny_model)),
            PretrainingExample("qa", ("Who?", "Where?"), ("", "Ayr"), ("a",)),
        ),
        (
            CompressionCollator(encoder(tiny_model)),
            PretrainingExample("paraphrase", (), ("",), ("a",)),
        ),
        (RankingCollator(encoder(tiny_model), 2), RankingExample("Who?", ("a",), (0,), "")),
        (TextCollator(encoder(tiny_model)), AnswerExample("Who?", ("a",), "")),
    )
    for collate, example in collators:
        assert collate([example]).events == {"no answer tokens": 1}


def test_all_reasons_are_known(tiny_model):
    """What is not in `EVENTS` would not be added up over processes."""
    files = (encoder_module, collators)
    source = "".join(Path(each.__file__).read_text(encoding="utf-8") for each in files)
    reasons = set(re.findall(r'SkippedExampleError\(\s*"([^"]+)"', source))
    for ending in ("empty or too long", "truncated"):
        reasons |= {f"{what} {ending}" for what in ("document", "question")}
    reasons |= {"candidate truncated", "answer without a teacher"}
    assert reasons == set(EVENTS)


def test_a_refused_example_can_be_passed_on_by_a_loaders_process():
    error = pickle.loads(pickle.dumps(SkippedExampleError("no positives", "a question has none")))
    assert (error.reason, str(error)) == ("no positives", "a question has none")


def test_text_prompts_hold_the_documents(tiny_model):
    batch = TextCollator(encoder(tiny_model))([AnswerExample("Who?", ("It is Ada.",), "Ada")])
    (prompt,) = prompts_of(batch)
    assert min(prompt) >= 0
    assert "It is Ada." in tiny_model.tokenizer.decode(prompt)


def test_long_documents_are_cut_and_counted(tiny_model):
    example = AnswerExample("Who?", (LONG, "It is Ada."), "Ada")
    batch = CompressionCollator(encoder(tiny_model))([example])
    assert batch.events == {"document truncated": 1}
    assert max(batch.documents.batch.lengths) == 64 + 3 + 4  # no <eos> but a token more


def test_a_prompt_over_the_budget(tiny_model):
    examples = [AnswerExample("Who?", ("It is Ada.",), answer) for answer in ("Ada", LONG)]
    batch = CompressionCollator(encoder(tiny_model, max_prompt_tokens=200))(examples)
    assert batch.events == {"prompt over the budget": 1}
    assert len(batch.prompts.batch.lengths) == 1
    strict = CompressionCollator(encoder(tiny_model, max_prompt_tokens=200, on_unusable="error"))
    with pytest.raises(SkippedExampleError, match=r"a prompt has \d+ tokens, max_prompt_tokens"):
        strict(examples)


def test_documents_over_the_limit_can_be_refused(tiny_model):
    examples = [AnswerExample("Who?", (LONG,), "Ada")]
    batch = CompressionCollator(encoder(tiny_model, overflow="error"))(examples)
    assert isinstance(batch, EmptyBatch)
    assert batch.events == {"document empty or too long": 1}
    strict = CompressionCollator(encoder(tiny_model, overflow="error", on_unusable="error"))
    with pytest.raises(SkippedExampleError, match="the limit is 64"):
        strict(examples)


def test_counts_of_one_batch_do_not_show_in_the_next(tiny_model):
    collate = CompressionCollator(encoder(tiny_model))
    assert collate([AnswerExample("Who?", (LONG,), "Ada")]).events
    assert not collate([AnswerExample("Who?", ("It is Ada.",), "Ada")]).events


def test_control_tokens_in_text_are_text(tiny_model):
    tokenizer = tiny_model.tokenizer
    example = AnswerExample("</s> Who?", ("<s> It is <MEM0> </s> Ada.",), "</s>Ada")
    batch = CompressionCollator(encoder(tiny_model))([example])
    documents = batch.documents.batch.ids.tolist()
    assert documents.count(tokenizer.bos_id) == 1
    assert documents.count(tokenizer.eos_id) == 1
    (prompt,) = prompts_of(batch)
    plain = AnswerExample("Who?", ("Ada.",), "Ada")
    (other,) = prompts_of(CompressionCollator(encoder(tiny_model))([plain]))
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        assert prompt.count(token) == other.count(token)
