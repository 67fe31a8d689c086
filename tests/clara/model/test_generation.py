import dataclasses
import threading

import pytest
import torch
from transformers import GenerationConfig

from clara.model import generation

QUESTIONS = ["Where is it?", "What is the name of the longest river of the country?", "Who?"]
TEXTS = ["The river is long.", "A town lies at the river.", "Salt is traded for grain."]


@pytest.fixture(scope="module")
def model(reference_model):
    return reference_model


@pytest.fixture(scope="module")
def memory(model):
    return model.compress(TEXTS).memory


@pytest.fixture(scope="module")
def each(memory):
    """Memory of three questions: all documents, one, none."""
    return [memory, memory[1:2], memory[:0]]


# One call


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_do_not_change_answers(model, each, batch_size):
    alone = [
        model.generate([question], [part], max_new_tokens=16)[0]
        for question, part in zip(QUESTIONS, each, strict=True)
    ]
    together = model.generate(QUESTIONS, each, max_new_tokens=16, batch_size=batch_size)
    assert together == alone
    assert len(set(together)) == 3


def test_answers_come_back_in_the_given_order(model, each):
    forward = model.generate(QUESTIONS, each, max_new_tokens=8, batch_size=2)
    backward = model.generate(QUESTIONS[::-1], each[::-1], max_new_tokens=8, batch_size=2)
    assert backward == forward[::-1]


def test_answers_depend_on_the_memory_and_its_order(model, memory):
    first = model.generate(QUESTIONS[:1], [memory], max_new_tokens=16)
    assert model.generate(QUESTIONS[:1], [memory.flip(0)], max_new_tokens=16) != first
    assert model.generate(QUESTIONS[:1], [memory[:0]], max_new_tokens=16) != first


def test_tensor_list_and_documents_are_the_same_memory(model, memory):
    compressed = model.compress(TEXTS)
    expected = model.generate(QUESTIONS[:2], [memory[:2], memory[1:]], max_new_tokens=8)
    stacked = torch.stack([memory[:2], memory[1:]])
    assert model.generate(QUESTIONS[:2], stacked, max_new_tokens=8) == expected
    documents = [compressed[:2], compressed[1:]]
    assert model.generate(QUESTIONS[:2], documents, max_new_tokens=8) == expected


def test_memory_of_another_dtype_is_converted(model, memory):
    low = memory.bfloat16()
    expected = model.generate(QUESTIONS[:1], [low.float()], max_new_tokens=8)
    assert model.generate(QUESTIONS[:1], [low], max_new_tokens=8) == expected


def test_no_questions_give_no_answers(model):
    assert model.generate([], []) == []


def test_an_answer_stops_at_the_end_token(model, each):
    """Also in a batch in which another answer goes on."""
    chosen = []

    def record(module, arguments, logits):
        chosen.append(logits[0, -1].argmax().item())

    handle = model.backbone.get_output_embeddings().register_forward_hook(record)
    whole = model.generate(QUESTIONS[:1], each[:1], max_new_tokens=16)[0]
    handle.remove()
    settings = GenerationConfig(do_sample=False, eos_token_id=[2, chosen[5]], max_new_tokens=16)
    answers = model.generate(QUESTIONS, each, generation_config=settings)
    assert answers[0] == model.tokenizer.decode(chosen[: chosen.index(chosen[5]) + 1])
    assert whole.startswith(answers[0])
    assert len(answers[0]) < len(whole)
    for row in (1, 2):
        alone = model.generate([QUESTIONS[row]], [each[row]], generation_config=settings)
        assert answers[row] == alone[0]


# Settings


def test_greedy_is_the_default_and_repeats(model, each):
    greedy = GenerationConfig(do_sample=False, max_new_tokens=16)
    first = model.generate(QUESTIONS, each, max_new_tokens=16)
    assert model.generate(QUESTIONS, each, max_new_tokens=16) == first
    assert model.generate(QUESTIONS, each, generation_config=greedy) == first


def test_sampling_follows_the_seed(model, each):
    settings = GenerationConfig(do_sample=True, temperature=1.5, max_new_tokens=16)

    def sample(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model.generate(QUESTIONS, each, generation_config=settings)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1) != model.generate(QUESTIONS, each, max_new_tokens=16)


def test_the_callers_settings_are_not_modified(model, each):
    settings = GenerationConfig(do_sample=False, return_dict_in_generate=True)
    before = settings.to_dict()
    model.generate(QUESTIONS, each, generation_config=settings, max_new_tokens=4)
    list(model.stream(QUESTIONS[0], each[0], generation_config=settings, max_new_tokens=4))
    assert settings.to_dict() == before


def test_max_new_tokens_wins_over_the_settings(model, memory):
    settings = GenerationConfig(do_sample=False, max_new_tokens=3)
    short = model.generate(QUESTIONS[:1], [memory], generation_config=settings)
    longer = model.generate(QUESTIONS[:1], [memory], generation_config=settings, max_new_tokens=9)
    assert short == model.generate(QUESTIONS[:1], [memory], max_new_tokens=3)
    assert longer == model.generate(QUESTIONS[:1], [memory], max_new_tokens=9)
    assert short != longer


def test_beams_give_one_answer_per_question(model, each):
    settings = GenerationConfig(num_beams=3, max_new_tokens=8)
    answers = model.generate(QUESTIONS, each, generation_config=settings)
    assert len(answers) == 3
    alone = model.generate(QUESTIONS[:1], each[:1], generation_config=settings)
    assert answers[:1] == alone


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
            "num_return_sequences must be 1, got 2",
        ),
    ],
)
def test_bad_arguments(model, each, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, each, **arguments)


@pytest.mark.parametrize(
    "shape", [(1, 2, 8, 48), (1, 2, 2, 48), (1, 4, 48), (1, 2, 4, 24), (1, 2, 4, 96)]
)
def test_memory_of_another_shape_is_refused(model, shape):
    calls = [
        lambda memory: model.generate(["Where?"], memory),
        lambda memory: model.answer_loss(["Where?"], memory, ["there"]),
        lambda memory: model.stream("Where?", memory[0]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"memory of question 0 must be \[N, 4, 48\], got"):
            call(torch.randn(shape))


def test_another_number_of_memories_is_refused(model, memory):
    with pytest.raises(ValueError, match="given for 1 questions, there are 2"):
        model.generate(QUESTIONS[:2], [memory])


def test_memory_of_another_model_is_refused(model):
    foreign = dataclasses.replace(model.compress(TEXTS), fingerprint="0" * 64)
    with pytest.raises(ValueError, match="compressed by another model"):
        model.generate(QUESTIONS[:1], [foreign])


def test_a_single_question_is_no_list(model, memory):
    with pytest.raises(TypeError, match="list of strings"):
        model.generate("ab", [memory, memory])


def test_budget(model, each):
    lengths = [
        model.prompt_tokens(question, len(part))
        for question, part in zip(QUESTIONS, each, strict=True)
    ]
    longest = max(lengths)
    row = lengths.index(longest)
    model.generate(QUESTIONS, each, max_new_tokens=2, max_prompt_tokens=longest)
    message = (
        rf"prompt of question {row} has {longest} tokens, the budget is {longest - 1} "
        r"\(max_prompt_tokens\)"
    )
    with pytest.raises(ValueError, match=message):
        model.generate(QUESTIONS, each, max_new_tokens=2, max_prompt_tokens=longest - 1)
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        model.stream(QUESTIONS[row], each[row], max_prompt_tokens=longest - 1)


def test_positions_of_the_backbone_are_a_budget(model, memory):
    window = model.backbone.config.max_position_embeddings
    many = memory.repeat(window // 15, 1, 1)[: window // 5]
    with pytest.raises(ValueError, match=f"backbone's {window} positions less 128 new tokens"):
        model.generate(["Where?"], [many])
    tokens = model.prompt_tokens("Where?", 3)
    with pytest.raises(ValueError, match=f"budget is {tokens - 1} "):
        model.generate(["Where?"], [memory], max_new_tokens=window - tokens + 1)
    model.answer_loss(["Where?"], [memory], ["here"])


# Streams


def test_stream_concatenates_to_the_answer(model, each):
    for question, part in zip(QUESTIONS, each, strict=True):
        pieces = list(model.stream(question, part, max_new_tokens=24))
        assert "".join(pieces) == model.generate([question], [part], max_new_tokens=24)[0]
        assert all(pieces)
        assert len(pieces) > 1


def test_stream_of_documents(model):
    compressed = model.compress(TEXTS)
    pieces = model.stream(QUESTIONS[0], compressed, max_new_tokens=8)
    assert "".join(pieces) == model.generate([QUESTIONS[0]], [compressed], max_new_tokens=8)[0]


def in_thread(call, seconds=30):
    """The result of `call` in another thread; fails instead of hanging."""
    results = []
    worker = threading.Thread(target=lambda: results.append(call()), daemon=True)
    worker.start()
    worker.join(seconds)
    assert results, "the other thread hangs or failed"
    return results[0]


def test_an_error_before_generation_reaches_the_reader_too(model, memory, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no criteria")

    monkeypatch.setattr(generation, "StopWhen", fail)

    def read():
        with pytest.raises(RuntimeError, match="no criteria"):
            list(model.stream(QUESTIONS[0], memory, max_new_tokens=2))
        return True

    assert in_thread(read)


def test_closing_a_stream_stops_it_and_frees_the_model(model, memory):
    expected = model.compress(TEXTS).memory
    forwards = []
    head = model.backbone.get_output_embeddings()
    handle = head.register_forward_hook(lambda *arguments: forwards.append(1))
    pieces = model.stream(QUESTIONS[0], memory, max_new_tokens=1500)
    next(pieces)
    pieces.close()
    handle.remove()
    assert len(forwards) < 750
    assert not [t for t in threading.enumerate() if t.name.endswith("(work)")]
    assert model.adapters.lock.acquire(blocking=False)
    model.adapters.lock.release()
    assert torch.equal(in_thread(lambda: model.compress(TEXTS).memory), expected)


def test_a_forgotten_stream_does_not_hang_others(model, memory):
    expected = model.compress(TEXTS).memory
    pieces = model.stream(QUESTIONS[0], memory, max_new_tokens=64)
    next(pieces)
    # Held but never read to its end.
    assert torch.equal(in_thread(lambda: model.compress(TEXTS).memory), expected)
    assert torch.equal(model.compress(TEXTS).memory, expected)
    pieces.close()


def test_a_stream_that_was_never_started_holds_nothing(model, memory):
    pieces = model.stream(QUESTIONS[0], memory)
    assert in_thread(lambda: model.encode_queries(QUESTIONS)).shape == (3, 4, 48)
    pieces.close()


def test_an_error_in_a_stream_reaches_the_reader(model, memory):
    settings = GenerationConfig(num_beams=2)
    with pytest.raises(ValueError, match="beam search"):
        list(model.stream(QUESTIONS[0], memory, generation_config=settings))
    with pytest.raises(ValueError, match="beam search"):  # before the prompt is looked at
        model.stream(QUESTIONS[0], memory, generation_config=settings, max_prompt_tokens=1)

    def fail(*arguments, **keywords):
        raise RuntimeError("layer on fire")

    handle = model.backbone.get_output_embeddings().register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="layer on fire"):
            list(model.stream(QUESTIONS[0], memory))
    finally:
        handle.remove()
    text = "".join(model.stream(QUESTIONS[0], memory, max_new_tokens=4))
    assert text == model.generate(QUESTIONS[:1], [memory], max_new_tokens=4)[0]


def test_an_error_after_some_pieces_reaches_the_reader(model, memory):
    calls = []

    def fail_later(*arguments, **keywords):
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("too late")

    handle = model.backbone.get_output_embeddings().register_forward_hook(fail_later)
    seen = []
    try:
        with pytest.raises(RuntimeError, match="too late"):
            seen.extend(model.stream(QUESTIONS[0], memory))
    finally:
        handle.remove()
    assert model.adapters.lock.acquire(blocking=False)
    model.adapters.lock.release()


# The text baseline


def test_answer_from_text_is_the_bare_backbone(model):
    texts = [["The river is long.", "Salt."], ["A town."]]
    answers = model.answer_from_text(QUESTIONS[:2], texts, max_new_tokens=8)
    tokenizer = model.tokenizer.tokenizer
    for question, documents, answer in zip(QUESTIONS[:2], texts, answers, strict=True):
        user = model.config.prompt.user
        turns = [
            {"role": "system", "content": model.config.prompt.system},
            {
                "role": "user",
                "content": user.format(memory="\n\n".join(documents), question=question),
            },
        ]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        assert ids.shape[1] == model.text_prompt_tokens(question, documents)
        with torch.no_grad(), model.adapters.active(None):
            output = model.backbone.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=2)
        assert answer == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_answer_from_text_needs_texts_for_each_question(model):
    with pytest.raises(ValueError, match="given for 1 questions, there are 2"):
        model.answer_from_text(QUESTIONS[:2], [["one"]])


def test_a_stream_that_could_only_wait_for_itself_is_refused(tiny_model):
    memory = tiny_model.compress(["a document"])
    with (
        tiny_model.adapters.active("compressor"),
        pytest.raises(RuntimeError, match="cannot stream while this thread holds"),
    ):
        next(tiny_model.stream("a question", memory, max_new_tokens=2))
