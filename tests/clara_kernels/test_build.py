"""What was compiled, and that it depends on nothing it should not."""

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import clara_kernels
from clara_kernels import build, build_info

KEYS = {
    "version",
    "compiled",
    "reason",
    "compiler",
    "build_type",
    "simd_available",
    "simd",
    "cuda",
}
# Stands in for a Python that the package was not built for.
WITHOUT_COMPILED_MODULE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name == "clara_kernels._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
"""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_build_info_describes_this_build():
    info = build_info()
    assert info.keys() == KEYS
    assert info["version"] == clara_kernels.__version__ == version("clara-rag")
    assert info["compiled"] is True
    assert info["reason"] is None
    assert re.match(r"(GCC|Clang|MSVC) \d+", info["compiler"])
    assert info["build_type"] in ("Release", "Debug")
    json.dumps(info)


def test_simd_levels_are_ones_this_processor_has():
    info = build_info()
    assert info["simd"] in info["simd_available"]
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        cpu = Path("/proc/cpuinfo").read_text()
        flags = set(re.search(r"^flags\s*: (.*)$", cpu, re.M)[1].split())
        needed = {"sse2": set(), "avx2": {"avx2", "fma", "f16c"}}
        needed["avx512"] = needed["avx2"] | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
        needed["avx512vnni"] = needed["avx512"] | {"avx512_vnni"}
        if "AuthenticAMD" in cpu:  # elsewhere these products are no faster
            needed["avx512bf16"] = needed["avx512vnni"] | {"avx512_bf16"}
        expected = [name for name in needed if needed[name] <= flags]
        available = info["simd_available"]
        assert [name for name in available if name != "amx"] == expected
        # Besides the processor, the compiler has to know it and the system to allow it.
        if "amx" in available:
            assert needed["avx512vnni"] | {"amx_tile", "amx_bf16"} <= flags
            assert available[-1] == "amx"


def test_the_environment_chooses_an_instruction_set(monkeypatch):
    monkeypatch.delenv("CLARA_SIMD", raising=False)
    assert build_info()["simd"] == build_info()["simd_available"][-1]
    monkeypatch.setenv("CLARA_SIMD", build_info()["simd_available"][0])
    assert build_info()["simd"] == build_info()["simd_available"][0]


def test_cuda_is_described_when_it_was_compiled():
    cuda = build_info()["cuda"]
    if cuda is None:
        with pytest.raises(RuntimeError, match="built without CUDA"):
            build.cuda_device_code()
        return
    assert re.fullmatch(r"\d+\.\d", cuda["version"])
    assert cuda["architectures"]
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", name) for name in cuda["architectures"])
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        binary, ptx = build.cuda_device_code(0)
        assert binary // 10 == major
        assert binary <= 10 * major + minor
        assert ptx <= binary
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            build.cuda_device_code(10_000)
    else:
        with pytest.raises(RuntimeError, match="CUDA"):
            build.cuda_device_code(0)


def test_compiled_module_neither_links_nor_names_torch():
    contents = Path(build.native.__file__).read_bytes()
    for name in (b"libtorch", b"libc10", b"N5torch", b"N2at", b"N3c10", b"libcudart.so"):
        assert name not in contents, name


def test_build_info_says_why_nothing_was_compiled(monkeypatch):
    monkeypatch.setattr(build, "native", None)
    info = build_info()
    assert info.keys() == KEYS
    assert info["compiled"] is False
    assert info["cuda"] is None
    assert re.search(r"clara_kernels/_C\..* does not exist", info["reason"])
    with pytest.raises(RuntimeError, match="built without CUDA"):
        build.cuda_device_code()


def test_without_the_compiled_module_the_reference_serves():
    code = WITHOUT_COMPILED_MODULE + (
        "import json, torch, clara_kernels\n"
        "scores, rows = clara_kernels.cosine_topk(torch.eye(2), torch.eye(2).flip(0), 1)\n"
        "compiled = clara_kernels.build_info()['compiled']\n"
        "print(json.dumps([scores.tolist(), rows.tolist(), compiled]))\n"
    )
    assert json.loads(run(code)) == [[[1.0], [1.0]], [[1], [0]], False]


def test_a_broken_compiled_module_raises():
    code = WITHOUT_COMPILED_MODULE.replace("ModuleNotFoundError(", "ImportError(").replace(
        "No module named", "undefined symbol in"
    )
    code += (
        "try:\n    import clara_kernels\n"
        "except ImportError as error:\n    print(error)\n"
        "else:\n    raise SystemExit('imported')\n"
    )
    assert "undefined symbol" in run(code)


def test_import_needs_torch_alone():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import clara_kernels\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))\n"
    )
    loaded = set(eval(run(code)))
    assert loaded <= {"clara_kernels", "torch"}


def test_public_names_are_functions():
    """Folders bear the names of the functions in them; the package's attributes are the latter."""
    for name in clara_kernels.__all__:
        assert callable(getattr(clara_kernels, name)), name
