"""Builds `clara_kernels._C` with CMake and Ninja; everything else is in pyproject.toml.

CLARA_CUDA=AUTO|ON|OFF     AUTO, the default, compiles the CUDA sources if nvcc is there and works
CLARA_CUDA_ARCHS="80;90"   architectures to compile for, as CMAKE_CUDA_ARCHITECTURES takes them
CUDACXX, CUDA_HOME, PATH   where nvcc is looked for, in this order
MAX_JOBS or CMAKE_BUILD_PARALLEL_LEVEL   compilers at a time
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = ROOT / "kernels" / "clara_kernels" / "architectures.txt"
MODELS = ("smollm2-135m-factbook",)
"""Trained weights in `models/`, which installs bring along: `clara.model.shipped.NAMES`."""


def cuda_request() -> str:
    request = (os.environ.get("CLARA_CUDA") or "AUTO").upper()
    if request not in ("AUTO", "ON", "OFF"):
        value = os.environ["CLARA_CUDA"]
        raise SystemExit(f"error: CLARA_CUDA must be AUTO, ON or OFF, got {value!r}")
    if request == "ON" and find_nvcc() is None:
        raise SystemExit(
            "error: CLARA_CUDA=ON but there is no nvcc in CUDACXX, CUDA_HOME/bin or PATH; "
            "install the CUDA toolkit or set CLARA_CUDA=OFF"
        )
    return request


def cuda_archs() -> list[str] | None:
    """The architectures asked for; None leaves the choice to `default_archs`."""
    value = os.environ.get("CLARA_CUDA_ARCHS", "")
    archs = re.split(r"[;,\s]+", value.strip("; ,\t\n"))
    if archs == [""]:
        return None
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", arch):
            raise SystemExit(
                f"error: CLARA_CUDA_ARCHS must list numbers such as '80;90', got {value!r}"
            )
    return archs


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (os.environ.get("CUDACXX"), home and os.path.join(home, "bin", "nvcc")):
        if candidate and shutil.which(candidate):
            return shutil.which(candidate)
    return shutil.which("nvcc")


def usual_archs() -> list[int]:
    """The numbers in architectures.txt, in order."""
    return [int(number) for number in re.findall(r"^\d+", ARCHITECTURES.read_text(), re.MULTILINE)]


def default_archs(nvcc: str) -> list[str]:
    """Machine code for each usual GPU this nvcc knows, and PTX of the newest for later ones."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = {int(arch) for arch in re.findall(r"sm_(\d+)\b", listed)}
    archs = [arch for arch in usual_archs() if arch in known]
    return [f"{arch}-real" for arch in archs[:-1]] + [str(arch) for arch in archs[-1:]]


def nvcc_failure(nvcc: str) -> str | None:
    """Why `nvcc` cannot compile a kernel; None when it can."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("__global__ void probe() {}\n")
        command = [nvcc, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return str(error)
    lines = (result.stderr + result.stdout).strip().splitlines()
    return (lines[-1] if lines else "no message") if result.returncode else None


def cuda_options() -> list[str]:
    """CMake's options on CUDA, after the environment and what is installed."""
    request = cuda_request()
    archs = cuda_archs()
    nvcc = find_nvcc()
    if request == "OFF" or nvcc is None:
        return ["-DCLARA_CUDA=OFF"]
    failure = nvcc_failure(nvcc)
    if failure is None:
        archs = archs or default_archs(nvcc)
        if not archs:
            failure = f"it knows none of the architectures {usual_archs()}"
    if failure is not None:
        if request == "ON":
            raise SystemExit(f"error: CLARA_CUDA=ON but {nvcc} does not work: {failure}")
        print(f"warning: building without CUDA, {nvcc} does not work: {failure}", file=sys.stderr)
        return ["-DCLARA_CUDA=OFF"]
    return [
        "-DCLARA_CUDA=ON",
        f"-DCLARA_CUDA_ARCHS={';'.join(archs)}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]


def program(name: str, folder_attribute: str) -> str:
    """Path of `name` from the Python package of that name, else from PATH."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute)
    except (ImportError, AttributeError):
        folder = None
    path = shutil.which(name, path=folder) if folder else None
    path = path or shutil.which(name)
    if path is None:
        raise SystemExit(f"error: {name} is needed to build clara-rag: pip install {name}")
    return path


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # setuptools gives an editable install a temporary folder: nothing would be kept.
        kept = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp)
        build = kept.resolve() / "cmake"
        cmake = program("cmake", "CMAKE_BIN_DIR")
        options = [
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *cuda_options(),
        ]
        # An isolated build's tools lie in a folder that is gone the next time. CMake's cache
        # remembers where they were, so it goes; what was compiled with the same options stays.
        record = build / "configured-with.txt"
        if not record.exists() or record.read_text() != "\n".join(options):
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        record.write_text("\n".join(options))
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={program('ninja', 'BIN_DIR')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            *options,
        ]

        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS")
        for command in (
            configure,
            [cmake, "--build", str(build), *(["--parallel", jobs] if jobs else [])],
        ):
            if subprocess.run(command).returncode:
                raise SystemExit("error: clara_kernels._C did not build; the messages are above")


class BuildWithModels(build_py):
    """Puts the trained weights, where there are any, beside the modules that look for them.

    An editable install finds those of the checkout.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in MODELS:
            target = Path(self.build_lib, "clara", "weights", "models", name)
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
            if (ROOT / "models" / name).is_dir():
                shutil.copytree(ROOT / "models" / name, target)


class EditableWheel(editable_wheel):
    """An editable install that mypy and pyright can follow.

    setuptools finds packages of several folders by an import hook, which static checkers do not
    run. With one folder that holds all packages it writes that folder into a .pth file instead,
    which they read. So the packages are linked into one. The root itself cannot be that folder:
    `kernels`, `tests` and `bench` would become importable everywhere.
    """

    def finalize_options(self) -> None:
        folder = ROOT / ".editable"  # not in `build`, which people delete
        try:
            link_packages(folder)
        except OSError as error:  # Windows may not allow links
            print(f"warning: type checkers will not find the packages: {error}", file=sys.stderr)
        else:
            self.distribution.package_dir = {"": folder.relative_to(ROOT).as_posix()}
        super().finalize_options()


def link_packages(folder: Path) -> None:
    """Make `folder` hold a link to each package and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in (ROOT / "clara", ROOT / "kernels" / "clara_kernels"):
        (folder / package.name).symlink_to(package, target_is_directory=True)


cuda_request()
cuda_archs()
setup(
    ext_modules=[Extension("clara_kernels._C", [])],
    cmdclass={
        "build_ext": CMakeBuild,
        "build_py": BuildWithModels,
        "editable_wheel": EditableWheel,
    },
)
