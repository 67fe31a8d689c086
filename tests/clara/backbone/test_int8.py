"""Weights of linear layers in 8 bits: what they compute, hold and refuse."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from transformers import GenerationConfig, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig

from clara import Clara, ClaraConfig
from clara.backbone import int8
from clara.backbone.decoder_layout import decoder_weights
from clara.backbone.int8 import FEW_ROWS, Int8Linear, quantized_rows
from clara.backbone.loading import BackboneError
from clara.backbone.lora import AdaptedInt8Linear
from clara.backbone.processor import int8_instructions
from clara.model import generation

from ..model.test_decoding import by_transformers, memory_of, questions
from ..random_adapters import draw_adapters

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, dtype="float32", quantization="int8"
)
TEXTS = ["The river runs north.", "Grain is traded for salt by the people.", "Nobody knows it."]
ROWS = (1, 5, FEW_ROWS, FEW_ROWS + 1, 300)
PATHS = {"integers": ("VNNI",), "floats": ()}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def new_model(folder, **changes):
    model = Clara.from_backbone(folder, CONFIG.replace(**changes), device="cpu")
    return draw_adapters(model, seed=4)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """As on a processor with products of integers, and as on one without."""
    if request.param == "integers" and not int8_instructions():  # PyTorch's would saturate
        monkeypatch.setattr(torch, "_int_mm", lambda one, other: one.int() @ other.int())
    monkeypatch.setattr(int8, "int8_instructions", lambda: PATHS[request.param])
    return request.param


def new_layer(inputs, outputs, *, bias=True, dtype=torch.float32):
    layer = Int8Linear(inputs, outputs, bias=bias, dtype=dtype)
    codes, scales = quantized_rows(torch.randn(outputs, inputs) / inputs**0.5)
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.scales = scales
    if bias:
        layer.bias = torch.nn.Parameter(torch.randn(outputs).to(dtype), requires_grad=False)
    return layer


def whole(layer, dtype=torch.float64):
    return layer.weight.to(dtype) * layer.scales.to(dtype)[:, None]


# Rounding


def test_codes_are_the_nearest():
    torch.manual_seed(0)
    weight = torch.randn(50, 70) * torch.logspace(-20, 10, 50)[:, None]
    weight[3] = 0
    weight[4] = 0
    weight[4, 7] = 1e-42  # half of the smallest number of bfloat16
    codes, scales = quantized_rows(weight)
    assert codes.dtype == torch.int8
    assert torch.equal(scales, scales.bfloat16().float())
    error = (codes.double() * scales.double()[:, None] - weight).abs()
    assert (error.amax(1) <= 0.501 * scales.double()).all()
    assert codes.int().abs().max() == 127
    assert scales[3] == 1
    assert not codes[3].any()
    others = codes[torch.arange(50) > 4].int().abs().amax(1)
    assert others.min() >= 126


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none(bad):
    weight = torch.ones(2, 8)
    weight[0, 3] = bad
    codes, scales = quantized_rows(weight)
    found = (codes * scales[:, None]).isfinite().all(1)
    assert found.tolist() == [False, True]


# One layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapted", [False, True])
def test_a_layer_computes_with_the_rounded_weights(path, dtype, adapted):
    """The error is at most twice that of a plain layer in the dtype, or a step of the dtype."""
    torch.manual_seed(1)
    for inputs, outputs, bias in ((48, 96, True), (33, 7, False), (1, 1, True), (130, 50, True)):
        layer = new_layer(inputs, outputs, bias=bias, dtype=dtype)
        down, up = torch.randn(4, inputs).to(dtype), torch.randn(outputs, 4).to(dtype) / 9
        weight = whole(layer)
        exact_weight = weight + 2 * up.double() @ down.double() if adapted else weight
        adapter = (down, up, 2.0) if adapted else ()
        for rows in ROWS:
            x = torch.randn(rows, inputs).to(dtype)
            own_bias = layer.bias.double() if bias else None
            exact = linear(x.double(), exact_weight, own_bias)
            with torch.no_grad():
                found = layer.adapted(x[None], *adapter)
            assert found.dtype == dtype
            assert found.shape == (1, rows, outputs)
            plain = linear(x, exact_weight.to(dtype), layer.bias)
            step = torch.finfo(dtype).eps * exact.abs().max() + 1e-4 * exact.norm()
            allowed = 2 * (plain.double() - exact).norm() + step
            assert (found[0].double() - exact).norm() < allowed, (inputs, outputs, rows)


def test_no_rows_and_rows_of_zeros(path):
    layer = new_layer(48, 96)
    with torch.no_grad():
        assert layer(torch.empty(0, 48)).shape == (0, 96)
        assert torch.equal(layer(torch.zeros(2, 48)), layer.bias.expand(2, 96))


def test_what_is_no_number_is_seen_in_its_row_alone(path):
    layer = new_layer(48, 96)
    x = torch.randn(3, 48)
    x[1, 5] = float("nan")
    with torch.no_grad():
        assert layer(x).isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_rounded_weights(path, rows, dtype):
    torch.manual_seed(2)
    layer = new_layer(48, 96, dtype=dtype)
    shapes = ((rows, 48), (4, 48), (96, 4))
    given = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [each.detach().double().requires_grad_() for each in given]
    grad = torch.randn(rows, 96)
    x, down, up = exact
    out = linear(x, whole(layer) + 0.5 * up @ down, layer.bias.double())
    expected = torch.autograd.grad(out, exact, grad.double())
    found = torch.autograd.grad(layer.adapted(*given, 0.5), given, grad.to(dtype))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        assert (one - other).norm() < tolerance * other.norm()
    alone = torch.autograd.grad(layer(given[0]), given[0], grad.to(dtype))
    assert (alone[0] - grad.double() @ whole(layer)).norm() < 2e-2 * expected[0].norm()


def test_autocast_decides_the_dtype():
    layer = new_layer(48, 96)
    x = torch.randn(60, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad[0], whole(layer, torch.float32).sum(0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rows", [5, 300])
def test_small_changes_of_an_adapter_are_not_rounded_away(path, rows):
    """Of a thousandth of the weight's norm, in bfloat16: below half a step of most results."""
    torch.manual_seed(3)
    layer = new_layer(256, 256, bias=False, dtype=torch.bfloat16)
    down, up = torch.randn(4, 256).bfloat16(), torch.randn(256, 4).bfloat16()
    change = up.double() @ down.double()
    scaling = float(1e-3 * whole(layer).norm() / change.norm())
    x = torch.randn(rows, 256).bfloat16()
    with torch.no_grad():
        made = (layer.adapted(x, down, up, scaling) - layer(x)).double()
    wanted = scaling * x.double() @ change.T
    share = (made * wanted).sum() / wanted.square().sum()
    assert share == pytest.approx(1, abs=0.1)


def test_dropout_leaves_the_layer_itself_alone(tiny_backbone):
    model = new_model(tiny_backbone("llama"), lora_dropout=0.5)
    layer = model.backbone.model.layers[0].mlp.up_proj
    x = torch.randn(60, 48, requires_grad=True)
    base, down, up = layer.get_base_layer(), layer.lora_A, layer.lora_B
    with model.adapters.active("generator"):
        layer.train()
        torch.manual_seed(5)
        found = layer(x)
        torch.manual_seed(5)
        thin = layer.lora_dropout["generator"](x) @ down["generator"].weight.T
        expected = base(x) + layer.scaling["generator"] * thin @ up["generator"].weight.T
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


# Whole models

LAYOUTS = {
    "llama": (LlamaConfig, {}),
    "untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, {"sliding_window": None}),
}


@pytest.fixture(params=[*LAYOUTS, "qwen2", "qwen3"])
def layout(request, tiny_backbone, random_backbone):
    if request.param not in LAYOUTS:
        return tiny_backbone(request.param)
    kind, settings = LAYOUTS[request.param]
    return random_backbone(kind, **settings)


def test_our_decoder_answers_as_generate_does(layout, monkeypatch):
    model = new_model(layout)
    counts, own = [], generation.decode
    monkeypatch.setattr(generation, "decode", lambda *a, **k: counts.append(1) or own(*a, **k))
    asked, memory = questions(6), memory_of(model, 6)
    settings = GenerationConfig(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    found = model.generate(asked, memory, generation_config=settings)
    assert counts == [1]
    with by_transformers(monkeypatch):
        expected = model.generate(asked, memory, generation_config=settings)
    assert counts == [1]
    assert found == expected
    assert len(set(found)) > 3


def test_the_decoder_gets_codes_and_adapters_as_they_are(tiny_backbone):
    model = new_model(tiny_backbone("qwen2"))
    with model.generating("generator") as backbone:
        query = decoder_weights(backbone).layers[1].query
        layer = backbone.model.layers[1].self_attn.q_proj
    base = layer.get_base_layer()
    assert isinstance(layer, AdaptedInt8Linear)
    assert query.weight.data_ptr() == base.weight.data_ptr()
    assert torch.equal(query.row_scales, base.scales)
    assert torch.equal(query.bias, base.bias)
    assert query.up.data_ptr() == layer.lora_B["generator"].weight.data_ptr()
    with model.generating(None) as backbone:
        assert decoder_weights(backbone).layers[1].query.up is None


def test_float_weights_are_gone(random_backbone):
    """What is held: codes, scales, and the embeddings, norms and the output head as they were."""
    for tied in (True, False):
        folder = random_backbone(LlamaConfig, tie_word_embeddings=tied)
        model = Clara.from_backbone(folder, CONFIG, device="cpu")
        held = [*model.backbone.named_parameters(), *model.backbone.named_buffers()]
        size = sum(each.nbytes for name, each in held if "lora_" not in name)
        stored = load_file(folder / "model.safetensors")
        expected = sum(each.nbytes for name, each in held if "inv_freq" in name)
        for name, weight in stored.items():
            if name.endswith("proj.weight"):
                expected += weight.numel() + 4 * len(weight)
            else:
                expected += weight.numel() * 4
        assert size == expected
        layers = [each for each in model.backbone.modules() if isinstance(each, Int8Linear)]
        assert len(layers) == 21
        assert type(model.backbone.get_output_embeddings()) is torch.nn.Linear


def test_weights_are_quantized_one_after_another(tiny_backbone, monkeypatch):
    """When the last one is read, those before it are no longer there in float32."""
    seen = []
    own = int8.quantized_rows

    def watched(weight):
        alive = [each() for each in seen]
        assert sum(each is not None for each in alive) <= 1
        seen.append(weakref.ref(weight))
        return own(weight)

    monkeypatch.setattr("clara.backbone.int8_loading.quantized_rows", watched)
    Clara.from_backbone(tiny_backbone("llama"), CONFIG, device="cpu")
    assert len(seen) == 21


def test_a_model_in_8_bits_reads_memory_of_others(tiny_backbone, tmp_path):
    model = new_model(tiny_backbone("llama"), quantization=None)
    model.save_pretrained(tmp_path)
    low = Clara.from_pretrained(tmp_path, quantization="int8", dtype="bfloat16", device="cpu")
    assert low.fingerprint == model.fingerprint
    found = low.answer(["Where is the river?"], model.compress(TEXTS), max_new_tokens=2)
    back = model.answer(["Where is the river?"], low.compress(TEXTS), max_new_tokens=2)
    assert len(found) == len(back) == 1


def test_scales_stay_exact_in_a_model_of_another_dtype():
    layer = new_layer(8, 5)
    layer.scales = layer.scales * 1e-9
    exact = layer.scales.clone()
    layer.half()
    assert layer.bias.dtype == torch.float16
    assert layer.scales.dtype == torch.float32
    assert torch.equal(layer.scales, exact)


# Refusals


def refusal(folder, **changes):
    with pytest.raises(BackboneError) as caught:
        Clara.from_backbone(folder, CONFIG.replace(**changes), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_linear_layers_are_refused(random_backbone):
    folder = random_backbone(GPT2Config, n_embd=48, n_layer=2, n_head=4)
    assert "on a CPU needs plain linear layers, it has layers of Conv1D" in refusal(folder)


def test_a_weight_of_another_shape_is_refused(random_backbone):
    folder = random_backbone(LlamaConfig)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:90].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder).startswith(f"cannot load backbone {str(folder)!r}: ")


def test_stacks_of_matrices_are_refused(random_backbone):
    """Experts of a mixture, which would stay in the dtype of the model."""
    folder = random_backbone(MixtralConfig, num_local_experts=2)
    assert "experts.gate_up_proj is a stack of matrices" in refusal(folder)


def test_a_missing_weight_is_named_as_in_files(random_backbone):
    folder = random_backbone(LlamaConfig)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks the weights {name!r} (1 in all)" in refusal(folder)


def test_a_backbone_that_is_stored_quantized_is_refused(random_backbone):
    folder = random_backbone(LlamaConfig)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(config))
    assert "it is stored quantized, and quantization='int8' asks for another" in refusal(folder)


def test_4_and_8_bits_exclude_each_other():
    for wrong in (["nf4", "int8"], "nf4+int8", "int4"):
        with pytest.raises(ValueError, match=r"^quantization must be one of null, nf4, int8; got "):
            CONFIG.replace(quantization=wrong)


def test_merging_and_saving_trained_weights_are_refused(tiny_backbone, tmp_path):
    model = new_model(tiny_backbone("llama"))
    with pytest.raises(
        ValueError, match=r"^merge_generator needs a backbone that is not quantized"
    ):
        model.merge_generator()
    with pytest.raises(ValueError, match=r"^an adapter cannot be merged into weights of 8 bits$"):
        model.adapters._layers[0].merge()
    model.owns_backbone = True
    with pytest.raises(ValueError, match="cannot be saved while that is quantized; load it"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
