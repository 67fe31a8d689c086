"""`clara evaluate`: CLaRa beside text, on the same questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara.cli import evaluate_report, options
from clara.cli.errors import BAD_USAGE, CommandError, Group, user_errors
from clara.cli.evaluation_inputs import (
    check_adapters,
    check_source,
    index_at,
    load_any,
    load_contrastive,
    load_tuned,
    read_data,
)
from clara.cli.evaluation_tables import print_summary
from clara.cli.paths import check_device, check_parent
from clara.cli.probes import most_candidates, probe_dataset
from clara.terminal.printing import print_json, quiet_libraries, say

if TYPE_CHECKING:
    from clara.evaluation.dataset import Dataset
    from clara.evaluation.entries import Entry
    from clara.evaluation.rankers.protocol import Ranker
    from clara.evaluation.systems.setup import Setup

NO_SYSTEMS = "none"

evaluate = typer.Typer(
    cls=Group,
    name="evaluate",
    invoke_without_command=True,
    help="Answer questions by several systems, and compare the answers.",
)


def _names(value: str) -> str:
    if not all(part.strip() for part in value.split(",")):
        raise typer.BadParameter(f"must be names with commas between them, got {value!r}")
    return value


def _rates(value: str | None) -> str | None:
    for part in () if value is None else value.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise typer.BadParameter(f"must be whole numbers such as 4,16, got {value!r}")
    return value


@evaluate.callback()
def run(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            envvar="CLARA_MODEL",
            help="Model folder, or its id on the Hugging Face hub. Default: a bare SmolLM2-135M, "
            "for systems that need no adapters.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            help="File of questions: JSON lines of ours or FlashRAG's, SQuAD's JSON, or a folder "
            "of BEIR.",
            show_default=False,
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            "--documents",
            help="File of documents, or an index that `clara compress` wrote.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Built-in questions and documents: factbook or paragraphs; or probes, or one of "
            "them: copying, refusal, distractors, order, needle.",
            show_default=False,
        ),
    ] = None,
    systems: Annotated[
        str,
        typer.Option(
            "--systems",
            callback=_names,
            help="Systems, with commas between them; none evaluates rankers alone.",
        ),
    ] = "clara,text,closed-book",
    rankers: Annotated[
        str,
        typer.Option(
            "--rankers",
            callback=_names,
            help="Rankers that choose the documents of all systems. Probes have their documents "
            "given, all of them, unless this and --top-k say otherwise.",
        ),
    ] = "bm25",
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            callback=_rates,
            help="Compression rates, such as 4,16. Default: that of the index or the model.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Use only the first N questions; of probes, N under each condition.",
            show_default=False,
        ),
    ] = None,
    top_k: options.TopK = 5,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Token limit of an answer.")
    ] = 32,
    text_model: Annotated[
        str | None,
        typer.Option(
            "--text-model",
            help="Run of `clara train text`, for the system text-tuned.",
            show_default=False,
        ),
    ] = None,
    contrastive_model: Annotated[
        str | None,
        typer.Option(
            "--contrastive-model",
            help="Run of `clara train contrastive`, for the ranker contrastive.",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Answer from shuffled and from no memory too, to see what CLaRa's answers are "
            "worth.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the ranker random.")] = 0,
    rouge: Annotated[
        bool, typer.Option("--rouge", help="Score ROUGE-L too; needs rouge-score.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder of the run. The same command continues a run that was stopped.",
            show_default=False,
        ),
    ] = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Answer questions by several systems, and compare the answers."""
    if context.invoked_subcommand is not None:
        return
    if output is None:
        raise CommandError("give the folder of the run: --output RUN", BAD_USAGE)
    check_source(suite, questions, documents)
    wanted = _Wanted.of(context, suite, systems, rankers)
    check_adapters(model, [*wanted.systems, *wanted.rankers], backbone)
    check_device(device)
    check_parent(output)
    index = index_at(documents)
    dataset = None if wanted.probes else read_data(suite, questions, documents, index, limit)
    quiet_libraries()
    from clara.evaluation.run import evaluate as evaluate_all
    from clara.evaluation.systems.setup import Setup

    wanted.check()
    loaded = load_any(model, backbone, device, quantization)
    with user_errors():
        if dataset is None:
            dataset = probe_dataset(str(suite), limit, seed, loaded, max_new_tokens)
            if _is_default(context, "top_k"):
                top_k = most_candidates(dataset)
        setup = Setup(
            loaded,
            has_adapters=model is not None,
            rates=tuple(int(rate) for rate in _split(rates or "")),
            index=index,
            tuned=load_tuned(text_model, loaded),
            contrastive=load_contrastive(contrastive_model, loaded),
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        entries, others = wanted.made(setup, dataset, controls)
        with _told_to_continue(output):
            done = evaluate_all(
                entries,
                dataset.questions,
                dataset.documents,
                rankers=others,
                top_k=top_k,
                output=output,
                rouge=rouge,
                settings={"limit": limit, "seed": seed},
                show_progress_bar=True,
            )
    if as_json:
        print_json(done.summary)
    else:
        print_summary(done.summary, output)


@dataclass(frozen=True)
class _Wanted:
    """Systems and rankers as they are asked for.

    Attributes:
        probes: the questions are made for the model, and their documents given in an order.
    """

    systems: list[str]
    rankers: list[str]
    probes: bool

    @classmethod
    def of(cls, context: typer.Context, suite: str | None, systems: str, rankers: str) -> _Wanted:
        from clara.evaluation.suites import PROBE_SUITES

        probed = suite in PROBE_SUITES
        given = probed and _is_default(context, "rankers")
        names = [] if systems == NO_SYSTEMS else _split(systems)
        return cls(names, ["given"] if given else _split(rankers), probed)

    def check(self) -> None:
        """Refuse names that are not known, before a model is loaded."""
        from clara.evaluation.registry import RANKERS, SYSTEMS, check_names

        check_names(self.systems, SYSTEMS, "system")
        check_names(self.rankers, RANKERS, "ranker")

    def made(
        self, setup: Setup, dataset: Dataset, controls: bool
    ) -> tuple[list[Entry], list[Ranker]]:
        """The entries; or the rankers alone, where no system is wanted."""
        from clara.evaluation.entries import kind_of
        from clara.evaluation.registry import entries_of, rankers_by_name

        if not self.systems:
            return [], rankers_by_name(setup, self.rankers, dataset.questions)
        entries = entries_of(
            setup, self.systems, self.rankers, dataset.questions, controls=controls
        )
        if self.probes:  # another order than that of the rankers would undo what is probed
            entries = [
                each
                for each in entries
                if each.ranker is None or kind_of(each.ranker) in self.rankers
            ]
        return entries, []


@contextmanager
def _told_to_continue(output: Path) -> Iterator[None]:
    """Say what an interrupt leaves, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {output} keeps what is done; run the same command to continue")
        raise


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _is_default(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is None or source.name == "DEFAULT"


evaluate.command("report")(evaluate_report.report)
