"""The public methods as a whole: what they return, refuse, and leave untouched."""

import copy

import pytest
import torch

from clara import Clara, ClaraConfig, Document
from clara.text.packing import compressor_input, pack

from ..random_adapters import draw_adapters

QUESTIONS = ["Where is the river?", "Who trades salt?"]
TEXTS = ["The river runs north of the town.", "Grain is traded for salt.", "Nobody knows it."]
LONG = "The first sentence speaks of rivers and towns. " * 12


@pytest.fixture(scope="module")
def model(reference_model):
    return reference_model


@pytest.fixture
def own_model(tiny_backbone):
    """A model that a test may change, with adapters that do something."""
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
    )
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    return draw_adapters(model, seed=3)


# Nothing changes the model


def snapshot(model):
    layers = model.adapters._layers
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {n for n, p in model.named_parameters() if p.grad is not None},
        "training": {name: module.training for name, module in model.named_modules()},
        "active": [(list(layer._active_adapter), layer._disable_adapters) for layer in layers],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "config": copy.deepcopy(model.config),
        "backbone": model.backbone.config.to_dict(),
        "generation": model.backbone.generation_config.to_dict(),
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    for name, value in before.pop("state").items():
        assert torch.equal(value, after["state"][name]), name
    assert torch.equal(before.pop("random"), after["random"])
    for name, value in before.items():
        assert value == after[name], name


CALLS = {
    "compress": lambda model, memory: model.compress([*TEXTS, LONG], batch_tokens=100),
    "encode_queries": lambda model, memory: model.encode_queries(QUESTIONS),
    "rank": lambda model, memory: model.rank(QUESTIONS, TEXTS, top_k=1),
    "generate": lambda model, memory: model.generate(
        QUESTIONS, [memory, memory[:1]], max_new_tokens=4
    ),
    "stream": lambda model, memory: list(model.stream(QUESTIONS[0], memory, max_new_tokens=4)),
    "answer": lambda model, memory: model.answer(QUESTIONS, TEXTS, top_k=1, max_new_tokens=4),
    "answer_from_text": lambda model, memory: model.answer_from_text(
        QUESTIONS, [TEXTS, TEXTS], max_new_tokens=4
    ),
    "logit_lens": lambda model, memory: model.logit_lens(memory, top=5),
    "fingerprint": lambda model, memory: model.fingerprint,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("state", ["evaluation", "training", "mixed"])
def test_nothing_changes_the_model(own_model, name, state):
    memory = own_model.compress(TEXTS).memory
    expected = CALLS[name](own_model, memory)
    if state != "evaluation":
        own_model.train()
        own_model.adapters.freeze("query_reasoner", "generator")
    if state == "mixed":
        own_model.backbone.base_model.layers[0].eval()
    before = snapshot(own_model)
    got = CALLS[name](own_model, memory)
    assert_unchanged(own_model, before)
    # Dropout is off in public methods: training mode gives what evaluation mode gave.
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
        assert not got.requires_grad
    elif name == "compress":
        assert torch.equal(got.memory, expected.memory)
        assert not got.memory.requires_grad
    elif name == "rank":
        assert torch.equal(got.scores, expected.scores)
    elif name == "answer":
        assert [a.text for a in got] == [a.text for a in expected]
        assert [a.documents for a in got] == [a.documents for a in expected]
    else:
        assert got == expected


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"logit_lens", "fingerprint"}))
@pytest.mark.parametrize("training", [False, True])
def test_an_exception_changes_nothing_either(own_model, name, training):
    memory = own_model.compress(TEXTS).memory
    own_model.train(training)

    def fail(*arguments):
        raise RuntimeError("in the middle of it")

    handle = own_model.backbone.base_model.layers[1].mlp.register_forward_hook(fail)
    before = snapshot(own_model)
    with pytest.raises(RuntimeError, match="in the middle of it"):
        CALLS[name](own_model, memory)
    assert_unchanged(own_model, before)
    assert own_model.adapters.lock.acquire(blocking=False)
    own_model.adapters.lock.release()
    handle.remove()
    own_model.eval()
    assert torch.equal(own_model.compress(TEXTS).memory, memory)


def test_dropout_is_on_in_what_training_uses(own_model):
    # Otherwise the comparisons of training and evaluation mode above would say nothing.
    memory = own_model.compress(TEXTS).memory[None]
    expected = own_model.answer_loss(QUESTIONS[:1], memory, ["salt"])
    own_model.train()
    assert own_model.answer_loss(QUESTIONS[:1], memory, ["salt"]) != expected


def test_top_k_of_one_call_does_not_stay(model):
    default = model.answer(QUESTIONS, TEXTS, max_new_tokens=4)
    assert [len(a.documents) for a in default] == [model.config.top_k] * 2
    assert len(model.answer(QUESTIONS, TEXTS, top_k=1, max_new_tokens=4)[0].documents) == 1
    assert model.rank(QUESTIONS, TEXTS, top_k=3).indices.shape == (2, 3)
    again = model.answer(QUESTIONS, TEXTS, max_new_tokens=4)
    assert [a.documents for a in again] == [a.documents for a in default]
    assert model.rank(QUESTIONS, TEXTS).indices.shape == (2, 2)


def test_building_a_model_leaves_the_random_state_alone(tiny_backbone):
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8)
    before = torch.get_rng_state()
    first = Clara.from_backbone(tiny_backbone("llama"), config, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = Clara.from_backbone(tiny_backbone("llama"), config, seed=1)
    other = Clara.from_backbone(tiny_backbone("llama"), config, seed=2)
    assert again.fingerprint == first.fingerprint
    assert other.fingerprint != first.fingerprint


# A new model


def test_untrained_adapters_compute_what_the_backbone_computes(tiny_backbone):
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8)
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    batch = next(
        pack(
            [compressor_input([50, 60, 70], bos=1, eos=2, n_memory=4)],
            batch_tokens=100,
            device=model.device,
        )
    )
    rows = model.memory_tokens.slot_rows(1)
    with torch.no_grad():
        bare = model.forward_packed(batch, rows, None)
        for name in ("compressor", "query_reasoner", "generator"):
            assert torch.equal(model.forward_packed(batch, rows, name), bare)
    rows = model.memory_tokens.memory
    embeddings = model.backbone.get_input_embeddings().weight
    assert 0.5 < (rows.std() / embeddings.std()).item() < 1.5
    assert len(rows.unique(dim=0)) == 4


def test_a_shared_memory_token(tiny_backbone):
    config = ClaraConfig(
        compression_rate=16,
        document_length=64,
        lora_rank=4,
        lora_alpha=8,
        distinct_memory_tokens=False,
        separator=False,
    )
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    assert model.memory_tokens.memory.shape == (1, 48)
    compressed = model.compress(TEXTS)
    assert compressed.memory.shape == (3, 4, 48)
    assert (compressed.memory[:, 0] - compressed.memory[:, 3]).abs().max() > 1e-3
    with_documents = model.prompt_tokens("Where?", 3) - model.prompt_tokens("Where?", 0)
    assert with_documents == 12
    assert model.generate(["Where?"], [compressed], max_new_tokens=4)


def test_documents_too_long_for_the_backbone(tiny_backbone):
    config = ClaraConfig(document_length=2048, compression_rate=16, lora_rank=4, lora_alpha=8)
    with pytest.raises(ValueError, match="do not fit the backbone's max_position_embeddings"):
        Clara.from_backbone(tiny_backbone("llama"), config)


# Compression from end to end


def test_documents_in_every_form(model):
    documents = [
        "The river is long.",
        Document(id="b", text="A town.", title="Town"),
        {"id": "c", "contents": "Salt for grain."},
        {"id": 7, "contents": "The last one.", "title": "Last", "other": 1},
        {"contents": "No name."},
    ]
    compressed = model.compress(iter(documents))
    assert compressed.ids == compressed.document_ids == ["0", "b", "c", "7", "4"]
    assert compressed.titles == [None, "Town", None, "Last", None]
    assert compressed.texts[2] == "Salt for grain."
    assert compressed.fingerprint == model.fingerprint
    assert compressed.memory.dtype == torch.float32
    tokenizer = model.tokenizer.tokenizer
    counts = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in compressed.texts]
    assert compressed.token_counts == counts
    assert compressed.effective_compression == pytest.approx(sum(counts) / (5 * 4))


def test_titles_are_not_read(model):
    plain = model.compress([{"id": "a", "contents": "A town."}])
    titled = model.compress([{"id": "b", "contents": "A town.", "title": "Other"}])
    assert torch.equal(plain.memory, titled.memory)


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_document_is_named(model, text):
    with pytest.raises(ValueError, match="document 'atlas' is empty"):
        model.compress(["fine", {"id": "atlas", "contents": text}])


def test_no_documents(model):
    assert model.compress([]).memory.shape == (0, 4, 48)


def test_chunks(model):
    compressed = model.compress(
        [{"id": "long", "contents": LONG, "title": "T"}, "short"], overflow="chunk"
    )
    assert len(compressed) >= 3
    chunks = len(compressed) - 1
    assert compressed.ids == [*(f"long#{i}" for i in range(chunks)), "1"]
    assert compressed.document_ids == ["long"] * chunks + ["1"]
    assert compressed.titles == ["T"] * chunks + [None]
    assert "".join(compressed.texts[:-1]) == LONG
    assert max(compressed.token_counts) <= 64
    tokenizer = model.tokenizer.tokenizer
    total = len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
    assert sum(compressed.token_counts[:-1]) == total


def test_truncation_reads_the_beginning_only(model):
    compressed = model.compress([LONG], overflow="truncate")
    assert compressed.ids == ["0"]
    (text,) = compressed.texts
    assert LONG.startswith(text)
    assert len(text) < len(LONG)
    longer = model.compress([LONG + " and more"], overflow="truncate")
    assert torch.equal(longer.memory, compressed.memory)
    changed = model.compress(["Another" + LONG], overflow="truncate")
    assert not torch.equal(changed.memory, compressed.memory)


def test_overflow_as_an_error(model):
    tokens = len(model.tokenizer.tokenizer(LONG, add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match=f"document 'big' has {tokens} tokens, the limit is 64"):
        model.compress([{"id": "big", "contents": LONG}], overflow="error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overflow": "drop"}, "overflow must be one of chunk, truncate, error; got 'drop'"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_compress(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.compress(["x"], **arguments)


def test_progress_is_reported_row_by_row(model, capsys):
    steps = []
    model.compress([*TEXTS, LONG], batch_tokens=1, overflow="chunk", on_progress=steps.append)
    assert len(steps) > 4
    assert sum(steps) == len(model.compress([*TEXTS, LONG], overflow="chunk"))
    model.compress(TEXTS, show_progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# Questions


def test_questions_refused(own_model):
    with pytest.raises(ValueError, match=r"questions\[1\] is empty"):
        own_model.encode_queries(["fine", " "])
    with pytest.raises(ValueError, match=r"'question 0' has .* tokens, the limit is 64"):
        own_model.encode_queries([LONG])
    with pytest.raises(TypeError, match="list of strings"):
        own_model.encode_queries("one question")


# Logit lens


def test_logit_lens_shows_the_words_of_an_output_row(model):
    head = model.backbone.get_output_embeddings().weight.detach()
    words = {i: model.tokenizer.decode([i]).strip() for i in range(len(head))}
    # A row of the output head points most to a word whose row is longest in its direction.
    memory = head[[60, 300, 401, 599]]
    best = (memory @ head.T).argmax(-1).tolist()
    lens = model.logit_lens(memory, top=1)
    for token, found in zip(best, lens, strict=True):
        word = words[token]
        assert found == ([word] if any(c.isalnum() for c in word) else [])


def test_logit_lens_nests_like_its_argument(model):
    questions = model.encode_queries(QUESTIONS)
    lens = model.logit_lens(questions, top=50)
    assert [len(each) for each in lens] == [4, 4]
    for row in range(2):
        assert lens[row] == model.logit_lens(questions[row], top=50)
    every = [word for each in lens for words in each for word in words]
    assert every
    assert all(any(c.isalnum() for c in word) and word == word.strip() for word in every)
    assert all(len(words) <= 50 for each in lens for words in each)
    assert model.logit_lens(questions, top=100_000)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        model.logit_lens(questions, top=0)


# Trained or not


def test_a_new_model_is_not_trained(tiny_backbone, tmp_path):
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, dtype="float32")
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    assert not model.is_trained
    model.save_pretrained(tmp_path / "new")
    assert not Clara.from_pretrained(tmp_path / "new", dtype="float32").is_trained


@pytest.mark.parametrize("name", ["compressor", "query_reasoner", "generator"])
def test_a_model_with_one_adapter_that_changes_something_is_trained(tiny_backbone, name):
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=4, dtype="float32")
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    assert not model.is_trained
    key = [key for key in model.adapters.parameters(name) if "lora_B" in key][-1]
    weight = model.adapters.parameters(name)[key]
    with torch.no_grad():
        weight[-1, -1] = 1e-6
    assert model.is_trained
    with torch.no_grad():
        weight.zero_()
    assert not model.is_trained


def test_whether_a_model_is_trained_is_looked_up_once(own_model, monkeypatch):
    calls = []
    look = own_model.adapters.change_anything
    monkeypatch.setattr(own_model.adapters, "change_anything", lambda: calls.append(1) or look())
    assert own_model.is_trained
    assert own_model.is_trained
    assert len(calls) == 1
    own_model.train().eval()
    assert own_model.is_trained
    assert len(calls) == 2
