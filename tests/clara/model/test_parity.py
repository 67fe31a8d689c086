"""What the public reference implementation computed from a small checkpoint, computed by ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara.text.packing import compressor_input, pack
from clara.text.passages import as_documents, prepare_passages, prepare_questions
from clara.text.prompts import build_prompt, memory_slots
from clara.text.tokenizer import Marker
from clara_kernels import cosine_scores, memory_alignment_loss, select_topk

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
M = 4
VOCABULARY = 600
THEIR_IDS = {
    **{VOCABULARY + slot: Marker.MEMORY.value for slot in range(M)},
    VOCABULARY + M + 1: Marker.ENCODE.value,
    VOCABULARY + M + 2: Marker.SEPARATOR.value,
}
THEIR_ADAPTERS = {"decoder_adapter": "generator", "query_reasoner_adapter": "query_reasoner"}


@pytest.fixture(scope="module")
def expected():
    return json.loads((REFERENCE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def numbers():
    return load_file(REFERENCE / "expected.safetensors")


@pytest.fixture(scope="module")
def documents(expected):
    return [text for texts in expected["documents"] for text in texts]


@pytest.fixture(scope="module")
def memory(reference_model, documents):
    """`[3 questions, 4 candidates, m, H]`."""
    return reference_model.compress(documents).memory.unflatten(0, (3, 4))


def their_tokens(row, first):
    """A left-padded row of the reference from its token `first` on, in our ids."""
    ids = row.tolist()
    return [THEIR_IDS.get(i, i) for i in ids[ids.index(first) :]]


def packed(model, passages):
    tokenizer = model.tokenizer
    sequences = [
        compressor_input(
            p.tokens,
            bos=tokenizer.bos_id,
            eos=tokenizer.eos_id if p.complete else None,
            n_memory=M,
        )
        for p in passages
    ]
    (batch,) = pack(sequences, batch_tokens=10_000, device=model.device)
    return [each.ids for each in sequences], batch


def in_order(batch, values):
    """Values computed in the order of the batch, in the order of the caller's list."""
    result = torch.empty_like(values)
    result[batch.rows] = values
    return result


def document_passages(model, documents):
    return prepare_passages(
        model.tokenizer, as_documents(documents), limit=64, overflow=model.config.overflow
    )


def question_passages(model, questions):
    return prepare_questions(model.tokenizer, questions, limit=64, overflow="truncate")


def test_documents_become_the_same_tokens(reference_model, documents, numbers):
    ours, _ = packed(reference_model, document_passages(reference_model, documents))
    encode = VOCABULARY + M + 1
    assert ours == [their_tokens(row, encode) for row in numbers["doc_input_ids"]]


def test_questions_become_the_same_tokens(reference_model, expected, numbers):
    ours, _ = packed(reference_model, question_passages(reference_model, expected["questions"]))
    encode = VOCABULARY + M + 1
    assert ours == [their_tokens(row, encode) for row in numbers["query_input_ids"]]


def test_prompts_become_the_same_tokens(reference_model, expected, numbers):
    config = reference_model.config
    slots = memory_slots([config.memory_tokens] * 2, config.separator)
    for row, (question, answer) in enumerate(
        zip(expected["questions"], expected["answers"], strict=True)
    ):
        prompt = build_prompt(reference_model.tokenizer, config.prompt, slots, question, answer)
        assert prompt.ids == their_tokens(numbers["prompt_input_ids"][row], 1)
        labels = [i for i in numbers["labels"][row].tolist() if i != -100]
        assert prompt.ids[prompt.answer_start :] == labels


def test_memory(memory, numbers):
    torch.testing.assert_close(memory.flatten(0, 1), numbers["memory"], rtol=1e-4, atol=1e-4)


def test_query_vectors(reference_model, expected, numbers):
    ours = reference_model.encode_queries(expected["questions"]).flatten(1)
    torch.testing.assert_close(ours, numbers["query"], rtol=1e-4, atol=1e-4)


def test_ranking(reference_model, expected, memory, numbers):
    ranking = reference_model.rank(expected["questions"], memory, top_k=4)
    theirs, order = numbers["scores"].sort(descending=True)
    torch.testing.assert_close(ranking.scores, theirs, rtol=1e-4, atol=1e-6)
    assert torch.equal(ranking.indices, order)
    best = reference_model.rank(expected["questions"], memory)
    assert torch.equal(best.indices, numbers["topk"])


def test_answers_are_the_same_to_the_letter(reference_model, expected, memory, numbers):
    best = memory[torch.arange(3)[:, None], numbers["topk"]]
    ours = reference_model.generate(expected["questions"], best, max_new_tokens=24)
    assert ours == expected["generated"]


def test_whole_path_gives_the_same_answers(reference_model, expected):
    answers = reference_model.answer(
        expected["questions"], expected["documents"], max_new_tokens=24
    )
    assert [a.text for a in answers] == [text.strip() for text in expected["generated"]]


def test_answer_loss(reference_model, expected, memory, numbers):
    best = memory[torch.arange(3)[:, None], numbers["topk"]]
    loss = reference_model.answer_loss(expected["questions"], best, expected["answers"])
    torch.testing.assert_close(loss.detach()[None], numbers["loss"], rtol=1e-4, atol=0)
    assert loss.item() == pytest.approx(7.6048970222, rel=1e-5)


def test_alignment_loss(reference_model, documents, numbers):
    _, batch = packed(reference_model, document_passages(reference_model, documents))
    with torch.no_grad():
        hidden = reference_model.encode(batch, "compressor", memory_only=False)
    loss = memory_alignment_loss(hidden, batch.cu_seqlens, M)
    torch.testing.assert_close(loss[None], numbers["mse"], rtol=1e-4, atol=0)


def test_gradients_of_the_end_to_end_loss(reference_model, expected, memory):
    model = reference_model
    theirs = load_file(REFERENCE / "expected_gradients.safetensors")
    _, batch = packed(model, question_passages(model, expected["questions"]))
    model.adapters.freeze("query_reasoner", "generator")
    try:
        hidden = model.encode(batch, "query_reasoner")
        queries = in_order(batch, hidden[batch.memory_rows].unflatten(0, (3, M)))
        scores = cosine_scores(queries.flatten(1), memory.flatten(2))
        scores.retain_grad()
        selected, _ = select_topk(scores, memory, 2, temperature=0.02, mask="reference")
        model.answer_loss(expected["questions"], selected, expected["answers"]).backward()
        ours = {
            (name, key): parameter.grad.clone()
            for name in THEIR_ADAPTERS.values()
            for key, parameter in model.adapters.parameters(name).items()
        }
        assert all(p.grad is None for p in model.adapters.parameters("compressor").values())
    finally:
        model.adapters.freeze()
        model.zero_grad()
    compared = 0
    torch.testing.assert_close(scores.grad, theirs["scores"], rtol=1e-3, atol=1e-5)
    for name, value in theirs.items():
        for theirs_called, called in THEIR_ADAPTERS.items():
            if theirs_called in name:
                gradient = ours[called, name.replace(f".{theirs_called}", "")]
                assert value.abs().max() > 0
                error = (gradient - value).norm() / value.norm()
                assert error < 1e-3, f"{name}: relative error {error:.2e}"
                compared += 1
    assert compared == 8


@pytest.mark.parametrize("batch_size", [1, 2])
def test_answers_do_not_depend_on_the_batch(reference_model, expected, memory, numbers, batch_size):
    best = memory[torch.arange(3)[:, None], numbers["topk"]]
    ours = reference_model.generate(
        expected["questions"], best, max_new_tokens=24, batch_size=batch_size
    )
    assert ours == expected["generated"]
