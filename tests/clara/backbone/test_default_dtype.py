"""Results do not depend on the default dtype that a user's program has set in torch."""

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.backbone.default_dtype import float32_by_default
from clara.training.statistics import compression_sums

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32", top_k=2
)
TEXTS = ["The river runs north.", "Grain is traded for salt.", "Nobody knows it."]
QUESTIONS = ["Where is the river?", "Who trades salt?"]
DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def set_default():
    """`torch.set_default_dtype`, undone after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def tensors(model):
    """All parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def made_and_used(folder, dtype):
    """A new model, and everything that is computed with it, one step of SGD among it."""
    model = Clara.from_backbone(folder, CONFIG.replace(dtype=dtype))
    state = {name: value.detach().clone() for name, value in tensors(model).items()}
    compressed = model.compress(TEXTS)
    found = {
        "memory": compressed.memory,
        "queries": model.encode_queries(QUESTIONS),
        "ranked": model.rank(QUESTIONS, compressed).scores,
        "compression": torch.stack([*compression_sums(compressed).values()]),
        "merged": torch.tensor(model.merge_generator()),
    }
    answers = [a.text for a in model.answer(QUESTIONS, compressed, max_new_tokens=6)]
    answers += model.answer_from_text(QUESTIONS, [TEXTS[:1], TEXTS], max_new_tokens=6)
    trained = [*model.adapters.parameters("generator").values(), model.memory_tokens.separator]
    for parameter in trained:
        parameter.requires_grad_()
    optimizer = torch.optim.SGD(trained, lr=0.5)
    memory = compressed.memory[None].expand(2, -1, -1, -1)
    for step in range(2):
        found[f"loss {step}"] = loss = model.answer_loss(QUESTIONS, memory, ["North", "Nobody"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found |= {f"trained {i}": p.detach() for i, p in enumerate(trained)}
    return state, found, answers, model.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_and_what_it_computes(tiny_backbone, set_default, dtype):
    folder = tiny_backbone("llama")
    state, found, answers, fingerprint = made_and_used(folder, dtype)
    assert state["memory_tokens.memory"].dtype == torch.float32
    for other in DTYPES:
        set_default(other)
        again = made_and_used(folder, dtype)
        assert torch.get_default_dtype() == other
        for expected, got in ((state, again[0]), (found, again[1])):
            assert expected.keys() == got.keys()
            for name, value in expected.items():
                assert got[name].dtype == value.dtype, (other, name)
                assert torch.equal(got[name], value), (other, name)
        assert again[2:] == (answers, fingerprint)


@pytest.mark.parametrize("other", DTYPES)
def test_a_saved_model(tiny_model, tmp_path, set_default, other):
    tiny_model.save_pretrained(tmp_path / "model")
    set_default(other)
    loaded = Clara.from_pretrained(tmp_path / "model")
    own = tensors(tiny_model)
    for name, value in tensors(loaded).items():
        assert value.dtype == own[name].dtype, name
        assert torch.equal(value, own[name]), name
    loaded.save_pretrained(tmp_path / "again")
    for file in sorted((tmp_path / "model").rglob("*.safetensors")):
        again = tmp_path / "again" / file.relative_to(tmp_path / "model")
        assert again.read_bytes() == file.read_bytes(), file


def test_the_default_comes_back_after_an_error(set_default):
    set_default(torch.float16)

    def fail():
        with float32_by_default():
            raise ValueError(torch.get_default_dtype())

    with pytest.raises(ValueError, match="float32"):
        fail()
    assert torch.get_default_dtype() == torch.float16
