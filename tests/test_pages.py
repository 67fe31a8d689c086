"""What the pages say of commands, options, files and names is so; no page or link is lost.

`test_readme.py` runs the examples. Here is what can be checked without running anything.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import clara
import clara.corpus
import clara.data
import clara.index
import clara_kernels

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted(DOCS.rglob("*.md"))]
REFERENCE = sorted((DOCS / "reference").glob("*.md"))


def load_script(path: Path) -> ModuleType:
    """A script as a module; `dataclass` looks the module up by its name."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cli_page = load_script(DOCS / "cli_page.py")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^ *(`{3,}).*?^ *\1$", "", text)


def test_the_reference_of_the_command_line_is_what_the_command_says() -> None:
    hint = "run `python docs/cli_page.py`"
    assert cli_page.PAGE.read_text(encoding="utf-8") == cli_page.page(), hint


def test_a_changed_help_text_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_page, "PAGE", tmp_path / "cli.md")
    assert cli_page.main(["--check"]) == 1  # missing
    assert cli_page.main([]) == 0
    assert cli_page.main(["--check"]) == 0
    monkeypatch.setattr(cli_page, "INTRODUCTION", "# Another\n")
    assert cli_page.main(["--check"]) == 1


def documented() -> list[str]:
    """What the reference shows, as dotted names."""
    return [name for page in REFERENCE for name in re.findall(r"(?m)^::: (\S+)$", text_of(page))]


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_shows_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(import_module(module), attribute).__doc__


@pytest.mark.parametrize("package", [clara, clara.corpus, clara.data, clara.index, clara_kernels])
def test_the_reference_has_every_public_name(package: ModuleType) -> None:
    shown = {name.rpartition(".")[2] for name in documented()}
    assert set(package.__all__) <= shown


def nav_files(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [file for part in parts for file in nav_files(part)]


def test_the_site_lists_every_page() -> None:
    (listed,) = re.findall(r"(?ms)^nav:\n.*?(?=^\S)", text_of(ROOT / "mkdocs.yml"))
    nav = nav_files(yaml.safe_load(listed)["nav"])
    assert len(set(nav)) == len(nav)
    assert set(nav) == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def anchors(page: Path) -> set[str]:
    """The names of headings, as Markdown renderers make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(text_of(page)))
    words = (re.sub(r"[^\w\s-]", "", each).strip().lower() for each in headings)
    return {re.sub(r"\s", "-", each) for each in words}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        is_made = target.parent.name == "reference"  # its headings come from the code
        assert not anchor or is_made or anchor in anchors(target), link


def commands_in(page: Path) -> list[str]:
    """Every command in backquotes or in a block, on one line and without its prompt."""
    text = re.sub(r"\\\n\s*", " ", text_of(page))
    blocks = re.findall(r"(?ms)^ *```(?:bash|console|)\n(.*?)^ *```$", text)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    found = [line.removeprefix(".venv/bin/") for line in (*lines, *inline)]
    return [line for line in found if re.match(r"(clara|python|pytest|pip) ", line)]


OPTIONS = {
    words.removeprefix("clara "): {n for p in cli_page.parameters(c.callback) for n in p.names}
    for words, c in cli_page.commands(cli_page.app, "clara")
}


def check_clara(words: list[str]) -> None:
    """A command of clara and its options are there."""
    known = {"--help", "--version", "--debug"}
    words = [word for word in words[1:] if word != "--debug"]
    if not words or words[0].isupper():  # a placeholder
        return
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in OPTIONS), None)
    is_group = any(each.startswith(f"{words[0]} ") for each in OPTIONS)
    assert name is not None or is_group or words[0] in known, f"no command {words[0]!r}"
    if name is None or name == "train":  # which takes every setting
        return
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and option != "-":
            assert option in OPTIONS[name] | known, f"clara {name} has no {option}"


def check_python(words: list[str]) -> None:
    """What Python or pytest is told to run is there."""
    if words[1] == "-m":
        module = words[2].split(".")
        if module[0] in ("bench", "clara", "clara_kernels"):
            base = ROOT / "kernels" if module[0] == "clara_kernels" else ROOT
            file = base.joinpath(*module)
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), words
        return
    for word in words[1:]:
        if word.endswith(".py") or word.startswith(("bench/", "examples/", "tests/")):
            assert (ROOT / word).exists(), words


def check_pip(words: list[str]) -> None:
    """Extras of this project are declared."""
    project = text_of(ROOT / "pyproject.toml")
    for word in words:
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            for name in extra.split(","):
                assert re.search(rf"(?m)^{name} = \[", project), f"no extra {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_pages_name_are_there(page: Path) -> None:
    checks = {"clara": check_clara, "python": check_python, "pytest": check_python}
    for command in commands_in(page):
        try:
            words = shlex.split(re.split(r" (?:[|<>;]|&&) ", command)[0], comments=True)
        except ValueError:  # the first line of a quotation that goes on
            continue
        checks.get(words[0], check_pip)(words)


def test_commands_are_found() -> None:
    every = [command for page in PAGES for command in commands_in(page)]
    for begin in ("clara synthesize", "clara index upgrade", "python -m bench", "pip install '.["):
        assert any(command.startswith(begin) for command in every), begin
    with pytest.raises(AssertionError, match="has no --speed"):
        check_clara(["clara", "ask", "--speed"])
    with pytest.raises(AssertionError, match="no command 'answer'"):
        check_clara(["clara", "answer"])
    with pytest.raises(AssertionError, match="no extra wings"):
        check_pip(["pip", "install", ".[train,wings]"])
    with pytest.raises(AssertionError):
        check_python(["python", "-m", "bench.nothing"])
    with pytest.raises(AssertionError):
        check_python(["pytest", "bench/test_nothing.py"])
