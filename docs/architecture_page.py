#!/usr/bin/env python
"""Write the generated part of docs/architecture.md from the code and the import contract.

    python docs/architecture_page.py           # write the page
    python docs/architecture_page.py --check   # fail if the committed page differs from the code

The layers are those of the import contract in pyproject.toml. The arrows are the imports in the
sources, those for type checking included, as grimp finds them, the library behind import-linter.
What each package holds is the first line of its docstring.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- Written by docs/architecture_page.py from the code. Do not edit what follows. -->"
END = "<!-- The written part ends here. -->"
PACKAGES = ("clara", "clara_kernels")

Imports = dict[str, set[str]]


def layers() -> list[list[str]]:
    """The packages of `clara` by layer, highest first, as the import contract has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    found = next(each["layers"] for each in contracts if each["type"] == "layers")
    return [re.findall(r"\b\w+\b", re.sub(r"\(\w+\)", "", layer)) for layer in found]


def package_of(module: str) -> str:
    """`clara.text.prompts` lies in `text`; everything in clara_kernels lies in `clara_kernels`."""
    top, _, inside = module.partition(".")
    return inside.partition(".")[0] if top == "clara" and inside else top


def imports() -> Imports:
    """The other packages that each package imports."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=False)
    found: Imports = defaultdict(set)
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            if package_of(module) != package_of(other):
                found[package_of(module)].add(package_of(other))
    return found


def direct(found: Imports) -> Iterator[tuple[str, str]]:
    """The arrows that cannot be left out because other arrows lead to the same package."""

    def below(start: str) -> set[str]:
        reached: set[str] = set()
        left = [start]
        while left:
            for other in found.get(left.pop(), set()) - reached:
                reached.add(other)
                left.append(other)
        return reached

    for start in sorted(found):
        for end in sorted(found[start]):
            if not any(end in below(other) for other in found[start] - {end}):
                yield start, end


def holds(name: str) -> str:
    """The first line of the docstring of a package or module."""
    base = ROOT / "clara" / name
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if name == "clara_kernels":
        file = ROOT / "kernels" / name / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0]


def drawn(found: Imports) -> Iterator[str]:
    """The picture, as Mermaid reads it."""
    yield "```mermaid"
    yield "flowchart TB"
    for number, names in enumerate([*layers(), ["clara_kernels"]]):
        yield f'  subgraph layer{number}[" "]'
        yield from (f"    {name}" for name in names)
        yield "  end"
    for start, end in direct(found):
        yield f"  {start} --> {end}"
    yield "```"


def table(found: Imports) -> Iterator[str]:
    """One line for each package."""
    yield "| Package | Holds | Imports |"
    yield "|---|---|---|"
    for name in [name for layer in layers() for name in layer] + ["clara_kernels"]:
        others = ", ".join(f"`{other}`" for other in sorted(found.get(name, ())))
        yield f"| `{name}` | {holds(name)} | {others or 'none'} |"


def written() -> str:
    """The part of the page that comes from the code."""
    found = imports()
    packages = {name for layer in layers() for name in layer}
    inside: Imports = {name: found[name] - {"clara"} for name in packages}
    arrows = sum(len(others & packages) for others in inside.values())
    return "\n".join(
        [
            BEGIN,
            "",
            *drawn(inside),
            "",
            f"`clara` has {len(packages)} packages. {arrows} pairs are linked by an import, and "
            "no imports form a circle.",
            "The picture leaves out an arrow where other arrows lead to the same package.",
            "",
            *table(inside),
            "",
            END,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    start, end = before.index(BEGIN), before.index(END) + len(END)
    after = before[:start] + written() + before[end:]
    if check and after != before:
        sys.exit(f"{PAGE.name} is out of date: run python docs/architecture_page.py")
    if not check:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
