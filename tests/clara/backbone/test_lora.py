"""LoRA layers that merge on the fly, and computing memory rows alone."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

import clara.backbone.lora
from clara import Clara, ClaraConfig
from clara.backbone.lora import FLOAT32_ROWS, MERGE_ROWS, MergingLinear
from clara.backbone.memory_rows import last_layer, restricted_to_rows
from clara.text.packing import compressor_input, pack
from clara.text.passages import as_documents, prepare_passages
from clara_kernels import build_info

from ..new_models import new_model

CONFIG = ClaraConfig(document_length=64, dtype="float32")


@pytest.fixture
def layer(tiny_backbone):
    """A LoRA layer of a compressor with weights that are not zero."""
    model = new_model(tiny_backbone("llama"), CONFIG, "cpu")
    found = next(m for m in model.modules() if isinstance(m, MergingLinear))
    with torch.no_grad():
        found.lora_B["compressor"].weight.normal_(std=0.1)
    with model.adapters.active("compressor"):
        yield found


@pytest.fixture
def linears(monkeypatch):
    """Products that the layer makes itself, and does not leave to peft."""
    calls = []

    def counted(original):
        return lambda *a: calls.append(1) or original(*a)

    for name in ("linear", "adapted_linear"):
        made = counted(getattr(clara.backbone.lora, name))
        monkeypatch.setattr(clara.backbone.lora, name, made)
    return calls


@pytest.fixture(params=["all", "avx512"])
def instructions(request, monkeypatch):
    """With and without products of bfloat16 in our own module, where the processor has them."""
    if request.param == "all":
        return
    if build_info()["simd"] != "avx512bf16":
        pytest.skip("this processor or build has no kernel to leave out")
    monkeypatch.setenv("CLARA_SIMD", request.param)


@pytest.mark.parametrize("rows", [1, MERGE_ROWS - 1, MERGE_ROWS, 3 * MERGE_ROWS + 1])
def test_equals_peft_on_both_sides_of_the_switch(layer, linears, rows):
    x = torch.randn(1, rows, layer.in_features)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), Linear.forward(layer, x), rtol=1e-5, atol=1e-5)
    assert linears


def low_precision(layer, norm):
    """Make a layer one of bfloat16 whose adapter's change has a norm relative to the weight's."""
    weight, down = layer.base_layer.weight, layer.lora_A["compressor"].weight
    up, scaling = layer.lora_B["compressor"].weight, layer.scaling["compressor"]
    with torch.no_grad():
        up.mul_(norm * weight.norm() / (scaling * up @ down).norm())
    layer.to(torch.bfloat16)
    return scaling * up.double() @ down.double()


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("norm", [1e-3, 1e-2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (FLOAT32_ROWS + 1,), (2, 3 * MERGE_ROWS)])
def test_bfloat16_keeps_the_adapters_change(layer, linears, norm, bias, shape):
    """Peft rounds before it adds the change, and loses half of one of a thousandth.

    Ours rounds once, with a bias twice.
    """
    if bias:
        layer.base_layer.bias = nn.Parameter(torch.randn(layer.out_features), requires_grad=False)
    change = low_precision(layer, norm)
    x = torch.randn(500 // shape[-1] + 1, *shape, layer.in_features, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = torch.stack([Linear.forward(layer, part) for part in x]).double()
        assert not linears
        ours = torch.stack([layer(part) for part in x])
    assert linears
    assert ours.dtype == torch.bfloat16
    own = layer.base_layer
    base = x.double() @ own.weight.double().T + (own.bias.double() if bias else 0)
    added = x.double() @ change.T
    error, allowed = (((each - base - added).norm()) for each in (ours.double(), theirs))
    assert error <= (1.35 if bias else 1) * allowed
    kept = ((ours - base) * added).sum() / added.square().sum()
    assert kept == pytest.approx(1, abs=0.15)


def test_steps_in_bfloat16_see_the_adapters_change(layer):
    """In both directions: the outputs, and the gradient of the inputs."""
    change = low_precision(layer, 1e-3)
    x = torch.randn(600, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    given = torch.randn(600, layer.out_features, dtype=torch.bfloat16)
    out = layer(x)
    assert "AdaptedProduct" in str(out.grad_fn)
    out.backward(given)
    weight = layer.base_layer.weight.double()
    for found, base, added in (
        (out.detach(), x.detach().double() @ weight.T, x.detach().double() @ change.T),
        (x.grad, given.double() @ weight, given.double() @ change),
    ):
        kept = ((found.double() - base) * added).sum() / added.square().sum()
        assert kept == pytest.approx(1, abs=0.15)


def adapter_to_train(layer):
    sides = layer.lora_A, layer.lora_B
    return [side["compressor"].weight.requires_grad_() for side in sides]


def test_gradients_of_adapters_in_float32_are_not_rounded_on_the_way(layer):
    """A step under autocast: products in bfloat16, adapters in float32.

    PyTorch's product would be rounded to bfloat16 before it becomes float32.
    """
    if build_info()["simd"] != "avx512bf16":
        pytest.skip("this processor or build has no such kernel")
    torch.manual_seed(0)
    down, up = adapter_to_train(layer)
    x = torch.randn(600, layer.in_features, dtype=torch.bfloat16)
    given = torch.randn(600, layer.out_features, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.requires_grad_())
    out.backward(given)
    for each in (down, up):
        assert each.grad.dtype == torch.float32
        assert (each.grad != each.grad.bfloat16()).float().mean() > 0.9
    scaling = layer.scaling["compressor"]
    low_down, low_up = (each.detach().bfloat16().double() for each in (down, up))
    exact = (
        scaling * (given.double() @ low_up).T @ x.detach().double(),
        scaling * given.double().T @ (x.detach().double() @ low_down.T),
    )
    for each, wanted in zip((down, up), exact):
        assert (each.grad.double() - wanted).norm() <= 2**-8 * wanted.norm()


@pytest.mark.usefixtures("instructions")
def test_inputs_with_gaps_between_rows_get_the_same_gradients(layer):
    """The kernels read rows one behind the other."""
    torch.manual_seed(0)
    wide = torch.randn(120, 2 * layer.in_features, dtype=torch.bfloat16)
    given = torch.randn(120, layer.out_features, dtype=torch.bfloat16)
    down, up = adapter_to_train(layer)
    found = []
    for x in (wide[:, ::2], wide[:, ::2].contiguous()):
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.backward(given)
        found.append([x.grad, down.grad, up.grad])
        down.grad = up.grad = None
    for gap, dense in zip(*found):
        assert (gap.double() - dense.double()).norm() <= 2**-7 * dense.double().norm()


def test_odd_ranks_in_bfloat16_are_left_to_pytorch(layer, monkeypatch):
    """Not to the reference of our own product, which converts the weight for each call."""
    monkeypatch.delattr(clara.backbone.lora, "adapted_linear")
    down, up = layer.lora_A["compressor"], layer.lora_B["compressor"]
    with torch.no_grad():
        down.weight = nn.Parameter(down.weight[:3].contiguous())
        up.weight = nn.Parameter(up.weight[:, :3].contiguous())
        change = low_precision(layer, 1e-2)
        x = torch.randn(60, layer.in_features, dtype=torch.bfloat16)
        made = layer(x)
    base = x.double() @ layer.base_layer.weight.double().T
    kept = ((made - base) * (x.double() @ change.T)).sum() / (x.double() @ change.T).square().sum()
    assert kept == pytest.approx(1, abs=0.15)


def test_steps_by_pytorch_do_not_round_the_scaling(layer, monkeypatch):
    """As before there were products of our own: the change is scaled as it is summed."""
    monkeypatch.setattr(clara.backbone.lora, "trains_here", lambda *tensors: False)
    torch.manual_seed(0)
    layer.to(torch.bfloat16)
    vars(layer)["scaling"]["compressor"] = scaling = 1 + 2**-8  # in bfloat16 it would be 1
    down, up = layer.lora_A["compressor"].weight, layer.lora_B["compressor"].weight
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        down.copy_(torch.eye(*down.shape))  # so that x A' is not rounded
        up.normal_()
    x = torch.randn(70, layer.in_features).sign().bfloat16().requires_grad_()
    exact = scaling * x.detach().double()[:, : down.shape[0]] @ up.detach().double().T
    assert (layer(x).double() - exact).norm() <= 2**-9 * exact.norm()


@pytest.mark.parametrize(
    "case", ["dropout", "trained base", "mixed dtypes", "float64", "disabled", "autocast"]
)
def test_leaves_to_peft_what_it_must(layer, linears, case):
    x = torch.randn(1, 2 * MERGE_ROWS, layer.in_features)
    if case == "dropout":
        layer.train()
        assert layer.lora_dropout["compressor"].p > 0
        layer(x)
        layer.eval()
    elif case == "trained base":
        layer.base_layer.weight.requires_grad_(True)
        layer(x)
        layer.base_layer.weight.requires_grad_(False)
    elif case == "mixed dtypes":
        with pytest.raises(RuntimeError):
            layer(x.double())  # as peft itself
    elif case == "float64":
        with torch.no_grad():
            layer.double()(x.double())
    elif case == "disabled":
        vars(layer)["_disable_adapters"] = True
        with torch.no_grad():
            torch.testing.assert_close(layer(x), layer.base_layer(x))
    else:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)
    assert not linears


def gradients(forward, layer, x, seed):
    """Output, and gradients in x, A and B, of a random upstream gradient."""
    layer.zero_grad()
    own = layer.lora_A["compressor"].weight, layer.lora_B["compressor"].weight
    for weight in own:
        weight.requires_grad_(True)
    x = x.detach().requires_grad_(x.requires_grad)
    out = forward(x)
    generator = torch.Generator().manual_seed(seed)
    out.backward(torch.randn(out.shape, generator=generator).to(out))
    return [out.detach(), *([x.grad] if x.requires_grad else []), *(w.grad.clone() for w in own)]


@pytest.mark.parametrize("shape", [(1, 7), (2, 3, 5), (4,)])
@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_gradients_equal_pefts(layer, linears, shape, needs_x, bias, contiguous):
    if bias:
        layer.base_layer.bias = nn.Parameter(torch.randn(layer.out_features), requires_grad=False)
    x = torch.randn(*shape, layer.in_features)
    if not contiguous:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    x.requires_grad_(needs_x)
    expected = gradients(lambda given: Linear.forward(layer, given), layer, x, 1)
    assert not linears
    for found, value in zip(gradients(layer, layer, x, 1), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
    assert linears


def test_gradients_under_autocast_are_as_exact_as_pefts(layer):
    """In bfloat16, beside float32."""
    x = torch.randn(1, 33, layer.in_features, requires_grad=True)
    exact = gradients(lambda given: Linear.forward(layer, given), layer, x, 2)

    def under_autocast(forward):
        def go(given):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(given)

        return gradients(go, layer, x, 2)

    ours = under_autocast(layer)
    theirs = under_autocast(lambda given: Linear.forward(layer, given))
    for value, one, other in zip(exact, ours, theirs, strict=True):
        assert one.dtype == other.dtype
        error, allowed = ((each.float() - value).norm() for each in (one, other))
        assert error < 2 * allowed
    assert layer.lora_A["compressor"].weight.grad.dtype == torch.float32


def test_quantized_layers_keep_their_own_adapters(tiny_backbone, linears):
    config = ClaraConfig(document_length=64, quantization="nf4", dtype="float32")
    model = Clara.from_backbone(tiny_backbone("llama"), config, device="cpu")
    assert len(model.adapters._layers) == 21
    assert not any(isinstance(layer, MergingLinear) for layer in model.adapters._layers)
    model.compress(["a text of some length"] * 2 * MERGE_ROWS, batch_tokens=10_000)
    assert not linears


def test_memory_rows_alone_are_the_same_rows():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(1, 9, 4, requires_grad=True)
    rows = torch.tensor([2, 5, 8])
    full = body(x)
    with restricted_to_rows([body], rows):
        part = body(x)
    torch.testing.assert_close(part[:, rows], full[:, rows])
    rest = torch.ones(9, dtype=torch.bool)
    rest[rows] = False
    assert not part[:, rest].any()
    for output in (full[:, rows], part[:, rows]):
        x.grad = None
        output.square().sum().backward()
        torch.testing.assert_close(x.grad[:, rest], torch.zeros(1, 6, 4))
    assert not body._forward_hooks
    assert not body._forward_pre_hooks


def test_hooks_go_when_the_block_fails():
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="stop"), restricted_to_rows([layer], torch.tensor([0])):
        raise RuntimeError("stop")
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_the_shortcut_is_exact_in_every_family(tiny_backbone, family):
    model = new_model(tiny_backbone(family), CONFIG, "cpu")
    with torch.no_grad():
        for parameter in model.adapters.parameters("compressor").values():
            parameter.normal_(std=0.1)
    texts = ["The coastline is 580 km long.", "A", "Two words here, and a few more of them."]
    passages = prepare_passages(
        model.tokenizer, as_documents(texts), limit=model.config.document_length, overflow="error"
    )
    m = model.config.memory_tokens
    inputs = [compressor_input(p.tokens, bos=1, eos=2, n_memory=m) for p in passages]
    (batch,) = pack(inputs, batch_tokens=10_000, device=model.device)
    assert last_layer(model.backbone.base_model) is not None
    with torch.no_grad():
        full = model.encode(batch, "compressor")
        short = model.encode(batch, "compressor", memory_only=True)
    rows = batch.memory_rows
    torch.testing.assert_close(short[rows], full[rows], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(short, full)  # the other rows were left out


def test_an_unknown_architecture_has_no_shortcut():
    assert last_layer(nn.Linear(2, 2)) is None
    body = nn.Module()
    body.layers = nn.ModuleList([nn.Linear(2, 2)])
    assert last_layer(body) is None
