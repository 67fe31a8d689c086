import pytest
import torch

from clara.backbone.int8 import Int8Linear
from clara.cli.errors import CommandError
from clara.cli.loading import load_model
from clara.cli.options import Quantization
from clara.cli.paths import check_device


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_processor_is_always_there(device):
    check_device(device)


def test_cuda_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(CommandError, match="'cuda:2' is not there: 2 CUDA devices are visible"):
        check_device("cuda:2")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(CommandError, match="CPU-only"):
        check_device("cuda")


def test_quantized_backbone(model):
    loaded = load_model(model, quantization=Quantization.nf4)
    assert loaded.config.quantization == "nf4"
    assert loaded.backbone.is_quantized
    loaded = load_model(model, quantization=Quantization.int8)
    assert loaded.config.quantization == "int8"
    assert any(isinstance(module, Int8Linear) for module in loaded.backbone.modules())
