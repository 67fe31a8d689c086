"""The distribution as its users get it: a wheel with every file, and builds that fail clearly."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from clara.model import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"clara": "clara", "clara_kernels": "kernels/clara_kernels"}
SOURCES = ["pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "README.md"]


# The module of a package, where it is not called as the package is. The trainer of transformers,
# which ours is built on, imports accelerate.
MODULES = {
    "accelerate": "transformers",
    "faiss-cpu": "faiss",
    "flash-attn": "flash_attn",
    "python-docx": "docx",
}
# What people run on the sources, which no module imports.
TOOLS = {"dev", "docs"}


def package_files(tree: Path) -> set[str]:
    """Every file of both packages, as a path inside the wheel."""
    return {
        f"{name}/{path.relative_to(tree / folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The sources alone, so that nothing an earlier build left behind takes part."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    for name in ("clara", "kernels", "csrc"):
        ignored = shutil.ignore_patterns("__pycache__", "_C.*")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    (tree / "tests").mkdir()  # which no distribution takes
    (tree / "tests" / "test_nothing.py").touch()
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    """As pip builds it, but without optimization, which takes most of the time.

    The optimized build is the editable install that all tests run on.
    """
    folder = tmp_path_factory.mktemp("dist")
    settings = folder / "settings.cfg"
    settings.write_text("[build_ext]\ndebug = 1\n")
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--wheel-dir", str(folder)]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    environment = os.environ | {"CLARA_CUDA": "OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    environment["DIST_EXTRA_CONFIG"] = str(settings)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_on(site: Path, code: str) -> str:
    """Run `code` where both packages come from `site`, and from nowhere in the source tree."""
    prologue = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
        f"sys.path[:] = [{str(site)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", prologue + code],
        cwd=site,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_wheel_holds_every_file_of_both_packages(tree, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert "Name: clara-rag\n" in text
    compiled = {name for name in names if name.startswith("clara_kernels/_C.")}
    assert len(compiled) == 1
    assert names - compiled == package_files(tree)


def test_an_install_brings_the_trained_weights_and_no_other_models(tree, tmp_path):
    """Users of a checkout have models of their own in the same folder."""
    sources = shutil.copytree(tree, tmp_path / "sources", ignore=shutil.ignore_patterns("csrc"))

    def built() -> set[str]:
        command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "made"]
        subprocess.run(command, cwd=sources, capture_output=True, check=True)
        found = (sources / "made").rglob("*")
        names = {file.relative_to(sources / "made").as_posix() for file in found if file.is_file()}
        return {name for name in names if name.endswith(("config.json", ".safetensors"))}

    assert built() == set()
    for name in (*shipped.NAMES, "mine"):
        adapter = sources / "models" / name / "generator"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"0")
        (adapter.parent / "config.json").write_text("{}")
    folders = {f"clara/weights/models/{name}" for name in shipped.NAMES}
    files = ("config.json", "generator/adapter_model.safetensors")
    assert built() == {f"{folder}/{file}" for folder in folders for file in files}
    (sources / "models" / shipped.NAMES[0] / "config.json").unlink()
    assert built() == {f"{folder}/{files[1]}" for folder in folders}
    manifest = (sources / "MANIFEST.in").read_text()
    assert all(f"recursive-include models/{name} *\n" in manifest for name in shipped.NAMES)


@pytest.mark.slow
def test_wheel_imports_every_module_and_runs_every_operator(site):
    code = """
import importlib, pkgutil
import clara, clara_kernels
for package in (clara, clara_kernels):
    assert package.__file__.startswith(sys.path[0]), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import torch
for name in clara_kernels.__all__:
    assert callable(getattr(clara_kernels, name)), name
assert clara_kernels.build_info()["compiled"]
print(*clara_kernels.cosine_topk(torch.eye(3), torch.eye(3), 1)[1].flatten().tolist())
"""
    assert run_on(site, code).split() == ["0", "1", "2"]


def test_pins_for_newer_pythons_say_so():
    """A pinned release that the oldest Python cannot install carries a marker."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#") or "python_version" in line:
            continue
        name, pin = line.split(";")[0].strip().split("==")
        with suppress(PackageNotFoundError):  # of another extra than `dev`
            found = metadata(name)
            if found["Version"].partition("+")[0] == pin.partition("+")[0]:
                assert oldest in SpecifierSet(found["Requires-Python"] or ""), line


def test_every_extra_is_used():
    """An extra that no module imports or looks for would promise what is not there yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in PACKAGES.values()
        for file in (ROOT / folder).rglob("*.py")
    )
    extras = project["optional-dependencies"]
    assert extras.keys() >= TOOLS
    for extra in extras.keys() - TOOLS:
        for requirement in extras[extra]:
            name = re.match(r"[\w.-]+", requirement)[0]
            module = MODULES.get(name, name.replace("-", "_"))
            used = rf"""(?m)^\s*(import|from) {module}\b|(find_spec|import_module)\("{module}"\)"""
            assert re.search(used, sources), f"extra {extra}: nothing uses {module}"


def test_nothing_tells_to_install_what_is_not_released():
    """`pip install clara-rag` and its extras need a release; a checkout is installed by path."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    modules = [file for folder in PACKAGES.values() for file in (ROOT / folder).rglob("*.py")]
    for file in (*pages, *modules):
        text = " ".join(file.read_text(encoding="utf-8").split())
        assert not re.search(r"pip install ['\"]?clara-rag", text), file


def without_compiling(tree: Path) -> Path:
    """The sources in `tree`, but for an extension that is a line of text: whether CUDA is on."""
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    for folder in PACKAGES.values():
        ignored = shutil.ignore_patterns("__pycache__", "_C.*")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    file = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    (tree / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(nothing LANGUAGES NONE)\n"
        f'file(WRITE "${{CMAKE_LIBRARY_OUTPUT_DIRECTORY}}/{file}" "${{CLARA_CUDA}}")\n'
    )
    return tree


@pytest.fixture(scope="module")
def editable_site(tmp_path_factory) -> Path:
    """What an editable install puts into site-packages, with nothing compiled."""
    tree = without_compiling(tmp_path_factory.mktemp("editable"))
    wheels = tmp_path_factory.mktemp("wheels")
    code = f"import setuptools.build_meta as b; b.build_editable({str(wheels)!r})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tree, env=os.environ | {"CLARA_CUDA": "OFF"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = (tree / "kernels" / "clara_kernels").glob("_C.*")
    assert built.read_text() == "OFF"
    site = tmp_path_factory.mktemp("editable-site")
    with zipfile.ZipFile(*wheels.glob("*.whl")) as archive:
        archive.extractall(site)
    return site


@pytest.mark.slow
def test_an_editable_install_makes_the_two_packages_importable_and_nothing_else(editable_site):
    (file,) = editable_site.glob("*.pth")
    (folder,) = file.read_text().splitlines()
    assert "build" not in Path(folder).parts  # which people delete
    found = {path.name: path.resolve() for path in Path(folder).iterdir()}
    assert found.keys() == PACKAGES.keys()
    for name, source in PACKAGES.items():
        assert found[name].parts[-len(Path(source).parts) :] == Path(source).parts
        assert (Path(folder) / name / "py.typed").exists()


def test_the_folder_kernels_is_no_package_in_tests():
    """Libraries look for the package of that name from Hugging Face."""
    spec = find_spec("kernels")
    assert spec is None or spec.origin is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["site", "editable_site"])
def test_type_checkers_find_both_packages(kind, request, tmp_path):
    """Outside of the repository, with a Python that has nothing else installed."""
    environment = tmp_path / "environment"
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(command, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    source = request.getfixturevalue(kind)
    if kind == "site":
        (packages / "packages.pth").write_text(f"{source}\n")
    else:
        shutil.copy(*source.glob("*.pth"), packages)
    script = tmp_path / "script.py"
    script.write_text(
        "from clara import Clara\n"
        "from clara_kernels import cosine_topk\n"
        "reveal_type(cosine_topk)\n"
        "reveal_type(Clara)\n"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")]
    command += ["--python-executable", str(environment / "bin" / "python"), str(script)]
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    result = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    first, second = (line for line in result.stdout.splitlines() if "Revealed type" in line)
    assert "corpus: Any | clara_kernels.cosine_topk.rows.CorpusRows, k: int" in first.replace(
        "Union[Any, clara_kernels.cosine_topk.rows.CorpusRows]",
        "Any | clara_kernels.cosine_topk.rows.CorpusRows",
    )
    assert "clara.model.clara.Clara" in second


def test_build_mentions_neither_torch_nor_numpy(tree):
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml"):
        requirements = (tree / name).read_text()
        if name == "pyproject.toml":
            requirements = requirements.partition("[project]")[0]
        assert "torch" not in requirements
        assert "numpy" not in requirements
    for source in (tree / "csrc").rglob("*.*"):
        for line in source.read_text().splitlines():
            assert not line.startswith(("#include <torch", "#include <ATen", "#include <c10"))


@pytest.mark.slow
def test_source_distribution_holds_what_a_build_needs(tree, tmp_path):
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True
    )
    name = result.stdout.split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        members = {member.partition("/")[2] for member in archive.getnames()}
    packages = [tree / folder for folder in PACKAGES.values()]
    needed = {
        path.relative_to(tree).as_posix()
        for folder in (tree / "csrc", *packages)
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert needed | set(SOURCES) <= members
    assert not any(name.startswith("tests/") for name in members)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CLARA_CUDA": "ON"}, "CLARA_CUDA=ON but there is no nvcc"),
        ({"CLARA_CUDA": "on"}, "CLARA_CUDA=ON but there is no nvcc"),
        ({"CLARA_CUDA": "yes"}, "CLARA_CUDA must be AUTO, ON or OFF, got 'yes'"),
        ({"CLARA_CUDA_ARCHS": "native"}, "CLARA_CUDA_ARCHS must list numbers.*got 'native'"),
    ],
)
def test_bad_settings_give_one_line(tree, tmp_path, settings, message):
    result = build_ext(tree, tmp_path, settings)
    assert result.returncode != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.search(message, line)


def build_ext(tree: Path, folder: Path, settings: dict[str, str]) -> subprocess.CompletedProcess:
    """`setup.py build_ext` with no program in PATH, so with no nvcc either."""
    environment = os.environ | {"PATH": str(folder)} | settings
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        environment.pop(name, None)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(folder)]
    command += ["--build-temp", str(folder / "temp")]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("request_", "fails"), [("AUTO", False), ("ON", True)])
def test_broken_nvcc_is_refused_or_passed_over(tmp_path, request_, fails):
    """That the sources compile without CUDA is seen in the wheel."""
    (tmp_path / "tree").mkdir()
    tree = without_compiling(tmp_path / "tree")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'nvcc fatal: no host compiler' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    # CUDACXX is looked at first; the rest of PATH stays, for what CMake looks for.
    environment = os.environ | {"CLARA_CUDA": request_, "CUDACXX": str(nvcc)}
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert (result.returncode != 0) == fails
    assert "nvcc fatal: no host compiler" in result.stderr
    if fails:
        assert result.stderr.splitlines()[-1].startswith("error: CLARA_CUDA=ON but ")
        assert not (tmp_path / "lib").exists()
    else:
        assert "warning: building without CUDA" in result.stderr
        (built,) = (tmp_path / "lib" / "clara_kernels").glob("_C.*")
        assert built.read_text() == "OFF"
