#!/usr/bin/env python
"""Write docs/reference/cli.md, the reference of the command line, from the command itself.

    python docs/cli_page.py           # write the page
    python docs/cli_page.py --check   # fail if the committed page differs from the command

The wording comes from the functions that `clara COMMAND --help` is made of. To change the page,
change the help text in `clara/cli/` and run this script again. It reads the functions' annotations
and not typer's commands, whose attributes differ between versions of typer.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, ParameterInfo

from clara.cli.app import app

PAGE = Path(__file__).resolve().parent / "reference" / "cli.md"
INTRODUCTION = """\
<!-- Written by docs/cli_page.py from the command itself. Do not edit this page. -->

# Command line

`clara COMMAND --help` prints the same text in a terminal. An error is one line on standard error
and a non-zero exit status. `clara --debug COMMAND` prints the traceback too.
"""
TYPES = {str: "text", int: "integer", float: "number", Path: "path"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    kind: Any
    info: ParameterInfo
    default: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, ArgumentInfo)

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty and self.info.default_factory is None

    @property
    def placeholder(self) -> str:
        """The name of an argument in the usage line."""
        name = str(self.info.metavar or self.name).upper()
        return f"{name}..." if get_origin(self.kind) is list else name

    @property
    def names(self) -> list[str]:
        """What to type; typer keeps the first name in `default` where a type is annotated."""
        if self.is_argument:
            return [self.placeholder]
        given = [self.info.default, *(self.info.param_decls or ())]
        written = [name for name in given if isinstance(name, str) and name.startswith("-")]
        return written or [f"--{self.name.replace('_', '-')}"]


def page() -> str:
    """The whole page as Markdown."""
    common = app.registered_callback
    sections = [INTRODUCTION]
    if common is not None and common.callback is not None:
        sections.append(_table(parameters(common.callback)))
    sections += [_section(words, command) for words, command in commands(app, "clara")]
    return "\n".join(sections)


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """What a command takes, in the order of its function's parameters."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *extras = get_args(hints[name]) or (hints[name],)
        infos = [each for each in extras if isinstance(each, ParameterInfo)]
        if infos and not infos[0].hidden:
            found.append(Parameter(name, kind, infos[0], parameter.default))
    return found


def commands(group: typer.Typer, above: str) -> Iterator[tuple[str, Any]]:
    """The words of every command and what is registered for it, in the order of `--help`."""
    for command in group.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        yield f"{above} {name}", command
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, f"{above} {inner.typer_instance.info.name}")


def _section(title: str, command: Any) -> str:
    taken = parameters(command.callback)
    usage = " ".join([title, "[OPTIONS]", *(p.placeholder for p in taken if p.is_argument)])
    if (command.context_settings or {}).get("allow_extra_args"):
        usage += " [--SETTING VALUE]..."
    parts = [
        f"## {title}",
        _prose(command.help or command.callback.__doc__ or ""),
        f"```text\n{usage}\n```",
        _table(taken),
        _examples(command.epilog or ""),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _table(rows: Sequence[Parameter]) -> str:
    """Arguments and options; empty if there are none."""
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda each: not each.is_argument)
    cells = [(", ".join(f"`{n}`" for n in p.names), _value(p), _meaning(p)) for p in ordered]
    head = ["| argument or option | value | meaning |", "| --- | --- | --- |"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def _value(parameter: Parameter) -> str:
    """What is accepted; empty for a flag."""
    kind = _plain(parameter.kind)
    if kind is bool:
        return ""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    least, most = parameter.info.min, parameter.info.max
    span = ""
    if least is not None:
        span = f", at least {least:,}" if most is None else f", {least:,} to {most:,.0f}"
    return f"{TYPES[kind]}{span}"


def _plain(kind: Any) -> Any:
    """The type without `| None` and without its list."""
    inner = [each for each in get_args(kind) if each is not type(None)]
    return _plain(inner[0]) if inner else kind


def _meaning(parameter: Parameter) -> str:
    info, default = parameter.info, parameter.default
    parts = [" ".join((info.help or "").split()).replace("|", "\\|").replace("<", "&lt;")]
    if parameter.is_required:
        parts.append("Required.")
    elif info.show_default and default is not None and not isinstance(default, bool):
        parts.append(f"Default: `{default.value if isinstance(default, Enum) else default}`.")
    if info.envvar:
        parts.append(f"Environment variable: `{info.envvar}`.")
    return " ".join(part for part in parts if part)


def _prose(text: str) -> str:
    """Paragraphs of a help text, each on one line."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)


def _examples(epilog: str) -> str:
    """The commands at the end of `--help`, as one block."""
    commands = re.findall(r"(?m)^\$ .*$", epilog)
    return "\n".join(["```console", *commands, "```"]) if commands else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the reference of the command line.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("error: docs/reference/cli.md is out of date; run docs/cli_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
