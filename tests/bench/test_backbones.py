"""Random backbones of published shapes, and plain models that share a `Clara`'s weights."""

from functools import partial

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from bench import backbones
from bench.baselines.reference_answering import ReferenceAnswering
from bench.baselines.reference_way import ReferenceWay
from bench.baselines.text_rag import TextRag
from bench.end_to_end.ways import distance, last_logits
from clara.data.factbook import FactbookError

CPU = torch.device("cpu")
TEXTS = ["river town grain salt", "bridge mill harbour", "council road winter field"]


@pytest.fixture(scope="module")
def backbone():
    return backbones.load("random:tiny", CPU)


@pytest.fixture(scope="module")
def model(backbone):
    return backbone.clara(16, document_length=128)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def ids():
    return torch.randint(3, 400, (2, 37), generator=torch.Generator().manual_seed(3))


def places(model):
    return {
        name.replace(".base_layer.", "."): parameter.data_ptr()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_plain_backbone_shares_all_weights_and_computes_the_same(quantization, ids):
    if quantization:
        pytest.importorskip("bitsandbytes")
    loaded = backbones.load("random:tiny", CPU, quantization=quantization)
    model = loaded.clara(16, document_length=128)
    plain = backbones.shared(model.backbone)
    assert places(plain) == places(model.backbone) == places(loaded.model)
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
    assert plain.config._attn_implementation == "sdpa"
    assert model.backbone.config._attn_implementation == "clara_sdpa"
    with model.adapters.active(None):
        bare = logits(model.backbone, ids)
    with model.adapters.active("generator"):
        adapted = logits(model.backbone, ids)
    assert torch.equal(logits(plain, ids), bare)
    assert distance(adapted, bare) > 0.1
    for state in (vars(m).get("quant_state") for m in plain.modules()):
        # NF4's scales are no parameters; they must not be there twice either.
        assert state is None or any(state is vars(m).get("quant_state") for m in _bases(model))


def _bases(model):
    return [m.get_base_layer() for m in model.backbone.modules() if isinstance(m, BaseTunerLayer)]


def test_baselines_on_shared_weights_leave_them_alone(model, ids):
    with model.adapters.active("generator"):
        before = logits(model.backbone, ids)
    weights = [p.clone() for p in model.backbone.parameters()]
    memory = model.compress(TEXTS).memory
    for baseline in (ReferenceWay, ReferenceAnswering):
        theirs = baseline(model, backbone=backbones.shared(model.backbone)).compress(TEXTS)
        assert distance(memory, theirs) < 1e-5
    with model.adapters.active("generator"):
        assert torch.equal(logits(model.backbone, ids), before)
    for now, then in zip(model.backbone.parameters(), weights, strict=True):
        assert torch.equal(now, then)
    assert torch.equal(model.compress(TEXTS).memory, memory)


def test_a_batch_is_answered_as_each_question_alone(model):
    questions, texts = backbones.QUESTIONS[:3], [TEXTS[:1], TEXTS, TEXTS[1:]]
    rag = TextRag(model, backbones.shared(model.backbone))
    assert rag.answers(questions, texts, 6) == [
        rag.answer(*pair, 6) for pair in zip(questions, texts, strict=True)
    ]
    together = last_logits(lambda: rag.answers(questions, texts, 1), rag.backbone)
    reference = ReferenceAnswering(model, backbone=backbones.shared(model.backbone))
    memory = torch.stack([reference.compress(TEXTS), reference.compress(TEXTS[::-1])])
    both = last_logits(lambda: reference.answers(questions[:2], memory, 2, 1), reference.backbone)
    for row, (question, own) in enumerate(zip(questions[:2], texts)):
        answer = partial(rag.answer, question, own, 1)
        assert distance(together[row], last_logits(answer, rag.backbone)[0]) < 1e-4
        answer = partial(reference.answer, question, memory[row], 2, 1)
        assert distance(both[row], last_logits(answer, reference.backbone)[0]) < 1e-4
    assert distance(both[0], both[1]) > 1e-3


def test_random_weights_are_drawn_alike_and_keep_states_moderate(backbone, model, ids):
    again = backbones.load("random:tiny", CPU)
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.model.parameters(), again.model.parameters())
    )
    matrices = [p for p in backbone.model.parameters() if p.ndim == 2]
    assert all(p.std().item() == pytest.approx(0.02, rel=0.1) for p in matrices)
    found = logits(backbone.model, ids)
    assert found.isfinite().all()
    assert 0.05 < found.std() < 5
    assert not torch.equal(found[0, -1], found[1, -1])
    assert model.fingerprint != backbone.clara(4, document_length=128).fingerprint


@pytest.mark.parametrize(
    ("name", "parameters", "heads"),
    [("mistral-7b", 7_241_732_096, (32, 8)), ("smollm2-135m", 134_515_008, (9, 3))],
)
def test_published_shapes(name, parameters, heads):
    """The numbers of parameters that the models' own files have."""
    tokenizer = backbones.own_tokenizer()
    config = backbones._shape(name, tokenizer)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (config.num_attention_heads, config.num_key_value_heads) == heads
    assert getattr(config, "sliding_window", None) is None
    assert len(tokenizer) < config.vocab_size


def test_prompts_are_as_long_as_with_a_large_vocabulary(model):
    """About a token a word: 60 with SmolLM2's 49,152 entries, memory slots not counted."""
    count = model.prompt_tokens(backbones.QUESTIONS[0], 5)
    slots = 5 * (model.config.memory_tokens + 1)
    assert 50 <= count - slots <= 70


def test_without_its_package_a_random_one_stands_in(monkeypatch):
    def absent():
        raise FactbookError("SmolLM2 is not installed")

    monkeypatch.setattr(backbones, "smollm2_file", absent)
    monkeypatch.setattr(backbones, "_shape", lambda name, t, f=backbones._shape: f("tiny", t))
    found = backbones.load("smollm2-135m", CPU)
    assert found.name == "random:smollm2-135m"
    assert found.weights.startswith("random weights")


def test_what_cannot_be_loaded(monkeypatch):
    with pytest.raises(ValueError, match="backbone must be one of smollm2-135m, random:smollm2"):
        backbones.load("random:mistral", CPU)
    with pytest.raises(ValueError, match="quantization must be nf4 or None, got 'int8'"):
        backbones.load("random:tiny", CPU, quantization="int8")
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="bitsandbytes is not installed"):
        backbones.load("random:tiny", CPU, quantization="nf4")
