"""Which dtype `dtype="auto"` takes, on processors of all kinds."""

import sys
from types import SimpleNamespace

import pytest
import torch

from clara.backbone import processor
from clara.backbone.processor import CpuDtype, ProcessorError, choose, torch_dtype
from clara.errors import ClaraError

EPYC = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n\nflags\t\t: fpu\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve i8mm bf16 dgh\n"
CPU = torch.device("cpu")


@pytest.fixture
def processor_with(monkeypatch):
    """Make this processor one with the given capabilities, as torch tells them."""
    monkeypatch.delenv(processor.VARIABLE, raising=False)

    def make(*, one_dnn=True, supported=True, cpuinfo=None, **capabilities):
        enabled = SimpleNamespace(is_available=lambda: one_dnn, enabled=True)
        monkeypatch.setattr(torch.backends, "mkldnn", enabled)
        operators = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: supported)
        monkeypatch.setattr(torch.ops, "mkldnn", operators)
        if cpuinfo is None:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        else:
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
            monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)

    return make


def test_instructions_decide(processor_with):
    processor_with(architecture="x86_64", avx2=True, avx512_f=True, avx512_bf16=False)
    assert processor.cpu_dtype() == CpuDtype(
        "float32", "PyTorch finds no fast bfloat16 on this processor"
    )
    processor_with(architecture="x86_64", avx512_bf16=True, amx_bf16=True, l2_cache_size=1)
    assert processor.cpu_dtype() == CpuDtype("bfloat16", "the processor has AMX and AVX512-BF16")
    processor_with(architecture="arm64", neon=True, bf16=True)
    assert processor.cpu_dtype() == CpuDtype("bfloat16", "the processor has Arm BF16")


@pytest.mark.parametrize("lacking", [{"one_dnn": False}, {"supported": False}])
def test_instructions_that_torch_does_not_use_do_not_count(processor_with, lacking):
    processor_with(bf16=True, **lacking)
    assert processor.bfloat16_instructions() == []


@pytest.mark.parametrize(
    ("text", "found"), [(EPYC, ["AVX512-BF16"]), (GRAVITON, ["Arm BF16"]), ("", [])]
)
def test_earlier_releases_of_torch_leave_it_to_linux(processor_with, tmp_path, text, found):
    (tmp_path / "cpuinfo").write_text(text)
    processor_with(cpuinfo=tmp_path / "cpuinfo")
    assert processor.bfloat16_instructions() == found
    processor_with(cpuinfo=tmp_path / "elsewhere")  # another system
    assert processor.bfloat16_instructions() == []


@pytest.mark.parametrize(
    ("text", "found"), [(EPYC, ("AVX512-VNNI",)), (GRAVITON, ()), ("flags: amx_int8", ("AMX",))]
)
def test_instructions_for_8_bits(processor_with, tmp_path, monkeypatch, text, found):
    def asked():
        processor._exact_int8_instructions.cache_clear()
        return processor.int8_instructions()

    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int())
    processor_with(cpuinfo=tmp_path / "cpuinfo")
    assert asked() == found
    # oneDNN that was told to use older instructions, whose sums of pairs have 16 bits.
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(max=2**21))
    assert asked() == ()
    processor_with(cpuinfo=tmp_path / "cpuinfo", one_dnn=False)
    assert asked() == ()
    processor._exact_int8_instructions.cache_clear()


def test_the_variable_wins():
    assert choose("float32", ["AMX"]) == CpuDtype("float32", "CLARA_CPU_DTYPE says so")
    assert choose("bfloat16", ["AMX"]) == CpuDtype("bfloat16", "CLARA_CPU_DTYPE says so")
    assert choose("", ["AMX"]).name == "bfloat16"
    for wanted in ("auto", "float16", "BFLOAT16"):
        message = f"^CLARA_CPU_DTYPE must be float32 or bfloat16, got '{wanted}'$"
        with pytest.raises(ProcessorError, match=message):
            choose(wanted, [])


def test_what_the_processor_cannot_do_is_refused_in_a_line():
    with pytest.raises(ProcessorError, match="CLARA_CPU_DTYPE is bfloat16, but ") as caught:
        choose("bfloat16", [])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ClaraError)


def test_only_auto_on_a_cpu_asks_the_processor(processor_with, monkeypatch):
    processor_with(amx_bf16=True)
    monkeypatch.setenv(processor.VARIABLE, "no dtype")
    gpu = torch.device("cuda")
    assert torch_dtype(None, CPU) == torch.float32
    assert torch_dtype("float16", CPU) == torch.float16
    assert torch_dtype(None, gpu) == torch_dtype("auto", gpu) == torch.bfloat16
    assert torch_dtype("float32", gpu) == torch.float32
    with pytest.raises(ProcessorError, match="got 'no dtype'"):
        torch_dtype("auto", CPU)
    monkeypatch.setenv(processor.VARIABLE, "float32")
    assert torch_dtype("auto", CPU) == torch.float32
    monkeypatch.delenv(processor.VARIABLE)
    assert torch_dtype("auto", CPU) == torch.bfloat16


def test_this_processor_is_read_as_linux_reads_it():
    """Torch's capabilities and `/proc/cpuinfo` name the same instructions."""
    if not sys.platform.startswith("linux") or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("there are not two sources to compare")
    flags = processor.linux_flags(processor._CPUINFO.read_text())
    capabilities = torch.cpu.get_capabilities()
    told = processor.names_of(name for name, value in capabilities.items() if value is True)
    assert processor.names_of(flags) == told
