"""A plain model with an adapter in it: what it computes, in which numbers, and what it takes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from clara import Clara, ClaraConfig
from clara.backbone.adapters import GENERATOR
from clara.backbone.plain import empty_plain_model, plain_model, stored_bytes, stored_dtype

from .. import new_models
from ..random_adapters import draw_adapters

IDS = torch.randint(6, 600, (2, 12), generator=torch.Generator().manual_seed(0))


def new_model(folder, **changes) -> Clara:
    settings = {"document_length": 64, "lora_rank": 4, "lora_alpha": 8, "dtype": "float32"}
    config = ClaraConfig(**{**settings, **changes})
    return draw_adapters(new_models.new_model(folder, config, "cpu"), seed=4)


@torch.no_grad()
def logits(model, name=GENERATOR):
    with model.adapters.active(name):
        return model.backbone(input_ids=IDS).logits


def reloaded(model, folder):
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def assert_computes(model, expected, tolerance=1e-4):
    torch.testing.assert_close(
        model(input_ids=IDS).logits, expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("release", [False, True])
def test_it_computes_what_the_adapter_computes(tiny_backbone, tmp_path, family, release):
    model = new_model(tiny_backbone(family))
    before = {name: logits(model, name) for name in (None, GENERATOR)}
    made = plain_model(model.backbone, GENERATOR, torch.float32, release=release)
    assert made.rounding == 0
    assert (before[None] - before[GENERATOR]).abs().max() > 0.1
    assert_computes(reloaded(made.model, tmp_path), before[GENERATOR])
    if not release:
        assert all(torch.equal(logits(model, name), value) for name, value in before.items())


def test_weights_that_lie_the_other_way(random_backbone, tmp_path):
    """GPT-2's are [inputs, outputs], and its output head is its embeddings."""
    model = new_model(random_backbone(GPT2Config, n_embd=48, n_layer=2, n_head=4))
    made = plain_model(model.backbone, GENERATOR, torch.float32)
    assert_computes(reloaded(made.model, tmp_path), logits(model))


@pytest.mark.parametrize("release", [False, True])
def test_tied_embeddings_stay_tied(random_backbone, tmp_path, release):
    model = new_model(random_backbone(LlamaConfig, tie_word_embeddings=True))
    expected = logits(model)
    made = plain_model(model.backbone, GENERATOR, torch.bfloat16, release=release).model
    assert made.lm_head.weight is made.model.embed_tokens.weight
    again = reloaded(made, tmp_path)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert_computes(again.float(), expected, 0.2)


def test_each_weight_is_rounded_once(tiny_backbone):
    model = new_model(tiny_backbone("llama"))
    for dtype in (torch.bfloat16, torch.float16):
        made = plain_model(model.backbone, GENERATOR, dtype)
        state = made.model.state_dict()
        assert {value.dtype for value in state.values()} == {dtype}
        lost, added = [], []
        for name, module in model.backbone.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            up, down = module.lora_B[GENERATOR].weight, module.lora_A[GENERATOR].weight
            change = 2.0 * up.double() @ down.double()  # alpha 8 by rank 4
            exact = module.get_base_layer().weight.double() + change
            rounded = state[f"{name}.weight"].double()
            step = torch.finfo(dtype).eps * exact.abs() + 1e-6
            assert ((rounded - exact).abs() <= step / 2 + 1e-6).all()
            lost.append((rounded - exact).norm())
            added.append(change.norm())
        expected = torch.stack(lost).norm() / torch.stack(added).norm()
        assert made.rounding == pytest.approx(expected.item(), rel=1e-3)
        assert 0 < made.rounding < 0.1


def test_an_untrained_adapter_adds_nothing(tiny_backbone):
    config = ClaraConfig(document_length=64, dtype="float32")
    model = new_models.new_model(tiny_backbone("llama"), config)
    made = plain_model(model.backbone, GENERATOR, torch.bfloat16)
    assert made.rounding is None
    plain = AutoModelForCausalLM.from_pretrained(model.config.backbone, dtype=torch.bfloat16)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("release", [False, True])
def test_a_quantized_model_keeps_its_rounded_weights(
    tiny_backbone, tmp_path, quantization, release
):
    model = new_model(tiny_backbone("llama"), quantization=quantization)
    expected = logits(model)
    exact = logits(new_model(tiny_backbone("llama")))
    assert (expected - exact).abs().max() > 0.01
    made = plain_model(model.backbone, GENERATOR, torch.float32, release=release).model
    again = reloaded(made, tmp_path)
    assert not hasattr(again.config, "quantization_config")
    # int8 rounds activations of few rows to 16 bits; the plain model does not.
    assert_computes(again, expected, {"nf4": 1e-4, "int8": 5e-3}[quantization])


def test_weights_that_are_not_shared_need_no_second_copy(tiny_backbone):
    model = new_model(tiny_backbone("llama"))
    made = plain_model(model.backbone, GENERATOR, torch.float32)
    own = {p.data_ptr() for p in model.backbone.parameters()}
    copied = [n for n, p in made.model.named_parameters() if p.data_ptr() not in own]
    assert len(copied) == 7 * 3
    made = plain_model(model.backbone, GENERATOR, torch.float32, release=True).model
    own = {p.data_ptr() for p in model.backbone.parameters()}
    assert all(p.data_ptr() in own for p in made.parameters())


def test_numbers_that_a_dtype_does_not_hold(tiny_backbone):
    model = new_model(tiny_backbone("llama"))
    first = next(iter(model.adapters.parameters(GENERATOR).values()))
    with torch.no_grad():
        first.fill_(1e6)
    with pytest.raises(ValueError, match=r"layers\.0\.\S+ holds .*e\+.*, more than float16 can"):
        plain_model(model.backbone, GENERATOR, torch.float16)
    with torch.no_grad():
        first.fill_(torch.nan)
    with pytest.raises(ValueError, match="holds values that are not finite"):
        plain_model(model.backbone, GENERATOR, torch.float32)


def test_weights_in_a_form_that_nobody_knows(tiny_backbone):
    model = new_model(tiny_backbone("llama"))
    layer = model.backbone.model.layers[0].mlp.up_proj.get_base_layer()
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight is stored as int8 by Linear"):
        plain_model(model.backbone, GENERATOR, torch.float32)


def test_weights_under_other_names(tiny_backbone):
    """As GPTQ and AWQ pack them."""
    model = new_model(tiny_backbone("llama"))
    layer = model.backbone.model.layers[0].mlp.up_proj.get_base_layer()
    layer.qweight = layer.weight
    del layer.weight
    with pytest.raises(ValueError, match=r"holds no model\.layers\.0\.mlp\.up_proj\.weight, as it"):
        plain_model(model.backbone, GENERATOR, torch.float32)


def test_its_size(random_backbone):
    for tied in (False, True):
        model = new_model(random_backbone(LlamaConfig, tie_word_embeddings=tied))
        empty = empty_plain_model(model.backbone)
        made = plain_model(model.backbone, GENERATOR, torch.bfloat16).model
        total = sum(p.nbytes for p in made.parameters())
        assert stored_bytes(empty, torch.bfloat16) == total
        assert stored_bytes(empty, torch.float32) == 2 * total


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "int8"}, None),
        ({"dtype": {"text": "float32"}}, None),
        ({}, None),
    ],
)
def test_the_dtype_of_the_files(tiny_backbone, tmp_path, settings, expected):
    folder = shutil.copytree(tiny_backbone("llama"), tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config | settings))
    assert stored_dtype(str(folder)) == expected
