"""Fused layers compute what transformers' do, and only those of known classes are fused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm

from clara import Clara, ClaraConfig
from clara.backbone import packed_forward
from clara.backbone.fused_layers import FusedLayers
from clara.data.examples import AnswerExample
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder

from ..random_adapters import draw_adapters

EXAMPLES = [
    AnswerExample("What is it made of?", ("The tower is made of basalt.", "It rains."), "basalt"),
    AnswerExample("When?", ("The harbour was dug in the year of the second flood.",), "long ago"),
]

STEPS = 20


@pytest.fixture
def make_objective(tiny_backbone):
    def make(family, dtype="float32"):
        config = ClaraConfig(
            compression_rate=16,
            document_length=64,
            lora_rank=4,
            lora_alpha=8,
            lora_dropout=0.0,
            dtype=dtype,
        )
        model = Clara.from_backbone(tiny_backbone(family), config, device="cpu")
        draw_adapters(model, seed=0)
        return CompressionObjective(model, alignment_weight=0.1).train()

    return make


@pytest.fixture
def unfused(monkeypatch):
    """A function after which nothing is fused."""

    class Nothing(FusedLayers):
        @classmethod
        def of(cls, *_):
            return cls([])

    return lambda: monkeypatch.setattr(packed_forward, "FusedLayers", Nothing)


def fused_of(model):
    return FusedLayers.of(model.backbone, torch.zeros(1, 48, dtype=model.dtype))


def names_of(model, fused):
    """Class names of the fused modules, and how many there are of each."""
    names = [type(module).__name__ for module, _ in fused.forwards]
    return {name: names.count(name) for name in sorted(set(names))}


def batch_of(model):
    return CompressionCollator(Encoder(model.tokenizer, model.config, None))(EXAMPLES)


def loss_of(objective, batch, autocast=None):
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        return sum(objective(batch).values())


def gradients(objective, autocast=None):
    objective.zero_grad()
    loss = loss_of(objective, batch_of(objective.model), autocast)
    loss.backward()
    grads = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return loss.detach().float(), torch.cat(grads)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"Attention": 3, "DecoderLayer": 3, "MLP": 3, "RMSNorm": 7}),
        ("qwen2", {"Attention": 3, "DecoderLayer": 3, "MLP": 3, "RMSNorm": 7}),
        ("qwen3", {"Attention": 3, "DecoderLayer": 3, "MLP": 3, "RMSNorm": 13}),
        ("phi3", {"RMSNorm": 7}),
    ],
)
def test_loss_and_gradients_are_those_of_transformers(make_objective, unfused, family, expected):
    objective = make_objective(family)
    found = names_of(objective.model, fused_of(objective.model))
    assert {name.removeprefix(family.capitalize()): n for name, n in found.items()} == expected
    loss, gradient = gradients(objective)
    unfused()
    plain_loss, plain = gradients(objective)
    assert not torch.equal(gradient, plain)  # they took two ways
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    assert (gradient - plain).norm() <= 1e-5 * plain.norm()


def test_bfloat16_errs_no_more_than_transformers(make_objective, unfused):
    objective = make_objective("llama", "bfloat16")
    loss, gradient = gradients(objective, torch.bfloat16)
    objective.activation_checkpointing_enable()
    again, recomputed = gradients(objective, torch.bfloat16)
    assert torch.equal(again, loss)
    torch.testing.assert_close(recomputed, gradient, rtol=0, atol=0)
    unfused()
    plain_loss, plain = gradients(objective, torch.bfloat16)
    objective.model.backbone.float()
    exact_loss, exact = gradients(objective)
    allowed = 1.2 * (plain - exact).norm()
    assert 0 < (gradient - exact).norm() <= allowed
    assert (loss - exact_loss).abs() <= 2 * (plain_loss - exact_loss).abs() + 1e-3 * exact_loss


@pytest.mark.parametrize(
    ("dtype", "autocast", "rtol"), [("float32", None, 1e-5), ("bfloat16", torch.bfloat16, 0.01)]
)
def test_losses_of_a_training(make_objective, unfused, dtype, autocast, rtol):
    def curve():
        objective = make_objective("llama", dtype)
        batch = batch_of(objective.model)
        trained = [p for p in objective.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()  # as a run keeps them
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(objective, batch, autocast)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    fused = curve()
    unfused()
    plain = curve()
    assert fused[-1] < 0.95 * fused[0]
    torch.testing.assert_close(fused, plain, rtol=rtol, atol=0)


class TestWhatIsNotFused:
    @pytest.fixture
    def model(self, make_objective):
        return make_objective("llama").model

    def without(self, model):
        """Names of modules of the second layer that are not fused."""
        fused = {id(module) for module, _ in fused_of(model).forwards}
        assert fused
        layer = model.backbone.base_model.layers[1]
        parts = {
            "layer": layer,
            "attention": layer.self_attn,
            "network": layer.mlp,
            "norm": layer.input_layernorm,
        }
        return {name for name, part in parts.items() if id(part) not in fused}

    def test_with_hooks(self, model):
        layer = model.backbone.base_model.layers[1]
        assert self.without(model) == set()
        layer.mlp.act_fn.register_forward_hook(lambda *_: None)
        assert self.without(model) == {"network"}
        layer.input_layernorm.register_forward_pre_hook(lambda *_: None)
        assert self.without(model) == {"network", "norm", "layer"}

    def test_a_replaced_forward(self, model):
        attention = model.backbone.base_model.layers[1].self_attn
        attention.forward = attention.forward
        assert self.without(model) == {"attention"}
        with fused_of(model).active():
            pass
        assert "forward" in vars(attention)

    def test_another_class_or_activation(self, model):
        layer = model.backbone.base_model.layers[1]
        layer.mlp.act_fn = nn.ReLU()
        norm = layer.input_layernorm
        norm.__class__ = type("LlamaRMSNorm", (type(norm),), {"__module__": "elsewhere"})
        assert self.without(model) == {"network", "norm", "layer"}

    def test_a_trained_weight(self, model):
        model.backbone.base_model.layers[1].input_layernorm.weight.requires_grad_(True)
        assert self.without(model) == {"norm", "layer"}
        with torch.no_grad():
            assert self.without(model) == set()

    def test_a_weight_of_a_class_of_its_own(self, model):
        class Sharded(nn.Parameter):
            pass

        norm = model.backbone.base_model.layers[1].input_layernorm
        norm.weight = Sharded(norm.weight.data, requires_grad=False)
        assert self.without(model) == {"norm", "layer"}

    def test_float64_and_other_devices(self, model):
        assert not FusedLayers.of(model.backbone, torch.zeros(1, dtype=torch.float64)).forwards
        assert not FusedLayers.of(model.backbone, torch.zeros(1, device="meta")).forwards

    def test_nothing_stays_behind(self, model):
        fused = fused_of(model)
        with fused.active():
            assert all("forward" in vars(module) for module, _ in fused.forwards)
        with pytest.raises(RuntimeError), fused.active():
            torch.ones(2) @ torch.ones(3)
        assert not any("forward" in vars(module) for module in model.backbone.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modules_of_gemma(dtype):
    torch.manual_seed(0)
    norm, network = GemmaRMSNorm(24), GemmaMLP(GemmaConfig(hidden_size=24, intermediate_size=40))
    norm.weight.data.normal_()
    both = nn.ModuleList([norm, network]).to(dtype).requires_grad_(False)
    x = (torch.randn(2, 5, 24) * 3).to(dtype).requires_grad_()
    plain = [module(x) for module in both]
    wanted = [torch.autograd.grad(each.sum(), x)[0] for each in plain]
    fused = FusedLayers.of(both, x)
    assert len(fused.forwards) == 2
    with fused.active():
        found = [module(x) for module in both]
    tolerance = {"rtol": 0, "atol": 3 * torch.finfo(dtype).eps}
    for one, other, expected in zip(found, plain, wanted, strict=True):
        assert one.dtype == other.dtype
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, **tolerance)
        (gradient,) = torch.autograd.grad(one.sum(), x)
        scale = expected.abs().max()
        torch.testing.assert_close(gradient / scale, expected / scale, **tolerance)
