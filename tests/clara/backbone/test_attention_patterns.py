"""Windows and chunks of each layer: packed sequences against transformers' eager attention."""

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone.attention_patterns import FULL, AttentionPattern, attention_patterns
from clara.backbone.loading import BackboneError
from clara.data.examples import AnswerExample
from clara.model.prompt_prefix import can_continue
from clara.text.packing import compressor_input
from clara.text.passages import as_documents, prepare_passages
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder

from . import one_sequence

CONFIG = ClaraConfig(
    compression_rate=4,
    document_length=64,
    lora_rank=2,
    lora_alpha=2,
    lora_dropout=0,
    dtype="float32",
)
WINDOW = 24
W, F = AttentionPattern(window=WINDOW), FULL
MIXED = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
HEAD = {"head_dim": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Of each family the settings, and what its layers attend to. Mistral, Phi-3 and StarCoder 2 have
# one window for all layers, Qwen2-MoE says it by the mask alone, Exaone 4 and SmolLM3 have layers
# without positions.
FAMILIES = {
    "Mistral": ({}, [W, W, W]),
    "Ministral": ({**HEAD, **MIXED}, [W, W, F]),
    "Phi3": ({}, [W, W, W]),
    "Starcoder2": ({}, [W, W, W]),
    "Qwen2": ({"use_sliding_window": True, "max_window_layers": 1}, [F, W, W]),
    "Qwen2Moe": ({"use_sliding_window": True, **EXPERTS, **MIXED}, [W, W, F]),
    "Qwen3": ({"use_sliding_window": True, **HEAD, **MIXED}, [W, W, F]),
    "Gemma3Text": ({"query_pre_attn_scalar": 12, **HEAD, **MIXED}, [W, W, F]),
    "Olmo3": (MIXED, [W, W, F]),
    "Exaone4": (MIXED, [W, W, F]),
    "Cohere2": ({**HEAD, **MIXED}, [W, W, F]),
    "SmolLM3": ({"use_sliding_window": True, "no_rope_layers": [1, 1, 0], **MIXED}, [W, W, F]),
    "Llama4Text": (
        {
            "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
            "attention_chunk_size": WINDOW,
            "attn_temperature_tuning": False,
            "moe_layers": [],
            "intermediate_size_mlp": 96,
            **HEAD,
        },
        [AttentionPattern(chunk=WINDOW)] * 2 + [F],
    ),
}
TEXT = "the river runs north of a small town and people trade salt for grain every spring "
TEXTS = ["salt", TEXT[:40], TEXT + TEXT[:30], TEXT[7:70]]
QUESTIONS = ["Where?", "What do people trade for grain every spring?"]


def settings_of(family):
    settings, _ = FAMILIES[family]
    return {} if family == "Llama4Text" else {"sliding_window": WINDOW}, settings


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, random_backbone):
    window, settings = settings_of(family)
    kind = getattr(transformers, f"{family}Config")
    return Clara.from_backbone(random_backbone(kind, **window, **settings), CONFIG)


@pytest.fixture(scope="module")
def plain(model):
    return one_sequence.eager(model)


@pytest.fixture(scope="module")
def memory(model):
    return model.compress(TEXTS).memory


def test_the_pattern_of_each_layer(family, model):
    layers = sorted(attention_patterns(model.backbone).items(), key=lambda pair: pair[0].layer_idx)
    assert [pattern for _, pattern in layers] == FAMILIES[family][1]


def test_documents_longer_than_a_window(model, plain, memory):
    passages = prepare_passages(model.tokenizer, as_documents(TEXTS), limit=64, overflow="error")
    inputs = [compressor_input(p.tokens, bos=1, eos=2, n_memory=16).ids for p in passages]
    assert len(inputs[0]) < WINDOW < 2 * WINDOW < max(map(len, inputs))
    for row, ids in zip(memory, inputs, strict=True):
        states = one_sequence.states(model, plain, ids, model.memory_tokens.memory.detach())
        torch.testing.assert_close(row, states[-16:], rtol=1e-4, atol=1e-4)


def test_the_loss_of_prompts_longer_than_a_window(model, plain, memory):
    each, answers = [memory[:3], memory[3:]], ["salt", "grain, by the river"]
    prompts = model.memory_prompts(QUESTIONS, [3, 1], answers)
    assert min(len(prompt.ids) for prompt in prompts) > WINDOW
    expected = one_sequence.loss(model, plain, prompts, each)
    assert model.answer_loss(QUESTIONS, each, answers).item() == pytest.approx(expected, rel=1e-4)


def test_answers_to_prompts_longer_than_a_window(family, model, plain, memory):
    each = [memory[:3], memory[3:]]
    prompts = model.memory_prompts(QUESTIONS, [3, 1])
    expected = [
        one_sequence.answer(model, plain, prompt, part, 8)
        for prompt, part in zip(prompts, each, strict=True)
    ]
    # Prompts of two lengths: the shorter is padded on the left, or begins after a cached prefix.
    assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected
    assert "".join(model.stream(QUESTIONS[1], each[1], max_new_tokens=8)) == expected[1]
    if "num_experts" in FAMILIES[family][0]:
        return  # some releases of transformers hold experts in modules that cannot be merged
    assert model.merge_generator()
    try:
        assert model.generate(QUESTIONS, each, max_new_tokens=8) == expected
    finally:
        model._merged = None


def test_only_plain_attention_continues_from_a_cached_prefix(family, model):
    plainly = all(pattern == FULL for pattern in FAMILIES[family][1])
    settings = transformers.GenerationConfig(do_sample=False)
    assert can_continue(model.backbone, settings) == plainly


@pytest.mark.parametrize("family", ["Mistral", "Qwen2Moe", "Llama4Text"], indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_sees_what_generation_sees(model, plain, checkpointing):
    """The training objective's loss, and its gradient through a document's memory."""
    trained = Clara.from_backbone(model.config.backbone, CONFIG)
    objective = CompressionObjective(trained, alignment_weight=0).train()
    if checkpointing:
        trained.enable_gradient_checkpointing()
    collator = CompressionCollator(Encoder(trained.tokenizer, CONFIG, None))
    examples = [AnswerExample(QUESTIONS[0], tuple(TEXTS[1:3]), "salt")]
    batch = collator(examples)
    found = objective(batch)["ce"]
    found.backward()

    with torch.no_grad():
        (prompt,) = trained.memory_prompts(QUESTIONS[:1], [2], ["salt"])
    assert len(prompt.ids) > WINDOW
    own = trained.memory_tokens
    rows = torch.nn.Parameter(own.memory.detach().clone())
    passages = prepare_passages(
        trained.tokenizer, as_documents(TEXTS[1:3]), limit=64, overflow="error"
    )
    documents = []
    for passage in passages:
        ids = compressor_input(passage.tokens, bos=1, eos=2, n_memory=16).ids
        inputs = one_sequence.embedded(trained, plain, ids, 0)
        inputs = torch.cat([inputs[:, :-16], rows[None]], 1)
        hidden = plain.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        documents.append(hidden[0, -16:])
    inputs = one_sequence.embedded(trained, plain, prompt.ids, torch.cat(documents))
    logits = plain(inputs_embeds=inputs, use_cache=False).logits[0]
    targets = torch.tensor(prompt.ids[prompt.answer_start :])
    loss = cross_entropy(logits[prompt.answer_start - 1 : -1], targets, reduction="sum")
    loss.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(own.memory.grad, rows.grad, rtol=1e-3, atol=1e-4)


# What packed attention cannot express


def refusal(folder):
    with pytest.raises(BackboneError) as caught:
        Clara.from_backbone(folder, CONFIG)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("Gemma2", {"query_pre_attn_scalar": 12, **HEAD}, "has attention with softcap"),
        ("GptOss", {"num_local_experts": 4, **HEAD}, "has attention with s_aux"),
    ],
)
def test_caps_and_sinks(family, settings, reason, random_backbone, monkeypatch):
    kind = getattr(transformers, f"{family}Config")
    folder = random_backbone(kind, **settings)
    refusal(folder)  # by transformers
    parent = getattr(transformers, f"{family}PreTrainedModel")
    monkeypatch.setattr(parent, "_supports_sdpa", True)  # as some releases have it
    assert reason in refusal(folder)


def test_a_mask_that_the_layers_make_themselves(random_backbone):
    folder = random_backbone(transformers.DogeConfig)
    assert "attention mask of their own" in refusal(folder)


def test_queries_scaled_by_their_place_in_the_batch(random_backbone):
    settings = {**FAMILIES["Llama4Text"][0], "attn_temperature_tuning": True}
    folder = random_backbone(transformers.Llama4TextConfig, **settings)
    assert "attn_temperature_tuning" in refusal(folder)


def test_a_mask_of_another_shape(random_backbone, monkeypatch):
    from transformers.models.llama import modeling_llama

    make = modeling_llama.create_causal_mask

    def every_second(*arguments, **options):
        def rule(batch, head, query, key):
            return (query - key) % 2 == 0

        return make(*arguments, **options, and_mask_function=rule)

    folder = random_backbone(transformers.LlamaConfig)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", every_second)
    assert "neither causal, nor a sliding window, nor chunked" in refusal(folder)


def test_layers_that_drop_the_arguments_of_attention(random_backbone, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward

    def without_packed(self, *args, packed=None, **kwargs):
        return forward(self, *args, **kwargs)

    folder = random_backbone(transformers.LlamaConfig)
    monkeypatch.setattr(LlamaAttention, "forward", without_packed)
    assert "do not hand on the arguments of attention" in refusal(folder)


def test_an_ordinary_forward_has_the_masks_of_transformers(model):
    """The masks are recorded once; after it, the same model makes real ones."""
    backbone = AutoModelForCausalLM.from_pretrained(
        model.config.backbone, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    ids = torch.randint(6, 600, (2, 60), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    with torch.no_grad(), model.generating("generator") as ours:
        found = ours(input_ids=ids, attention_mask=mask).logits
        expected = backbone(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0, 20:], expected[0, 20:], rtol=1e-4, atol=1e-4)
