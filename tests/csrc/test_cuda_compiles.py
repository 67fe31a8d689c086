"""nvcc compiles the kernels for each architecture that is released, and none of them spills."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if shutil.which("nvcc") is None:
    pytest.skip("needs nvcc", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
LISTED = (ROOT / "kernels/clara_kernels/architectures.txt").read_text()
ARCHITECTURES = re.findall(r"^\d+", LISTED, re.MULTILINE)
REGISTERS = {"few_queries": 128, "mma_queries": 255, "float_queries": 255}  # of 65,536


def compile_one(source: Path, architecture: str, folder: Path) -> str:
    """What ptxas says of each kernel."""
    command = ["nvcc", "-std=c++17", "-fatbin", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    command += [f"-arch=sm_{architecture}", str(source)]
    command += ["-o", str(folder / f"{source.stem}.{architecture}.fatbin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr, result.stderr
    return result.stderr


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """Resource usage by architecture; two compilers at a time, the longest first."""
    folder = tmp_path_factory.mktemp("cuda")
    tasks = [(source, arch) for source in SOURCES for arch in ARCHITECTURES]
    tasks.sort(key=lambda task: -task[0].stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda task: compile_one(*task, folder), tasks))
    found = dict.fromkeys(ARCHITECTURES, "")
    for (_, arch), text in zip(tasks, texts):
        found[arch] += text
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(reports, architecture):
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    kernels = re.findall(pattern, reports[architecture], re.S)
    assert len(kernels) == reports[architecture].count("Compiling entry function")
    for name in (
        "prepare",
        "inverse_norms",
        "few_queries",
        "mma_queries",
        "float_queries",
        "merge",
    ):
        assert any(name in kernel for kernel, *_ in kernels), name
    for kernel, stack, stores, loads, registers in kernels:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), kernel
        most = max((limit for name, limit in REGISTERS.items() if name in kernel), default=64)
        assert int(registers) <= most, kernel
