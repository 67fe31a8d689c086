import json
import sys

import pytest
import torch

import clara_kernels
from clara.cli import diagnosis


@pytest.fixture
def report():
    return diagnosis.diagnose()


def test_json(clara):
    printed = clara("doctor", "--json").stdout
    assert len(printed.splitlines()) == 1
    found = json.loads(printed)
    assert {name: type(value) for name, value in found.items()} == {
        "clara": str,
        "python": str,
        "platform": str,
        "packages": dict,
        "missing_extras": dict,
        "torch_cuda": str if torch.version.cuda else type(None),
        "torch_threads": int,
        "kernels": dict,
        "devices": list,
        "operators": dict,
    }
    assert found["packages"]["torch"] == torch.__version__
    assert set(found["packages"]) >= {"triton", "transformers", "peft", "bitsandbytes"}
    assert found["kernels"] == {**clara_kernels.build_info(), "error": None}
    assert len(found["devices"]) == torch.cuda.device_count()


def searched_on_gpu():
    return diagnosis.COMPILED if clara_kernels.build_info()["cuda"] else diagnosis.REFERENCE


def test_operators_are_those_of_the_package(report):
    operators = set(report["operators"])
    assert operators <= set(clara_kernels.__all__)
    assert operators >= {"cosine_topk", "cosine_rerank", "memory_attention", "quantize_memory"}
    compiled = clara_kernels.build_info()["compiled"]
    served = report["operators"]["cosine_topk"]["cpu"]
    assert served == (diagnosis.COMPILED if compiled else diagnosis.REFERENCE)
    assert report["operators"]["select_topk"]["cpu"] == diagnosis.REFERENCE
    assert report["operators"]["sparsemax"]["cpu"] == diagnosis.SERVED["cpu"]
    on_gpu = {name: served["cuda"] for name, served in report["operators"].items()}
    assert on_gpu.pop("cosine_topk") == on_gpu.pop("cosine_rerank") == searched_on_gpu()
    assert set(on_gpu.values()) == {diagnosis.SERVED["triton"]}


def test_a_gpu_without_triton_runs_the_references(report, monkeypatch):
    monkeypatch.setattr("clara_kernels.dispatch.has_triton", lambda: False)
    served = diagnosis.operators(report["kernels"])
    assert {each["cuda"] for each in served.values()} == {diagnosis.REFERENCE, searched_on_gpu()}
    report["packages"]["triton"] = None
    expected = "triton is missing: a GPU would run the PyTorch references"
    assert expected in diagnosis.lines(report)


def test_for_readers(clara, report):
    printed = clara("doctor").stdout
    assert f"torch {torch.__version__}" in printed
    for name, served in report["operators"].items():
        assert f"{name}: CPU {served['cpu']}, CUDA {served['cuda']}\n" in printed


def test_cpu_only_builds_are_said_plainly(report):
    report["torch_cuda"] = None
    report["kernels"]["cuda"] = None
    shown = diagnosis.lines(report)
    assert "PyTorch: CPU-only build, a GPU would not be used" in shown
    assert "clara_kernels: CPU-only build, no CUDA code" in shown


def test_module_that_was_not_compiled(report):
    report["kernels"].update(compiled=False, reason="_C.so does not exist")
    assert "clara_kernels: not compiled: _C.so does not exist" in diagnosis.lines(report)


def test_module_that_does_not_load(report, clara, monkeypatch):
    broken = {"compiled": False, "reason": None, "cuda": None, "error": "undefined symbol: x"}
    monkeypatch.setattr(diagnosis, "build_report", lambda: broken)
    found = json.loads(clara("doctor", "--json").stdout)
    assert found["operators"] == {}
    printed = clara("doctor").stdout
    assert "the compiled module does not load: undefined symbol: x" in printed


@pytest.mark.parametrize(
    ("code", "said"),
    [("sm_90", "runs the compiled sm_90"), (None, "has no code in the compiled module")],
)
def test_devices(report, code, said):
    device = {"device": "cuda:0", "name": "GPU", "architecture": "sm_90", "compiled_code": code}
    report["devices"] = [device]
    shown = diagnosis.lines(report)
    assert f"cuda:0: GPU (sm_90), {said}" in shown
    assert "CUDA devices: none visible" not in shown


def test_missing_extras(monkeypatch):
    installed = {"bitsandbytes": "1.0"}
    monkeypatch.setattr(diagnosis, "version", installed.get)
    missing = diagnosis.missing_extras()
    assert missing["train"] == ["datasets", "accelerate"]
    assert "quant" not in missing
    assert missing["gguf"] == ["gguf"]
    installed.update(datasets="1", gguf="1")
    missing = diagnosis.missing_extras()
    assert missing["train"] == ["accelerate"]
    assert "gguf" not in missing


def test_source_tree_that_pip_does_not_know(monkeypatch):
    monkeypatch.setattr(diagnosis, "DISTRIBUTION", "no-such-distribution")
    assert diagnosis.missing_extras() == {}


@pytest.mark.parametrize(("binary", "code"), [(90, "sm_90"), (None, None)])
def test_cuda_devices_are_asked_what_they_run(monkeypatch, binary, code):
    def device_code(number):
        if binary is None:
            raise RuntimeError("no code for this GPU")
        return binary, 120

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr("clara_kernels.build.cuda_device_code", device_code)
    device = {"device": "cuda:0", "name": "H100", "architecture": "sm_90"}
    assert diagnosis.devices({"cuda": {"version": "13.0"}}) == [{**device, "compiled_code": code}]
    assert diagnosis.devices({"cuda": None}) == [{**device, "compiled_code": None}]


def test_compiled_module_that_fails_to_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "clara_kernels", None)
    report = diagnosis.build_report()
    assert not report["compiled"]
    assert "clara_kernels" in report["error"]
