"""Coverage without a tracer: the code of both packages notes by itself which lines of it run.

Until Python 3.14 coverage measures branches with a tracer, which makes all Python code slower,
that of PyTorch and transformers too: a third of the time of all tests. Here only what is measured
does more. As a module is imported, its syntax tree gets a mark before every statement, and one
where a condition leads past a body. A mark sets an element of a list.

With CLARA_PROBES=1 in the environment, pytest measures, its xdist workers included, and writes what
`coverage report` reads. What runs in other processes does not count, as with a tracer, nor does a
module that runs as `__main__`.

What coverage takes for a line, for a branch and for excluded stays its own: this module only says
which of them ran. It has marks for the branches of `if`, `for` and `while`. Where coverage knows
another one, such as of `match`, `arcs_of` refuses the file.
"""

from __future__ import annotations

import ast
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from coverage import Coverage, CoverageData
from coverage.python import PythonFileReporter

SWITCH = "CLARA_PROBES"
ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "clara", ROOT / "kernels" / "clara_kernels")
NAME = "_lines_run"  # in the globals of a measured module
CONDITIONS = (ast.If, ast.For, ast.AsyncFor, ast.While)
BODIES = ("body", "orelse", "finalbody")


class Marking(ast.NodeTransformer):
    """Puts marks into a module.

    Attributes:
        places: what each mark is of: a line that runs, or the negative line of a condition that
            leads past its body.
    """

    def __init__(self) -> None:
        self.places: list[int] = []

    def _mark(self, place: int, node: ast.AST) -> ast.stmt:
        """`_lines_run[number] = True`, at the line of `node`."""
        mark = ast.parse(f"{NAME}[{len(self.places)}] = True").body[0]
        self.places.append(place)
        for each in ast.walk(mark):
            ast.copy_location(each, node)
        return mark

    def _marked(self, statements: Iterable[ast.stmt]) -> list[ast.stmt]:
        marked: list[ast.stmt] = []
        for statement in statements:
            marked += [self._mark(line, statement) for line in lines_of(statement)]
            marked.append(self.visit(statement))
        return marked

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, CONDITIONS) and not node.orelse:
            past = [self._mark(-node.lineno, node)]
        else:
            past = None
        for field in BODIES:
            statements = getattr(node, field, None)
            if isinstance(statements, list):  # that of a lambda is an expression
                kept = leading(node) if field == "body" else 0
                setattr(node, field, statements[:kept] + self._marked(statements[kept:]))
        if past:
            node.orelse = past
        for field in ("handlers", "cases"):
            for each in getattr(node, field, ()):
                self.visit(each)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        """Whether it catches or not, its line runs when it is asked."""
        self.generic_visit(node)
        mark = self._mark(node.lineno, node)
        if node.type is None:
            node.body.insert(0, mark)
        else:
            call = ast.parse(f"({NAME}.__setitem__({len(self.places) - 1}, True), 0)[1]").body[0]
            call.value.value.elts[1] = node.type
            for each in ast.walk(call):
                if not hasattr(each, "lineno") or each.lineno == 1:
                    ast.copy_location(each, node.type)
            node.type = call.value
        return node


def lines_of(statement: ast.stmt) -> list[int]:
    """The lines that run when a statement does: its first, and those of its decorators."""
    decorators = getattr(statement, "decorator_list", ())
    return [*(each.lineno for each in decorators), statement.lineno]


def leading(node: ast.AST) -> int:
    """How many statements have to stay first: a docstring, imports from `__future__`."""
    count = int(
        isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node, clean=False) is not None
    )
    if isinstance(node, ast.Module):
        for each in node.body[count:]:
            if not (isinstance(each, ast.ImportFrom) and each.module == "__future__"):
                break
            count += 1
    return count


class Probes:
    """What has run of the measured modules of this process.

    Args:
        sources: folders whose modules are measured.
    """

    def __init__(self, sources: Iterable[Path] = SOURCES) -> None:
        self._folders = tuple(f"{folder}{os.sep}" for folder in sources)
        self._files: dict[str, tuple[list[int], list[bool]]] = {}
        self._exec_module = SourceFileLoader.exec_module

    def replace(self) -> None:
        """Measure what is imported from now on."""

        def exec_module(loader: SourceFileLoader, module: ModuleType) -> None:
            # An editable install finds the packages by links.
            if os.path.realpath(loader.path).startswith(self._folders):
                self.execute(loader, module)
            else:
                self._exec_module(loader, module)

        SourceFileLoader.exec_module = exec_module

    def restore(self) -> None:
        SourceFileLoader.exec_module = self._exec_module

    def execute(self, loader: SourceFileLoader, module: ModuleType) -> None:
        """Execute a module with marks in it."""
        tree = ast.parse(loader.get_data(loader.path), loader.path)
        marking = Marking()
        marking.visit(tree)
        # A module that is imported again has the same marks, which stay set.
        _, run = self._files.setdefault(
            os.path.realpath(loader.path), (marking.places, [False] * len(marking.places))
        )
        vars(module)[NAME] = run
        exec(compile(tree, loader.path, "exec", dont_inherit=True), vars(module))

    def found(self) -> dict[str, list[int]]:
        """The places that have run, by the file."""
        return {
            file: [place for place, ran in zip(places, run) if ran]
            for file, (places, run) in self._files.items()
        }


def conditions_of(reporter: PythonFileReporter) -> list[tuple[int, int, bool]]:
    """The first lines of conditions and loops and of their bodies, and whether there is an else."""
    reporter.arcs()  # which prepares `first_line`
    first = reporter.parser.first_line
    return [
        (first(node.lineno), first(lines_of(node.body[0])[0]), bool(node.orelse))
        for node in ast.walk(ast.parse(reporter.source()))
        if isinstance(node, CONDITIONS)
    ]


def arcs_of(reporter: PythonFileReporter, places: set[int]) -> set[tuple[int, int]]:
    """What coverage calls arcs, from line to line, of the places of a file that have run.

    Raises:
        NotImplementedError: coverage knows a branch that has no mark.
    """
    conditions = conditions_of(reporter)
    marked = {start for start, _, _ in conditions}
    targets = defaultdict(set)
    for start, end in reporter.arcs():
        targets[start].add(end)
    for line, count in reporter.exit_counts().items():
        if count > 2 or (count == 2 and line not in marked):
            raise NotImplementedError(
                f"{reporter.filename}:{line}: coverage knows {count} ways on, of which "
                "tests/plugins/probes.py marks none: give them marks"
            )
    first = reporter.parser.first_line
    # Its docstring runs, which is no place, and imports from `__future__` with the module.
    tree = ast.parse(reporter.source())
    early = [each.lineno for each in tree.body[: leading(tree)]] if places else []
    ran = {first(line) for line in (*early, *places) if line > 0}
    past = {first(-line) for line in places if line < 0}
    arcs = {(-1, line) for line in ran}
    for start, inside, has_else in conditions:
        others = targets[start] - {inside}
        if inside in ran:
            arcs.add((start, inside))
        if start in past:
            arcs |= {(start, end) for end in others}
        elif has_else:
            arcs |= {(start, end) for end in others & ran}
    return arcs


def write(found: Mapping[str, Iterable[int]], sources: Iterable[Path], coverage: Coverage) -> None:
    """Write what has run of all modules below `sources` to the file of data of `coverage`."""
    data = CoverageData(coverage.config.data_file)
    data.erase()
    files = [str(file) for folder in sources for file in sorted(folder.rglob("*.py"))]
    arcs = {}
    for file in files:
        reporter = PythonFileReporter(file, coverage)
        arcs[file] = arcs_of(reporter, set(found.get(file, ())))
    data.add_arcs(arcs)
    data.touch_files(files)
    data.write()


class Measuring:
    """A plugin that measures in whichever process runs tests and writes where the session ends."""

    def __init__(self) -> None:
        for name in ("clara", "clara_kernels"):
            if name in sys.modules:
                raise pytest.UsageError(f"{name} was imported before its coverage is measured")
        self.probes = Probes()
        self.probes.replace()
        self._found: dict[str, set[int]] = defaultdict(set)

    def _add(self, found: Mapping[str, Iterable[int]]) -> None:
        for file, places in found.items():
            self._found[file].update(places)

    def pytest_runtestloop(self) -> None:
        """Workers have started; programs of tests, pytest among them, are not measured."""
        os.environ.pop(SWITCH, None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._add(getattr(node, "workeroutput", {}).get("probes", {}))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.probes.restore()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["probes"] = self.probes.found()
        else:
            self._add(self.probes.found())
            write(self._found, SOURCES, Coverage())
