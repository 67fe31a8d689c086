"""One model folder and one index on processors with bfloat16 and without."""

import pytest
import torch

from clara import Clara, ClaraConfig
from clara.backbone import processor
from clara.backbone.processor import ProcessorError
from clara.index import MemoryIndex

from ..random_adapters import draw_adapters

TEXTS = {
    "river": "The river runs north.",
    "grain": "Grain is traded for salt.",
    "mill": "Nobody knows the old mill.",
}
DOCUMENTS = [{"id": name, "contents": text} for name, text in TEXTS.items()]
ADDED = [{"id": "church", "contents": "A church stands by the road."}]
QUESTIONS = ["Where is the river?", "Who trades salt?"]


@pytest.fixture(scope="module")
def folder(tiny_backbone, tmp_path_factory):
    """A model that leaves its dtype to the processor."""
    settings = {"compression_rate": 16, "document_length": 64, "lora_rank": 4}
    config = ClaraConfig(dtype="auto", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(processor.VARIABLE, "float32")
        model = Clara.from_backbone(tiny_backbone("llama"), config, device="cpu")
    made = tmp_path_factory.mktemp("auto") / "model"
    draw_adapters(model, seed=3).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def models(folder):
    """The same model as each kind of processor loads it, by the name of its dtype."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(processor.VARIABLE, raising=False)
        for name, instructions in (("float32", []), ("bfloat16", ["AMX"])):
            patch.setattr(processor, "bfloat16_instructions", lambda found=instructions: found)
            made[name] = Clara.from_pretrained(folder, device="cpu")
    return made


def test_a_folder_keeps_the_word_and_each_machine_decides(folder, models):
    assert ClaraConfig.load(folder / "config.json").dtype == "auto"
    for name, model in models.items():
        assert model.config.dtype == "auto"
        assert model.dtype == getattr(torch, name)
        assert model.compress(DOCUMENTS).memory.dtype == model.dtype
    assert models["float32"].fingerprint == models["bfloat16"].fingerprint


def test_a_wrong_variable_stops_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(processor, "bfloat16_instructions", list)
    monkeypatch.setattr("clara.model.clara.load_backbone", None)
    monkeypatch.setenv(processor.VARIABLE, "bfloat16")
    with pytest.raises(ProcessorError, match="no instructions for it on this processor"):
        Clara.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("writer", "reader"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_an_index_of_the_other_dtype_is_searched_answered_from_and_added_to(
    models, tmp_path, writer, reader
):
    writer, reader = models[writer], models[reader]
    index = MemoryIndex.create(
        tmp_path / "index",
        fingerprint=writer.fingerprint,
        memory_tokens=writer.config.most_memory_tokens(),
        hidden_size=writer.hidden_size,
        dtype=writer.dtype,
        settings=writer.config.index_settings(),
    )
    index.add(writer.compress(DOCUMENTS))
    own = writer.retrieve(QUESTIONS, index, top_k=3)
    other = reader.retrieve(QUESTIONS, index, top_k=3)
    for one, two in zip(own, other, strict=True):
        scores = {each.id: each.score for each in one.documents}
        for each in two.documents:
            assert each.score == pytest.approx(scores[each.id], abs=0.02)
        assert {memory.dtype for memory in two.memory} == {writer.dtype}
    answers = reader.answer(QUESTIONS, index, top_k=2, rerank=3, max_new_tokens=4)
    assert [len(answer.documents) for answer in answers] == [2, 2]
    more = reader.compress(ADDED)
    index.add(more)
    stored = index.get(["church"]).memory
    assert stored.dtype == writer.dtype
    assert torch.equal(stored, more.memory.to(writer.dtype))
