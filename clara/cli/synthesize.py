"""`clara synthesize`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli.errors import BAD_USAGE, CommandError
from clara.cli.options import Json
from clara.cli.paths import check_backbone
from clara.terminal.printing import console, one_line, print_json, quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from clara.synthesis.generators import Generator, Sampling


def synthesize(
    corpus: Annotated[Path, typer.Option("--corpus", help="Corpus: a file of JSON lines.")],
    output: Annotated[Path, typer.Option("--output", help="File of training records to write.")],
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            help="openai:MODEL asks a server; local:FOLDER_OR_ID loads a model here.",
        ),
    ],
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="Address of the server.", envvar="OPENAI_BASE_URL"),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests in parallel.")] = 16,
    requests_per_minute: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Limit on requests per minute.", show_default=False),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, max=100, help="Retries of a failed request.")] = 5,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86400, help="Time limit of a request, in seconds.")
    ] = 120.0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Sampling temperature.")] = 0.7,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Token limit of a reply.")
    ] = 2048,
    max_rounds: Annotated[
        int,
        typer.Option(min=1, max=100, help="Limit on rounds of questions about missing facts."),
    ] = 10,
    max_attempts: Annotated[
        int, typer.Option(min=1, max=100, help="Limit on attempts at a paraphrase.")
    ] = 10,
    prompts: Annotated[
        Path | None, typer.Option(help="YAML file that replaces prompts.", show_default=False)
    ] = None,
    price_input: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, help="Price of a million input tokens.", show_default=False),
    ] = None,
    price_output: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, help="Price of a million output tokens.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N documents.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for choosing paraphrasing tasks.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate pretraining data with a language model.

    Run the same command again to continue: replies are kept in OUTPUT.journal.
    """
    from itertools import islice

    from clara.data.records import read_documents
    from clara.synthesis.document import Limits
    from clara.synthesis.generators import Sampling
    from clara.synthesis.prompts import SynthesisPrompts
    from clara.synthesis.run import SynthesisSettings
    from clara.synthesis.run import synthesize as run
    from clara.terminal.progress import document_progress

    wording = SynthesisPrompts() if prompts is None else SynthesisPrompts.load(prompts)
    settings = SynthesisSettings(
        wording, Limits(max_rounds, max_attempts), seed, price_input, price_output
    )
    if not output.resolve().parent.is_dir():
        raise CommandError(f"{output.parent}: no such folder")
    if output.exists() and any(output.samefile(f) for f in (corpus, prompts) if f and f.exists()):
        raise CommandError(f"--output must be a file of its own, got {output}", BAD_USAGE)
    _check_generator(generator)
    documents = list(islice(read_documents(corpus), limit))
    sampling = Sampling(temperature, max_tokens, timeout, retries, requests_per_minute)
    model = _generator(generator, base_url, sampling, concurrency)
    try:
        with document_progress("synthesize", len(documents)) as bar:
            report = run(documents, output, model, settings, on_progress=lambda: bar.advance(1))
    except KeyboardInterrupt:
        kept = one_line(
            f"{output}.journal: keeps the replies so far; run the same command to continue"
        )
        print(f"interrupted: {kept}", file=sys.stderr)
        raise
    if as_json:
        print_json(report)
    else:
        _print(report, output)


def _check_generator(name: str) -> None:
    """Refuse what names no generator, or a folder that is not there."""
    kind, colon, model = name.partition(":")
    if not colon or not model or kind not in ("openai", "local"):
        raise CommandError(
            f"--generator must be openai:MODEL or local:FOLDER_OR_ID, got {name!r}", BAD_USAGE
        )
    if kind == "local":
        try:
            check_backbone(model)
        except CommandError as error:
            raise CommandError(f"cannot load generator {model!r}: {error}") from error


def _generator(name: str, base_url: str | None, sampling: Sampling, concurrency: int) -> Generator:
    kind, _, model = name.partition(":")
    if kind == "openai":
        from clara.synthesis.server import OpenAIGenerator

        return OpenAIGenerator(model, base_url, sampling, concurrency)
    quiet_libraries()
    from clara.synthesis.local import LocalGenerator

    return LocalGenerator(model, sampling, concurrency)


def _print(report: dict[str, Any], output: Path) -> None:
    """One line, and a table below it on a terminal."""
    pairs = ", ".join(f"{count} {kind} pairs" for kind, count in report["pairs"].items())
    print(
        one_line(
            f"{output}: {report['finished']} of {report['documents']} documents, "
            f"{pairs or 'no pairs'}, {report['calls']} replies ({report['reused_replies']} reused, "
            f"the journal held {report['journal_replies']})"
        )
    )
    if sys.stdout.isatty():
        console().print(_table(report))


def _table(report: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    for title, name in (
        ("pairs per document", "pairs_per_document"),
        ("rejected", "rejected"),
        ("left out", "left_out"),
        ("failed requests", "failed_requests"),
        ("rounds of coverage", "coverage_rounds"),
        ("attempts at a paraphrase", "paraphrase_attempts"),
        ("tokens", "tokens"),
        ("tokens of this run", "paid_tokens"),
        ("cost", "cost"),
    ):
        shown = ", ".join(_shown(*item) for item in report.get(name, {}).items())
        if shown:
            table.add_row(title, one_line(shown))
    for name in ("retries", "repaired_replies"):
        table.add_row(name.replace("_", " "), str(report[name]))
    return table


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name}: {value}"
    return ", ".join(f"{key} times: {count}" for key, count in value.items())
