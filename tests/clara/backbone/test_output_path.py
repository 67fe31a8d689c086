"""Losses and words of backbones that change logits or states around the output head."""

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from clara import Clara, ClaraConfig
from clara.backbone import output_path
from clara.backbone.divergence import divergence_of_logits, most_likely
from clara.backbone.output_path import (
    applies_head_alone,
    next_token_cross_entropy,
    next_token_divergence,
    states_to_logits,
)
from clara.data.examples import AnswerExample
from clara.training.collators import TextCollator
from clara.training.encoder import Encoder
from clara.training.text import TextObjective

from . import one_sequence

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=2, lora_alpha=2, dtype="float32"
)
QUESTIONS = ["Where?", "What do people trade?"]
ANSWERS = ["salt", "grain, by the river"]
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
}
FAMILIES = {
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0},
    "HyperCLOVAX": {"logits_scaling": 0.5},
    "Cohere": {"logit_scale": 0.0625},
    "NanoChat": {},
    "Gemma3Text": {"final_logit_softcapping": 5.0, "head_dim": 12, "query_pre_attn_scalar": 12},
    "MiniCPM3": {"dim_model_base": 16, **LATENT},  # scales the states before the head
    "Gemma": {"head_dim": 12},
    "Llama": {},
}
PLAIN = {"Gemma", "Llama"}


@pytest.fixture(
    scope="module",
    params=[name for name in FAMILIES if hasattr(transformers, f"{name}Config")],
)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, random_backbone):
    kind = getattr(transformers, f"{family}Config")
    return Clara.from_backbone(random_backbone(kind, **FAMILIES[family]), CONFIG)


def test_what_is_plain(family, model):
    assert applies_head_alone(model.backbone) == (family in PLAIN)


def test_the_answer_loss_is_that_of_the_logits(model):
    plain = one_sequence.eager(model)
    memory = model.compress(["The river is long.", "A town", "Salt is traded."]).memory
    each = [memory[:2], memory[2:]]
    prompts = model.memory_prompts(QUESTIONS, [2, 1], ANSWERS)
    expected = one_sequence.loss(model, plain, prompts, each)
    assert model.answer_loss(QUESTIONS, each, ANSWERS).item() == pytest.approx(expected, rel=1e-5)


def test_documents_and_answers_are_those_of_the_backbone(model):
    """Embeddings that a family scales are scaled alike for memory tokens, in both."""
    plain = one_sequence.eager(model)
    memory = model.compress(["The river is long."]).memory
    ids = model.tokenizer.encode_texts(["The river is long."])[0].ids
    prompt = [-3, 1, *ids, 2, *[-1] * 4]
    rows = model.memory_tokens.memory.detach()
    expected = one_sequence.states(model, plain, prompt, rows)[-4:]
    torch.testing.assert_close(memory[0], expected, rtol=1e-4, atol=1e-4)
    (question,) = model.memory_prompts(QUESTIONS[:1], [1])
    answer = one_sequence.answer(model, plain, question, memory, 6)
    assert model.generate(QUESTIONS[:1], memory[None], max_new_tokens=6) == [answer]


def test_training_has_the_same_loss(model):
    examples = [AnswerExample("Where?", ("The river is long.",), "salt")]
    prompts = TextCollator(Encoder(model.tokenizer, CONFIG, None))(examples)
    plain = one_sequence.eager(model)
    ids = prompts.prompts.batch.ids
    targets = prompts.prompts.targets
    with torch.no_grad():
        logits = plain(input_ids=ids[None], use_cache=False).logits[0]
    expected = cross_entropy(logits[targets - 1], ids[targets], reduction="sum").item()
    trained = Clara.from_backbone(model.config.backbone, CONFIG)
    found = TextObjective(trained)(prompts)["ce"]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    gradients = [p.grad for p in trained.adapters.parameters("generator").values()]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("family", ["Granite", "NanoChat", "Cohere"], indirect=True)
def test_gradients_in_chunks_are_those_of_all_logits(model, monkeypatch):
    monkeypatch.setattr(output_path, "CHUNK_LOGITS", 3 * 600)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 48, generator=generator, requires_grad=True)
    targets = torch.randint(600, (8,), generator=generator)
    weight = model.backbone.get_output_embeddings().weight.requires_grad_()
    try:
        ours = next_token_cross_entropy(model.backbone, hidden, targets)
        logits = states_to_logits(model.backbone, hidden)
        theirs = cross_entropy(logits, targets, reduction="sum")
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        both = [torch.autograd.grad(loss, [hidden, weight]) for loss in (ours, theirs)]
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    finally:
        weight.requires_grad_(False)


@pytest.mark.parametrize("family", ["Granite", "Cohere"], indirect=True)
def test_the_divergence_from_a_teacher_is_that_of_the_logits(model, monkeypatch):
    monkeypatch.setattr(output_path, "CHUNK_LOGITS", 3 * 600)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 48, generator=generator, requires_grad=True)
    likely = most_likely(3 * torch.randn(8, 600, generator=generator), 7)
    ours = next_token_divergence(model.backbone, hidden, *likely)
    theirs = divergence_of_logits(states_to_logits(model.backbone, hidden), *likely)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    both = [torch.autograd.grad(loss, hidden)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-6)


def test_words_behind_memory_are_what_the_backbone_would_say(model):
    plain = one_sequence.eager(model)
    memory = torch.randn(4, 48, generator=torch.Generator().manual_seed(3))
    logits = states_to_logits(model.backbone, memory)
    body = plain.model
    forward = body.forward
    body.forward = lambda *arguments, **options: (
        transformers.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=memory[None])
    )
    try:
        with torch.no_grad():
            expected = plain(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits[0]
    finally:
        body.forward = forward
    torch.testing.assert_close(logits, expected)
    best = model.tokenizer.decode([expected[0].argmax().item()]).strip()
    if any(c.isalnum() for c in best):
        assert model.logit_lens(memory)[0][0] == best


def test_the_backbone_is_left_as_it_is(model):
    body, head = model.backbone.model, model.backbone.get_output_embeddings()
    before = dict(model.backbone.__dict__)
    states_to_logits(model.backbone, torch.zeros(2, 48))
    assert model.backbone.model is body
    assert model.backbone.get_output_embeddings() is head
    assert model.backbone.__dict__.keys() == before.keys()


def test_logits_that_need_more_than_the_final_states(random_backbone, monkeypatch):
    """Refused by one line, in the loss and in training alike; the rest works."""

    def forward(self, *arguments, inputs_embeds=None, **options):
        outputs = self.model(inputs_embeds=inputs_embeds, **options)
        return transformers.modeling_outputs.CausalLMOutputWithPast(
            logits=self.lm_head(outputs.last_hidden_state + outputs.hidden_states[0])
        )

    model = Clara.from_backbone(random_backbone(transformers.LlamaConfig), CONFIG)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    memory = model.compress(["The river is long."]).memory
    messages = []
    for attempt in (
        lambda: model.answer_loss(["Where?"], memory[None], ["salt"]),
        lambda: TextObjective(model),
    ):
        with pytest.raises(ValueError, match="has no answer loss") as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


def test_a_body_that_is_no_module_of_its_own(tiny_backbone, monkeypatch):
    """Without a module to leave out, the layers would run on states that are final already."""
    model = Clara.from_backbone(tiny_backbone("llama"), CONFIG)
    monkeypatch.setattr(output_path, "body_of", lambda backbone: backbone)
    with pytest.raises(ValueError, match="not a separate module"):
        TextObjective(model)
