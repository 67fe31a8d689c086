"""The commands and their common options."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

import clara
from clara.cli import (
    bench,
    compress,
    corpus,
    data,
    demo,
    doctor,
    evaluate,
    export,
    index,
    models,
    questions,
    streams,
    synthesize,
    train,
)
from clara.cli.errors import Group
from clara.cli.examples import add_examples

# What these do is kept in files: their work goes on if standard output cannot be written.
WRITE_FILES = {
    "init",
    "convert",
    "export",
    "compress",
    "data",
    "train",
    "plot",
    "synthesize",
    "bench",
    "evaluate",
}

app = typer.Typer(
    cls=Group,
    name="clara",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answer questions over a corpus from compressed documents.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clara {clara.__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="CLARA_DEBUG", help="Print the traceback of an error."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
    if context.invoked_subcommand in WRITE_FILES:
        streams.output_is_extra()


app.command("init")(models.init)
app.command("convert")(models.convert)
app.command("export")(export.export)
app.command("compress", cls=compress.OrBuild)(compress.compress)
app.command("search")(questions.search)
app.command("ask")(questions.ask)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    train.train
)
app.command("plot")(train.plot)
app.command("synthesize")(synthesize.synthesize)
app.command("info")(models.info)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(evaluate.evaluate)
app.add_typer(bench.bench)
app.add_typer(data.data)
app.add_typer(corpus.corpus)
app.add_typer(index.index)
add_examples(app)


def main() -> None:
    """Run the command line of this process."""
    streams.prepare()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # for bars that have no other switch
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
    typer.main.get_command(app)(prog_name="clara")
