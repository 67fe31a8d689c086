"""Losses and gradients of questions that share a memory are those of asking one by one."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy

from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.model.encoding import answer_cross_entropy
from clara.text.branches import pack_branches
from clara.text.packing import PackedPrompts
from clara.training.encoder import Encoder
from clara.training.questions import Asking

from ..new_models import new_model
from ..random_adapters import draw_adapters
from . import one_sequence
from .test_rotary import longrope

WINDOW = 24
MIXED = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
HEAD = {"head_dim": 12}
FAMILIES = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    "Gemma3Text": {"query_pre_attn_scalar": 12, "sliding_window": WINDOW, **HEAD, **MIXED},
    "Llama4Text": {
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        "attention_chunk_size": WINDOW,
        "attn_temperature_tuning": False,
        "moe_layers": [],
        "intermediate_size_mlp": 96,
        **HEAD,
    },
}
# transformers rotates Llama 4's queries and keys in float32 always. test_attention.py compares its
# kind of attention in float64.
PRECISIONS = [
    *((family, torch.float32) for family in FAMILIES),
    *((family, torch.float64) for family in FAMILIES if family != "Llama4Text"),
]
CONFIG = ClaraConfig(
    compression_rate=16,
    document_length=64,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.0,
    dtype="float32",
)
# Texts, and questions about all of them: two documents, one document, and one question.
ASKED = [
    (
        ["the mill was built by Ada in the spring", "a river runs by"],
        {"Who built it?": "Ada", "Who built the mill in the spring?": "it was Ada", "When?": "x"},
    ),
    (["the bridge is in the north"], {"Where is it?": "in the north", "Where?": "north"}),
    (["grain and salt"], {"What?": "salt"}),
]


def model_of(folder, **settings):
    return draw_adapters(new_model(folder, CONFIG.replace(**settings)), seed=0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, random_backbone):
    return random_backbone(getattr(transformers, f"{family}Config"), **FAMILIES[family])


class DoubleNorm(nn.Module):
    """The RMS norm of a family in float64: transformers' is computed in float32 always."""

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.plus = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (self.weight + self.plus)


def in_double(model):
    model.double()
    for parent in list(model.backbone.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, DoubleNorm(child))
    return model


def prompts_and_texts(model):
    groups = [
        model.memory_prompts(list(pairs), [len(texts)] * len(pairs), list(pairs.values()))
        for texts, pairs in ASKED
    ]
    return groups, [text for texts, _ in ASKED for text in texts]


def loss_of(model, prompts, memory):
    if model.dtype == torch.float32:
        return answer_cross_entropy(model, prompts, memory)
    hidden = model.forward_packed(prompts.batch, memory, GENERATOR)
    logits = model.backbone.get_output_embeddings()(hidden[prompts.targets - 1])
    return cross_entropy(logits, prompts.batch.ids[prompts.targets], reduction="sum")


def computed(model, writer, *, together):
    """The loss of all answers and its gradients, memory written by the adapter `writer`."""
    groups, texts = prompts_and_texts(model)
    encoder = Encoder(model.tokenizer, model.config, None)
    packed = encoder.pack(encoder.passages(texts, "document"))
    memory = torch.stack(packed.in_order(model.encode_memory(packed.batch, writer).memory))
    if together:
        loss = loss_of(model, pack_branches(groups), memory.flatten(0, 1))
    else:
        each = memory.split([len(texts) for texts, _ in ASKED])
        loss = sum(
            loss_of(model, PackedPrompts.of([prompt]), own.flatten(0, 1))
            for group, own in zip(groups, each, strict=True)
            for prompt in group
        )
    trained = {
        f"{adapter}.{name}": parameter
        for adapter in ADAPTERS
        for name, parameter in model.adapters.parameters(adapter).items()
    }
    trained |= dict(model.memory_tokens.named_parameters())
    model.zero_grad()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("writer", [COMPRESSOR, QUERY_REASONER])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "dtype"), PRECISIONS, indirect=["family"])
def test_losses_and_gradients(family, folder, dtype, checkpointing, writer):
    model = model_of(folder)
    if dtype == torch.float64:
        in_double(model)
    for name in ADAPTERS:
        for parameter in model.adapters.parameters(name).values():
            parameter.requires_grad_()
    model.memory_tokens.requires_grad_()
    model.train()
    expected, theirs = computed(model, writer, together=False)
    if checkpointing:
        model.enable_gradient_checkpointing()
    found, ours = computed(model, writer, together=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert found == pytest.approx(expected, rel=tolerance)
    assert ours.keys() == theirs.keys()
    adapters = {name.partition(".")[0] for name in ours} & set(ADAPTERS)
    assert adapters == {writer, GENERATOR}
    for name, value in theirs.items():
        assert value.any(), name
        scale = value.abs().max().item()
        torch.testing.assert_close(
            ours[name], value, rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: n + m
        )


def test_losses_are_those_of_plain_transformers(folder):
    model = Clara.from_backbone(folder, CONFIG)
    plain = one_sequence.eager(model)
    groups, texts = prompts_and_texts(model)
    assert min(len(p.ids) for group in groups for p in group) > 2 * WINDOW
    memory = torch.randn(len(texts), 4, 48, generator=torch.Generator().manual_seed(0))
    packed = pack_branches(groups)
    assert len(packed.batch.branches) == 3
    found = answer_cross_entropy(model, packed, memory.flatten(0, 1)) / len(packed.targets)
    each = memory.split([len(texts) for texts, _ in ASKED])
    expected = one_sequence.loss(
        model,
        plain,
        [prompt for group in groups for prompt in group],
        [own for group, own in zip(groups, each, strict=True) for _ in group],
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)


# Rotary factors that depend on length


def long_rotary(random_backbone, switch):
    return model_of(
        random_backbone(
            transformers.Phi3Config,
            original_max_position_embeddings=switch,
            rope_parameters=longrope(switch),
            sliding_window=None,
        )
    )


def test_prompts_with_other_rotary_factors_share_nothing(random_backbone):
    lengths = sorted(
        len(prompt.ids) for prompt in prompts_and_texts(long_rotary(random_backbone, 32))[0][0]
    )
    assert lengths[0] < lengths[-1]
    for switch in (lengths[0] - 1, lengths[0], lengths[-1]):
        model = long_rotary(random_backbone, switch)
        groups, _ = prompts_and_texts(model)
        prompts = groups[0]
        memory = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = [
                answer_cross_entropy(model, PackedPrompts.of([prompt]), memory).item()
                for prompt in prompts
            ]
        apart = Asking(switching=(switch,)).groups(prompts)
        assert len(apart) == (2 if lengths[0] <= switch < lengths[-1] else 1)
        repeated = torch.cat([memory] * len(apart))
        found = answer_cross_entropy(model, pack_branches(apart), repeated).item()
        assert found == pytest.approx(sum(expected), rel=1e-5)
        if len(apart) > 1:
            with pytest.raises(ValueError, match=r"tokens cannot share their beginning: .*rotary"):
                answer_cross_entropy(model, pack_branches([prompts]), memory)


def test_branches_of_two_trunks_may_have_other_rotary_factors(random_backbone):
    """Trunks, and their branches, on both sides of the switch, in one batch."""

    def groups_of(model):
        return [
            model.memory_prompts(["Who?", "Where is it?"], [count] * 2, ["Ada", "in the north"])
            for count in (1, 6)
        ]

    short, long = groups_of(long_rotary(random_backbone, 32))
    switch = max(len(prompt.ids) for prompt in short)
    assert switch < min(len(prompt.ids) for prompt in long)
    model = long_rotary(random_backbone, switch)
    groups = groups_of(model)
    memory = torch.randn(28, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = answer_cross_entropy(model, pack_branches(groups), memory).item()
        expected = sum(
            answer_cross_entropy(model, PackedPrompts.of([prompt]), own).item()
            for group, own in zip(groups, (memory[:4], memory[4:]), strict=True)
            for prompt in group
        )
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_a_whole_prompt_must_fit_the_positions(random_backbone):
    folder = random_backbone(transformers.LlamaConfig)
    model = model_of(folder)
    groups, _ = prompts_and_texts(model)
    packed = pack_branches(groups[:1])
    model.backbone.config.max_position_embeddings = max(len(p.ids) for p in groups[0])
    memory = torch.randn(8, 48)
    assert len(packed.batch.ids) > model.backbone.config.max_position_embeddings
    assert answer_cross_entropy(model, packed, memory).isfinite()
    model.backbone.config.max_position_embeddings -= 1
    with pytest.raises(ValueError, match="longer than the backbone's"):
        answer_cross_entropy(model, packed, memory)
