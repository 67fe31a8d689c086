"""What tells people and CI which commands to run names commands that are there and work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]


def read(file: Path) -> dict:
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert isinstance(content, dict)
    return content


def targets(text: str) -> set[str]:
    """What `make` is called with at the beginnings of lines and within backquotes."""
    return set(re.findall(r"(?:^|`)make +([a-z][\w-]*)", text, re.MULTILINE))


def targets_of(workflow: Path) -> set[str]:
    steps = [step for job in read(workflow)["jobs"].values() for step in job["steps"]]
    return {target for step in steps for target in targets(step.get("run", ""))}


def blocks() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    """Commands of CONTRIBUTING.md that are neither make's nor git's."""
    lines = [line for block in blocks() for line in block.splitlines()]
    return [line for line in lines if not line.startswith(("make ", "git "))]


def test_every_make_target_that_is_named_exists():
    named = {target for page in PAGES for target in targets(page.read_text(encoding="utf-8"))}
    named |= targets((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    named |= {target for workflow in WORKFLOWS for target in targets_of(workflow)}
    assert {"lint", "test", "test-slow", "check", "wheel", "gpu-check"} <= named
    for target in sorted(named):
        command = ["make", "--dry-run", "--always-make", target]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, f"make {target}: {result.stderr}"


def test_ci_runs_what_the_script_for_any_machine_runs():
    script = targets((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert script == {"lint", "test", "test-slow", "bench-smoke"}
    assert targets_of(ROOT / ".github/workflows/ci.yml") == script | {"wheel"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_have_what_the_forge_asks_for(workflow):
    content = read(workflow)
    assert content.keys() >= {"name", "on", "jobs", "permissions"}
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job.keys() >= {"runs-on", "timeout-minutes", "steps"}
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            # Text that others may write goes into a shell through the environment alone.
            assert "${{" not in step.get("run", "")


def test_workflows_run_every_python_that_is_supported():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported


def test_only_a_person_starts_what_runs_on_a_machine_of_ours():
    for workflow in WORKFLOWS:
        content = read(workflow)
        if any("self-hosted" in job["runs-on"] for job in content["jobs"].values()):
            assert content["on"].keys() == {"workflow_dispatch"}


def test_parts_of_the_gpu_check():
    content = read(ROOT / ".github" / "workflows" / "gpu.yml")
    options = content["on"]["workflow_dispatch"]["inputs"]["part"]["options"]
    script = (ROOT / "bench" / "gpu_check.py").read_text(encoding="utf-8")
    assert options == ["all", *re.findall(r"^- ([\w-]+): ", script, re.MULTILINE)]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.name)
def test_issue_templates(template):
    content = read(template)
    if template.name == "config.yml":
        assert content == {"blank_issues_enabled": "true"}
        return
    assert content.keys() >= {"name", "description", "body"}
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names)
    for field in content["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


def test_hooks_run_what_is_installed():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook.keys() >= {"id", "name", "entry", "language"}
        (program,) = re.findall(r"\.venv/bin/([\w-]+)", hook["entry"])
        assert shutil.which(program, path=str(BIN)), program


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands_for_contributors(command, warm, tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTEST_ADDOPTS"] = f"-p no:cacheprovider --basetemp={tmp_path / 'pytest'}"
    served = warm(environment)
    programs = {"python": served.python, "clara": served.clara}
    programs["pytest"] = f"{served.python} {BIN / 'pytest'}"
    line, count = re.subn(
        r"\.venv/bin/([\w-]+)", lambda found: programs.get(found[1], str(BIN / found[1])), command
    )
    assert count
    result = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()


def test_a_release_is_tagged_and_pushed(tmp_path):
    (tagging,) = [block for block in blocks() if block.startswith("git ")]
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Somebody"), ("EMAIL", "somebody@example.org"))
    }

    def run(script: str, folder: Path) -> str:
        result = subprocess.run(
            ["bash", "-ec", script],
            cwd=folder,
            env=os.environ | identity,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run(f"git init --bare {origin} && git clone {origin} {clone}", tmp_path)
    run("git commit --allow-empty --message first", clone)
    run(tagging, clone)
    version = re.search(r"v(\d+\.\d+\.\d+)", tagging)[1]
    assert run("git tag --list", origin).split() == [f"v{version}"]


def test_a_version_is_the_same_wherever_it_stands():
    places = {
        "clara/__init__.py": r'^__version__ = "(.*)"$',
        "kernels/clara_kernels/version.py": r'^__version__ = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## (\d+\.\d+\.\d+)",
    }
    found = {
        file: re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)[1]
        for file, pattern in places.items()
    }
    assert len(set(found.values())) == 1, found
