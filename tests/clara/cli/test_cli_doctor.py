import json
import re
import sys
from pathlib import Path

import pytest
import torch

import clara_kernels
from clara.cli.doctor import _cpu_dtype, _cpu_int8
from clara.reports import diagnosis
from clara.reports.remedies import BUILD, USES, Check, checks, conclusion


@pytest.fixture
def report():
    return diagnosis.diagnose(clara_kernels.__version__, _cpu_dtype(), _cpu_int8())


def test_json(clara):
    printed = clara("doctor", "--json").stdout
    assert len(printed.splitlines()) == 1
    found = json.loads(printed)
    assert {name: type(value) for name, value in found.items()} == {
        "clara": str,
        "python": str,
        "platform": str,
        "packages": dict,
        "missing_packages": dict,
        "missing_extras": dict,
        "torch_cuda": str if torch.version.cuda else type(None),
        "torch_threads": int,
        "cpu_dtype": dict,
        "cpu_int8": list,
        "processors": int,
        "gpu": bool,
        "kernels": dict,
        "devices": list,
        "operators": dict,
        "checks": list,
    }
    assert {each["state"] for each in found["checks"]} <= {"fine", "missing", "slow"}
    assert all(set(each) == {"state", "text", "mend"} for each in found["checks"])
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
    report["missing_packages"] = {"triton": "triton>=3.5"}
    text = "triton is missing; without it a GPU would run the PyTorch references"
    assert Check("missing", text, "pip install 'triton>=3.5'") in checks(report)


def test_for_readers(clara, report):
    *lines, blank, last = clara("doctor").stdout.splitlines()
    assert any(line.startswith("fine     torch ") for line in lines)
    for name, served in report["operators"].items():
        assert f"fine     {name}: CPU {served['cpu']}, CUDA {served['cuda']}" in lines
    assert lines == [str(each) for each in checks(report)]
    assert (blank, last) == ("", conclusion(checks(report)))


def test_cpu_only_builds_are_said_plainly(report):
    report["torch_cuda"] = None
    report["kernels"]["cuda"] = None
    report["gpu"] = False
    shown = checks(report)
    assert Check("fine", "PyTorch: CPU-only build, a GPU would not be used") in shown
    assert Check("fine", "clara_kernels: CPU-only build, no CUDA code") in shown
    report["gpu"] = True
    text = "PyTorch: CPU-only build, the GPU of this machine is not used"
    assert Check("slow", text, "pip install --force-reinstall torch") in checks(report)


def test_module_that_was_not_compiled(report):
    report["kernels"].update(compiled=False, reason="_C.so does not exist")
    text = "clara_kernels: not compiled (_C.so does not exist), searches run in PyTorch"
    assert Check("slow", text, BUILD) in checks(report)


def test_module_that_does_not_load(report, clara, monkeypatch):
    broken = {"compiled": False, "reason": None, "cuda": None, "error": "undefined symbol: x"}
    monkeypatch.setattr(diagnosis, "build_report", lambda: broken)
    found = json.loads(clara("doctor", "--json").stdout)
    assert found["operators"] == {}
    printed = clara("doctor").stdout
    assert (
        "\nmissing  clara_kernels: the compiled module does not load (undefined symbol: x): pip"
        in (printed)
    )
    assert printed.endswith(
        "\n1 missing; a line ends with the command that fixes it, if there is one\n"
    )


@pytest.mark.parametrize(
    ("code", "said", "state", "mend"),
    [
        ("sm_90", "runs the compiled sm_90", "fine", None),
        (None, "has no code in the compiled module", "slow", f"CLARA_CUDA_ARCHS=90 {BUILD}"),
    ],
)
def test_devices(report, code, said, state, mend):
    report["kernels"]["cuda"] = {"version": "13.0", "architectures": ["sm_80"]}
    device = {"device": "cuda:0", "name": "GPU", "architecture": "sm_90", "compiled_code": code}
    report["devices"] = [device]
    shown = checks(report)
    assert Check(state, f"cuda:0: GPU (sm_90), {said}", mend) in shown
    assert Check("fine", "CUDA devices: none visible") not in shown
    report["kernels"]["cuda"] = None
    text = "clara_kernels: CPU-only build, searches on the GPU run in PyTorch"
    assert Check("slow", text, f"CLARA_CUDA=ON {BUILD}") in checks(report)


def test_a_gpu_that_is_not_seen(report, monkeypatch):
    report.update(torch_cuda="13.0", gpu=True, devices=[])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = "CUDA devices: none visible, though there is a driver; see what nvidia-smi says"
    assert Check("slow", text, "unset CUDA_VISIBLE_DEVICES") in checks(report)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Check("slow", text) in checks(report)


@pytest.mark.parametrize(
    ("threads", "processors", "mend"),
    [(1, 1, None), (1, 2, None), (4, 8, None), (1, 8, "export OMP_NUM_THREADS=8")],
)
def test_too_few_threads_are_slow(report, threads, processors, mend):
    report.update(torch_threads=threads, processors=processors)
    text = f"CPU threads: {threads}, on {processors} processors"
    assert Check("slow" if mend else "fine", text, mend) in checks(report)


def test_what_dtype_auto_takes_and_why(report, clara, monkeypatch):
    report["cpu_int8"] = ["AMX", "AVX-VNNI"]
    text = "CPU instructions for quantization int8: AMX and AVX-VNNI"
    assert Check("fine", text) in checks(report)
    report["cpu_int8"] = []
    text = "CPU instructions for quantization int8: none that PyTorch uses"
    assert Check("fine", text) in checks(report)
    report["cpu_dtype"] = {"auto": "bfloat16", "reason": "the processor has Arm BF16"}
    text = "CPU dtype: auto is bfloat16, because the processor has Arm BF16"
    assert Check("fine", text) in checks(report)
    monkeypatch.setenv("CLARA_CPU_DTYPE", "float32")
    text = "CPU dtype: auto is float32, because CLARA_CPU_DTYPE says so"
    assert str(Check("fine", text)) in clara("doctor").stdout.splitlines()
    monkeypatch.setenv("CLARA_CPU_DTYPE", "float8")
    text = "CPU dtype: CLARA_CPU_DTYPE must be float32 or bfloat16, got 'float8'"
    shown = clara("doctor").stdout.splitlines()
    assert str(Check("missing", text, "unset CLARA_CPU_DTYPE")) in shown
    found = json.loads(clara("doctor", "--json").stdout)
    assert found["cpu_dtype"]["auto"] is None


def test_extras_say_what_they_are_for_and_how_to_get_them(report):
    report["missing_extras"] = {
        "train": {"datasets": "datasets>=3.0", "accelerate": "accelerate>=1.1"},
        "flash": {"flash-attn": "flash-attn>=2.8"},
        "dev": {"mypy": "mypy>=1.13"},
    }
    (missing,) = [each for each in checks(report) if each.state == "missing"]
    assert missing.text == "datasets and accelerate, for `clara train`"
    assert missing.mend == "pip install 'datasets>=3.0' 'accelerate>=1.1'"
    report["devices"] = [
        {"device": "cuda:0", "name": "G", "architecture": "sm_90", "compiled_code": "sm_90"}
    ]
    assert len([each for each in checks(report) if each.state == "missing"]) == 2


def test_nothing_wrong_is_said_too():
    assert conclusion([Check("fine", "a")]) == "Everything is fine."


def test_every_extra_for_users_has_a_purpose():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", table, re.MULTILINE))
    assert extras - {"dev", "docs"} == set(USES)


def test_missing_extras(monkeypatch):
    installed = {"bitsandbytes": "1.0", "torch": "2.10.0+cpu", "peft": "0.1"}
    monkeypatch.setattr(diagnosis, "version", installed.get)
    assert "torch" not in diagnosis.missing_packages()
    assert diagnosis.missing_packages()["peft"] == "peft>=0.18"  # too old
    assert diagnosis.missing_packages()["typer"] == "typer>=0.15"
    missing = diagnosis.missing_extras()
    assert missing["train"] == {"datasets": "datasets>=3.0", "accelerate": "accelerate>=1.1"}
    assert "quant" not in missing
    assert missing["gguf"] == {"gguf": "gguf>=0.17"}
    installed.update(datasets="1", gguf="1")
    missing = diagnosis.missing_extras()
    assert missing["train"] == {"datasets": "datasets>=3.0", "accelerate": "accelerate>=1.1"}
    installed.update(datasets="3.1")
    assert diagnosis.missing_extras()["train"] == {"accelerate": "accelerate>=1.1"}
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
