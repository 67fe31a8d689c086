"""Memory that an earlier release wrote: read, but not added to."""

import dataclasses

import pytest
import torch

from clara.index import MemoryIndex, MemoryIndexError
from clara.memory.documents import CompressedDocuments
from clara.memory.space import MemorySpace, check_shape
from clara.model.forward import ClaraCore
from clara.training.candidates import CandidateMemory

TEXTS = ["The harbour lies in the north.", "Salt is traded for grain.", "The mill burned down."]


@pytest.fixture
def model(reference_model, monkeypatch):
    """A model whose sampled fingerprint is not its fingerprint."""
    monkeypatch.setattr(
        ClaraCore, "sampled_fingerprint", property(lambda self: self.fingerprint[::-1])
    )
    return reference_model


def stored(model, path, fingerprint):
    """The texts in an index with a fingerprint."""
    index = MemoryIndex.create(
        path,
        fingerprint=fingerprint,
        memory_tokens=model.config.memory_tokens,
        hidden_size=model.hidden_size,
        dtype=model.dtype,
    )
    documents = model.compress(TEXTS)
    index.add(CompressedDocuments(**{**vars(documents), "fingerprint": fingerprint}))
    return index


def test_memory_of_an_earlier_release_answers_as_it_did(model, tmp_path):
    current = stored(model, tmp_path / "new", model.fingerprint)
    older = stored(model, tmp_path / "old", model.sampled_fingerprint)
    other = stored(model, tmp_path / "other", "0" * 64)
    questions = ["Where is the harbour?"]
    expected = model.answer(questions, current, max_new_tokens=3)[0]
    assert model.answer(questions, older, max_new_tokens=3)[0].documents == expected.documents
    documents = older.get(older.ids())
    assert documents.fingerprint == model.sampled_fingerprint
    assert torch.equal(
        model.rank(questions, documents).scores, model.rank(questions, model.compress(TEXTS)).scores
    )
    for source in (other, other.get(other.ids())):
        with pytest.raises(ValueError, match="by another model"):
            model.answer(questions, source, max_new_tokens=3)


def test_nothing_is_added_to_an_index_of_an_earlier_release(model, tmp_path):
    current = stored(model, tmp_path / "new", model.fingerprint)
    older = stored(model, tmp_path / "old", model.sampled_fingerprint)
    other = stored(model, tmp_path / "other", "0" * 64)
    model.memory_space.require_addable(current, "choose another")
    with pytest.raises(ValueError, match=r"choose another$"):
        model.memory_space.require_addable(other, "choose another")
    upgrade = f"'clara index upgrade --model M {older.path}'"
    with pytest.raises(ValueError, match=upgrade):
        model.memory_space.require_addable(older, "choose another", model_name="M")
    with pytest.raises(ValueError, match="clara index upgrade --model MODEL"):
        CandidateMemory(model, older.path)
    with pytest.raises(ValueError, match=r"another model .* choose another candidate_index"):
        CandidateMemory(model, other.path)
    with pytest.raises(ValueError, match="by another model"):
        older.add(model.compress(["More."]))
    assert len(older) == 3


def test_what_is_compared_and_what_to_do_are_named(model):
    space = model.memory_space
    space.require(model.compress(TEXTS), "it was written", "throw it away")
    other = dataclasses.replace(space, fingerprint="0" * 64)
    with pytest.raises(ValueError) as caught:
        space.require(other, "it was written", "throw it away")
    assert str(caught.value) == (
        f"it was written by another model (000000000000, this one is {model.fingerprint[:12]}); "
        "throw it away"
    )


SPACE = MemorySpace("a" * 64, 4, 48, torch.float32)


def test_spaces_are_equal_whatever_an_earlier_release_called_them():
    assert dataclasses.replace(SPACE, earlier_fingerprint=lambda: "b" * 64) == SPACE
    for change in (
        {"fingerprint": "b" * 64},
        {"memory_tokens": 8},
        {"hidden_size": 64},
        {"dtype": torch.float16},
    ):
        assert dataclasses.replace(SPACE, **change) != SPACE
    assert "earlier" not in repr(SPACE)


@pytest.mark.parametrize("earlier", [None, "b" * 64])
def test_the_earlier_fingerprint_is_asked_for_last(earlier):
    asked = []
    space = dataclasses.replace(SPACE, earlier_fingerprint=lambda: asked.append(1) or earlier)
    assert space.accepts("a" * 64)
    assert not asked
    assert space.accepts("b" * 64) is (earlier is not None)
    assert not space.accepts("c" * 64)
    assert len(asked) == 2
    assert not SPACE.accepts("b" * 64)


@pytest.mark.parametrize("earlier", [None, "b" * 64])
def test_memory_without_a_fingerprint_is_of_no_model(earlier):
    space = dataclasses.replace(SPACE, earlier_fingerprint=lambda: earlier)
    assert not space.accepts(None)
    with pytest.raises(TypeError, match="fingerprint must be a string, got None"):
        CompressedDocuments(torch.zeros(0, 4, 48), [], [], [], [], [], None)


def test_an_index_names_its_own_model(model, tmp_path):
    index = stored(model, tmp_path / "new", model.fingerprint)
    assert index.memory_space == model.memory_space
    documents = dataclasses.replace(model.compress(["More."]), fingerprint="0" * 64)
    with pytest.raises(MemoryIndexError) as caught:
        index.add(documents)
    assert str(caught.value) == (
        f"compressed was made by another model (000000000000, the index's is "
        f"{model.fingerprint[:12]}); compress the documents with the index's model"
    )


@pytest.mark.parametrize("shape", [(3, 4, 24), (3, 8, 48), (4, 48), (1, 3, 4, 48)])
def test_memory_of_another_shape_is_refused(shape):
    check_shape(torch.zeros(3, 4, 48), 4, 48, "memory")
    check_shape(torch.zeros(0, 4, 48), 4, 48, "memory")
    with pytest.raises(MemoryIndexError) as caught:
        check_shape(torch.zeros(shape), 4, 48, "memory", MemoryIndexError)
    assert str(caught.value) == f"memory must be [N, 4, 48], got {list(shape)}"


def test_tensors_need_no_fingerprint(model, monkeypatch):
    """It is made of all weights, in training again at each use."""
    memory = model.compress(TEXTS).memory

    def refused(self):
        pytest.fail("the fingerprint was read")

    monkeypatch.setattr(ClaraCore, "fingerprint", property(refused))
    question = ["Where is the harbour?"]
    assert model.answer_loss(question, [memory], ["north"]).isfinite()
    assert len(model.generate(question, [memory], max_new_tokens=1)) == 1
    assert model.rank(question, memory, top_k=3).indices.shape == (1, 3)
