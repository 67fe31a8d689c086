"""copy.deepcopy, copy.copy, pickle and torch.save of models and of compressed documents."""

import copy
import pickle
import threading

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS

from ..random_adapters import draw_adapters

QUESTIONS = ["Where is the river?", "Who trades salt?"]
TEXTS = ["The river runs north of the town.", "Grain is traded for salt."]


@pytest.fixture
def model(tiny_backbone):
    config = ClaraConfig(
        compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
    )
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    draw_adapters(model, seed=3)
    return model


def results(model):
    documents = model.compress(TEXTS)
    return {
        "memory": documents.memory,
        "queries": model.encode_queries(QUESTIONS),
        "answers": [a.text for a in model.answer(QUESTIONS, documents, max_new_tokens=8)],
        "stream": "".join(model.stream(QUESTIONS[0], documents, max_new_tokens=8)),
        "text": model.answer_from_text(QUESTIONS, [TEXTS, TEXTS], max_new_tokens=8),
        "loss": model.answer_loss(QUESTIONS, [documents.memory] * 2, ["a", "b"]).detach(),
        "fingerprint": model.fingerprint,
    }


def same(first, second):
    return {
        name
        for name in first
        if (
            torch.equal(first[name], second[name])
            if isinstance(first[name], torch.Tensor)
            else first[name] == second[name]
        )
    }


# Deep copies


@pytest.mark.parametrize("merged", [False, True])
def test_a_deep_copy_computes_the_same(model, merged):
    if merged:
        assert model.merge_generator()
    before = results(model)
    other = copy.deepcopy(model)
    assert type(other) is Clara
    assert same(before, results(other)) == set(before)
    assert same(before, results(model)) == set(before)
    assert (other._merged is not None) is merged
    if merged:
        heads = {
            m._merged.backbone.get_output_embeddings().weight.data_ptr() for m in (model, other)
        }
        assert len(heads) == 2
        head = other.backbone.get_output_embeddings().weight
        assert other._merged.backbone.get_output_embeddings().weight is head


def test_a_deep_copy_shares_nothing(model):
    other = copy.deepcopy(model)
    pointers = [
        {t.data_ptr() for t in (*m.parameters(), *m.buffers()) if t.numel()} for m in (model, other)
    ]
    assert pointers[0].isdisjoint(pointers[1])
    own = {id(p) for p in other.parameters()}
    for name in ADAPTERS:
        assert {id(p) for p in other.adapters.parameters(name).values()} <= own
    modules = {id(m) for m in other.modules()}
    assert {id(layer) for layer in other.adapters._layers} <= modules
    assert other.adapters.lock is not model.adapters.lock
    assert other.tokenizer is not model.tokenizer
    assert other.prompt_prefixes is not model.prompt_prefixes


@pytest.mark.parametrize("part", ["adapters", "rows", "backbone"])
def test_what_changes_a_copy_leaves_the_original(model, part):
    """And the other way round."""
    before = results(model)
    for changed, kept in ((model, copy.deepcopy(model)), (copy.deepcopy(model), model)):
        saved = copy.deepcopy(changed.state_dict())
        with torch.no_grad():
            if part == "adapters":
                draw_adapters(changed, seed=5)
            elif part == "rows":
                changed.memory_tokens.memory.add_(1.0)
            else:
                changed.backbone.get_input_embeddings().weight.mul_(1.5)
        assert same(before, results(kept)) == set(before)
        assert "memory" not in same(before, results(changed))
        changed.load_state_dict(saved)


def test_a_copy_takes_its_own_turns(model):
    """While one thread holds the original's adapters, the copy computes with others."""
    other = copy.deepcopy(model)
    expected = other.compress(TEXTS).memory
    found = []
    with model.adapters.active("generator"):
        worker = threading.Thread(
            target=lambda: found.append(other.compress(TEXTS).memory), daemon=True
        )
        worker.start()
        worker.join(30)
        assert not other.adapters.held_here
        inside = copy.deepcopy(model)
    assert torch.equal(found[0], expected)
    assert all(layer._disable_adapters for layer in inside.adapters._layers)
    assert torch.equal(inside.compress(TEXTS).memory, expected)


def test_a_copy_trains_alone(model):
    model.adapters.freeze("generator")
    other = copy.deepcopy(model)
    names = {n for n, p in other.named_parameters() if p.requires_grad}
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    before = results(model)
    memory = [other.compress(TEXTS).memory] * 2
    optimizer = torch.optim.SGD(other.adapters.parameters("generator").values(), lr=0.5)
    other.enable_gradient_checkpointing()
    other.train()
    other.answer_loss(QUESTIONS, memory, ["here", "they"]).backward()
    optimizer.step()
    other.eval()
    assert all(p.grad is None for p in model.parameters())
    assert same(before, results(model)) == set(before)
    assert "loss" not in same(before, results(other))
    assert "memory" in same(before, results(other))


def test_a_copy_of_a_checkpointed_model_trains(model):
    model.enable_gradient_checkpointing()
    model.adapters.freeze("generator")
    memory = [model.compress(TEXTS).memory] * 2
    gradients = []
    for each in (model, copy.deepcopy(model)):
        each.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            each.answer_loss(QUESTIONS, memory, ["here", "they"]).backward()
        gradients.append([p.grad for p in each.adapters.parameters("generator").values()])
    assert all(map(torch.equal, *gradients))


def test_a_copy_is_saved_and_loaded(model, tmp_path):
    other = copy.deepcopy(model)
    other.save_pretrained(tmp_path / "copy")
    loaded = Clara.from_pretrained(tmp_path / "copy", dtype="float32")
    assert same(results(model), results(loaded)) == set(results(model))


# Shallow copies


def test_a_shallow_copy_shares_the_weights(model):
    other = copy.copy(model)
    expected = results(model)
    assert same(expected, results(other)) == set(expected)
    assert other.backbone is model.backbone
    draw_adapters(model, seed=5)
    changed = results(model)
    assert same(changed, results(other)) == set(changed)
    other.memory_tokens = copy.deepcopy(model.memory_tokens)
    assert model.memory_tokens is not other.memory_tokens


# Pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_model_is_not_pickled(model, protocol):
    with pytest.raises(TypeError, match=r"cannot be pickled.*save_pretrained\(folder\)") as caught:
        pickle.dumps(model, protocol)
    assert "\n" not in str(caught.value)


def test_a_model_is_not_saved_by_torch(model, tmp_path):
    with pytest.raises(TypeError, match=r"nor saved by torch\.save: write it with model\.save_"):
        torch.save(model, tmp_path / "model.pt")
    with pytest.raises(TypeError, match="save_pretrained"):
        torch.save({"model": model}, tmp_path / "model.pt")


def test_its_weights_are_saved_by_torch(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = copy.deepcopy(model)
    draw_adapters(other, seed=5)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert same(results(model), results(other)) == set(results(model))


# Compressed documents


def ways(folder):
    def by_torch(documents):
        torch.save(documents, folder / "documents.pt")
        return torch.load(folder / "documents.pt", weights_only=False)

    return {
        "pickle": lambda documents: pickle.loads(pickle.dumps(documents)),
        "torch.save": by_torch,
        "deepcopy": copy.deepcopy,
    }


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_compressed_documents(model, tmp_path, way):
    documents = model.compress(TEXTS)
    other = ways(tmp_path)[way](documents)
    assert torch.equal(other.memory, documents.memory)
    for name in ("ids", "document_ids", "token_counts", "texts", "titles", "fingerprint"):
        assert getattr(other, name) == getattr(documents, name)
    expected = model.answer(QUESTIONS, documents, max_new_tokens=4)
    found = model.answer(QUESTIONS, other, max_new_tokens=4)
    assert [a.text for a in found] == [a.text for a in expected]
    other.memory.zero_()
    other.ids[0] = "changed"
    assert documents.memory.any()
    assert documents.ids[0] != "changed"


def test_a_part_of_the_documents_is_a_small_file(model, tmp_path):
    documents = model.compress([f"Text number {i}." for i in range(40)])
    for name, part in (("all", documents), ("two", documents[:2])):
        torch.save(part, tmp_path / name)
    assert (tmp_path / "two").stat().st_size < (tmp_path / "all").stat().st_size / 4
