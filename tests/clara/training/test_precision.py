"""Mixed precision, quantized backbones and sharded ones."""

import json

import pytest
import torch

from clara import Clara
from clara.backbone import processor
from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.examples import ExampleFile, pretraining_example
from clara.training.arguments import training_arguments
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder
from clara.training.run import _model, run
from clara.training.settings import RunSettings

from .runs import losses, settings, weights


@pytest.fixture
def batch_of(training_data):
    def make(model):
        examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)[:6]
        return CompressionCollator(Encoder(model.tokenizer, model.config, None))(examples)

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_autocast_is_near_float32(make_model, batch_of, dtype, weight):
    objective = CompressionObjective(make_model(), alignment_weight=weight)
    batch = batch_of(objective.model)

    def step(enabled):
        objective.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            sums = objective(batch)
        loss = sum(sums.values())
        loss.backward()
        grads = [p.grad.flatten() for p in objective.parameters() if p.requires_grad]
        assert all(g.dtype == torch.float32 for g in grads)
        return loss.item(), torch.cat(grads)

    exact, gradient = step(False)
    loss, rounded = step(True)
    assert loss == pytest.approx(exact, rel=0.02)
    assert torch.cosine_similarity(gradient, rounded, dim=0) > 0.98


def test_a_run_in_bfloat16(tiny_backbone, training_data, tmp_path):
    data = training_data / "pretrain.jsonl"
    curves = {}
    for name, options in (("plain", {}), ("mixed", {"bf16": True, "use_cpu": True})):
        values = settings(
            tiny_backbone("llama"),
            data,
            tmp_path / name,
            config={"lora_dropout": 0.0},
            max_steps=6,
            **options,
        )
        run("pretrain", RunSettings(**values))
        curves[name] = losses(tmp_path / name)
    assert curves["mixed"] != curves["plain"]
    assert curves["mixed"] == pytest.approx(curves["plain"], rel=0.05)


def test_adapters_are_kept_in_float32_over_a_bfloat16_backbone(
    tiny_backbone, training_data, tmp_path
):
    values = settings(
        tiny_backbone("llama"),
        training_data / "pretrain.jsonl",
        tmp_path / "run",
        config={"dtype": "bfloat16"},
        max_steps=4,
        learning_rate=1e-5,  # far below bfloat16's precision
    )
    outcome = run("pretrain", RunSettings(**values))
    state = weights(outcome.model)
    assert {value.dtype for value in state.values()} == {torch.float32}
    up = [value for name, value in state.items() if name.startswith(GENERATOR) and "lora_B" in name]
    assert all(value.any() for value in up)
    down = [v for n, v in state.items() if n.startswith(COMPRESSOR) and "lora_A" in n]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in down)
    assert Clara.from_pretrained(outcome.model).dtype == torch.bfloat16


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_is_bfloat16_on_a_cpu_only_with_autocast(
    tiny_backbone, training_data, tmp_path, monkeypatch, bf16, dtype
):
    monkeypatch.delenv(processor.VARIABLE, raising=False)
    monkeypatch.setattr(processor, "bfloat16_instructions", lambda: ["AMX"])
    data = training_data / "pretrain.jsonl"
    config = {"dtype": "auto"}
    values = settings(
        tiny_backbone("llama"), data, tmp_path / "run", config=config, bf16=bf16, use_cpu=True
    )
    made = RunSettings(**values)
    model = _model(made, training_arguments(made))
    assert model.dtype == dtype
    assert model.config.dtype == "auto"
    parameters = model.adapters.parameters(COMPRESSOR).values()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


@pytest.mark.parametrize(
    ("stage", "quantization"), [("pretrain", "nf4"), ("end-to-end", "nf4"), ("pretrain", "int8")]
)
def test_a_quantized_backbone(tiny_backbone, training_data, tmp_path, stage, quantization):
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    data = training_data / ("pretrain.jsonl" if stage == "pretrain" else "ranking.jsonl")
    values = settings(
        tiny_backbone("llama"),
        data,
        tmp_path / "run",
        config={"quantization": quantization, "lora_dropout": 0.0},
        max_steps=6,
        learning_rate=2e-2,
        gradient_checkpointing=True,
    )
    outcome = run(stage, RunSettings(**values))
    curve = list(losses(tmp_path / "run").values())
    assert curve[-1] < curve[0]
    loaded = Clara.from_pretrained(outcome.model)
    assert loaded.config.quantization == quantization
    assert loaded.compress(["The mill was built by Ada."]).memory.isfinite().all()
    assert json.loads((outcome.model / "config.json").read_text())["quantization"] == quantization
