"""Text shortened by LLMLingua-2, with a class of the same signature in place of the package's."""

import sys
import types

import pytest

from clara import Clara
from clara.data.records import Document
from clara.evaluation.errors import UnavailableError
from clara.evaluation.systems import lingua

from ...model.of_spans import spans_config


class PromptCompressor:
    """Keeps the first words of each line; as llmlingua 0.2.2 does, it cannot read a blank text."""

    def __init__(
        self,
        model_name="NousResearch/Llama-2-7b-hf",
        device_map="cuda",
        model_config={},  # noqa: B006
        open_api_config={},  # noqa: B006
        use_llmlingua2=False,
        llmlingua2_config={},  # noqa: B006
    ):
        assert (model_name, device_map, use_llmlingua2) == (lingua.MODEL, "cpu", True)
        assert model_config == {"trust_remote_code": False}

    def compress_prompt(self, context, instruction="", question="", rate=0.5, force_tokens=()):
        if not context.strip():
            raise IndexError("index -1 is out of bounds for axis 0 with size 0")
        assert force_tokens == ["\n"]
        lines = [line.split() for line in context.split("\n")]
        kept = "\n".join(" ".join(words[: round(rate * len(words))]) for words in lines)
        return {"compressed_prompt": kept, "rate": "50.0%"}


@pytest.fixture
def installed(monkeypatch):
    """A function that installs a class under the package's name."""
    lingua._compressor.cache_clear()

    def go(kind):
        module = types.ModuleType("llmlingua")
        module.PromptCompressor = kind
        monkeypatch.setitem(sys.modules, "llmlingua", module)

    yield go
    lingua._compressor.cache_clear()


def test_one_of_rate_tokens_is_left_of_each_text(installed):
    installed(PromptCompressor)
    texts = ["one two three four\nfive six seven eight", "salt is dear here"]
    assert lingua.shortened(texts, 2, "cpu") == ["one two\nfive six", "salt is"]
    assert lingua.shortened(texts, 4, "cpu") == ["one\nfive", "salt"]


@pytest.mark.parametrize("blank", ["", " ", "\n\n"])
def test_nothing_is_left_of_a_blank_text(installed, blank):
    installed(PromptCompressor)
    assert lingua.shortened([blank, "one two"], 2, "cpu") == ["", "one"]


def test_answers_are_those_of_the_shortened_text(installed, tiny_backbone):
    installed(PromptCompressor)
    model = Clara.from_backbone(tiny_backbone(), spans_config(), device="cpu")
    system = lingua.LinguaSystem(model, 2, max_new_tokens=6)
    assert (system.name, system.settings["shortened_by"]) == ("llmlingua2@2", lingua.MODEL)
    text = "Salt is traded for grain in all of the four towns."
    (answered,) = system.answer(["What is traded?"], [[Document("salt", text)]])
    (cut,) = lingua.shortened([text], 2, "cpu")
    assert [answered.text] == [
        each.strip()
        for each in model.answer_from_text(["What is traded?"], [[cut]], max_new_tokens=6)
    ]
    assert set(answered.timings_ms) == {"cut", "generate"}


def test_a_package_or_a_model_that_is_not_here(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(UnavailableError, match=r"^the package llmlingua is not installed$"):
        lingua.shortened(["Salt"], 2, "cpu")

    class Offline(PromptCompressor):
        def __init__(self, *arguments, **options):
            raise OSError("no connection\nto the hub")

    installed(Offline)
    with pytest.raises(UnavailableError, match=f"^cannot load {lingua.MODEL}: no connection to th"):
        lingua.shortened(["Salt"], 2, "cpu")
