import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clara import Clara, ClaraConfig

from ..random_adapters import draw_adapters

TEXTS = [" ".join(["salt and grain from the river"] * n) for n in (1, 4, 2, 6, 3)]
QUESTIONS = ["Where is the river?", "Who trades salt?", "Grain?"]


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Adapters far apart: a result of the wrong one is a wrong result."""
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
    )
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    return draw_adapters(model, seed=5, std=0.2)


@pytest.fixture(params=["adapters", "merged generator", "training mode"])
def shared(request, model):
    if request.param == "merged generator":
        assert model.merge_generator()
    model.train(request.param == "training mode")
    yield model
    model._merged = None
    model.eval()


def test_threads_get_what_serial_calls_get(shared):
    memory = shared.compress(TEXTS).memory
    calls = {
        "compress": lambda: shared.compress(TEXTS, batch_tokens=40).memory,
        "questions": lambda: shared.encode_queries(QUESTIONS),
        "generate": lambda: shared.generate(
            QUESTIONS, [memory, memory[:2], memory[:0]], max_new_tokens=12, batch_size=2
        ),
        "stream": lambda: list(shared.stream(QUESTIONS[0], memory, max_new_tokens=12)),
        "text": lambda: shared.answer_from_text(QUESTIONS[:1], [TEXTS[:2]], max_new_tokens=12),
        "answer": lambda: [
            (a.text, a.documents)
            for a in shared.answer(QUESTIONS, TEXTS, top_k=2, max_new_tokens=6)
        ],
    }
    serial = {name: call() for name, call in calls.items()}
    training = shared.training
    start = threading.Barrier(4)

    def work(offset):
        start.wait(timeout=300)
        order = itertools.islice(itertools.cycle(calls), offset, offset + 2 * len(calls))
        return [(name, calls[name]()) for name in order]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4), timeout=300))
    for name, result in itertools.chain.from_iterable(results):
        if isinstance(result, torch.Tensor):
            assert torch.equal(result, serial[name]), name
        else:
            assert result == serial[name], name
    assert shared.training == training
    assert all(m.training == training for m in shared.adapters._layers)


def test_an_exception_in_one_thread_does_not_disturb_others(model):
    expected = model.compress(TEXTS).memory

    def work(number):
        if number % 2:
            with pytest.raises(ValueError, match="empty"):
                model.compress([*TEXTS, ""])
            with pytest.raises(ValueError, match="budget"):
                model.generate(QUESTIONS[:1], expected[None], max_prompt_tokens=3)
            return None
        return model.compress(TEXTS).memory

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12), timeout=300))
    assert all(torch.equal(result, expected) for result in results[::2])


def test_a_reader_may_use_the_model_between_pieces(model):
    """Reading a stream and compressing in turn does not wait for itself."""
    memory = model.compress(TEXTS).memory
    expected = model.generate(QUESTIONS[:1], [memory], max_new_tokens=24)[0]
    queries = model.encode_queries(QUESTIONS)
    finished = []

    def work():
        pieces = []
        for piece in model.stream(QUESTIONS[0], memory, max_new_tokens=24):
            pieces.append(piece)
            assert torch.equal(model.encode_queries(QUESTIONS), queries)
        finished.append("".join(pieces))

    reader = threading.Thread(target=work, daemon=True)
    reader.start()
    reader.join(60)
    assert finished == [expected]
