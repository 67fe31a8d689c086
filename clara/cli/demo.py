"""`clara demo`: prints what `clara.evaluation.demonstration` computes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara.cli import options
from clara.cli.errors import user_errors
from clara.cli.loading import other_backbone_told
from clara.cli.paths import check_backbone, check_device, check_model
from clara.terminal.printing import (
    EMPTY_ANSWER,
    UNTRAINED,
    console,
    one_line,
    quiet_libraries,
)

if TYPE_CHECKING:
    from clara.data.records import Question
    from clara.evaluation.demonstration import Comparison
    from clara.model.clara import Clara
    from clara.model.ranking import Documents

MODELS = Path("models")
EXPLAINED = """
The model's own retrieval chooses the passages; “(says it)” marks one that holds
the answer. Memory tokens are read by the model. The text of the same passages
is read by the bare backbone, which was not trained to give the answer alone."""
_COLOURS = {"right": "green", "in it": "yellow", "wrong": "red"}


def _checked_questions(values: list[str]) -> list[str]:
    for value in values or ():
        options.checked_question(value)
    return values


def demo(
    documents: Annotated[
        int, typer.Option("--documents", min=1, max=96, help="Number of documents to compress.")
    ] = 48,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            callback=_checked_questions,
            help="Question to ask instead of the built-in ones; may be repeated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model folder, or its id on the Hugging Face hub. Default: smollm2-135m-factbook, "
            "where its weights are, or the newest trained one in models/.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="Backbone: hub id, folder or GGUF file. Default: SmolLM2-135M.",
            show_default=False,
        ),
    ] = None,
    top_k: options.ReadTopK = None,
    device: options.Device = None,
) -> None:
    """Answer ten questions about the CIA World Factbook from memory tokens and from text."""
    if model is None:
        check_backbone(backbone)
    else:
        check_model(model, backbone=backbone)
    check_device(device)
    quiet_libraries()
    from clara.evaluation.demonstration_questions import sample

    loaded = load(model, backbone, device)
    top_k = top_k or loaded.config.top_k
    records, known = sample(documents)
    begin = time.perf_counter()
    compressed = loaded.compress(records, show_progress_bar=True)
    seconds = time.perf_counter() - begin
    print(
        f"Compressed {len(records)} passages of the CIA World Factbook in {seconds:.1f} s "
        f"({len(records) / seconds:.1f} documents/s): {sum(compressed.token_counts):,} tokens of "
        f"text became {sum(compressed.counts):,} memory tokens, "
        f"{compressed.effective_compression:.1f}x ({loaded.config.compression_rate}x nominal)."
    )
    if question:
        ask(loaded, compressed, iter(question), top_k)
        return
    print(EXPLAINED)
    results = []
    begin = time.perf_counter()
    for place, each in enumerate(known):
        with user_errors():
            results.append(compare_one(loaded, compressed, each.question, top_k))
        print_comparison(results[-1], each.golden_answers, each.positives, place + 1, len(known))
    print_tallies(results, known, time.perf_counter() - begin)
    ask(loaded, compressed, typed(), top_k)


def load(model: str | None, backbone: str | None, device: str | None) -> Clara:
    """The model of the demonstration, after a line on what it is."""
    from clara.cli.inspection import is_trained
    from clara.evaluation import demonstration

    checkpoint: str | Path | None = model
    if model is None:
        backbone = backbone or demonstration.default_backbone()
        checkpoint = demonstration.find_checkpoint(MODELS, backbone, is_trained)
        print(f"Backbone: {one_line(backbone)}")
    begin = time.perf_counter()
    with user_errors(), other_backbone_told():
        loaded = demonstration.load_demo_model(backbone, checkpoint, device)
    if model is not None:
        print(f"Backbone: {one_line(str(loaded.config.backbone))}")
    print(f"Loaded in {time.perf_counter() - begin:.1f} s, on {loaded.device}.")
    print(
        f"Adapters: trained, from {one_line(str(checkpoint))}" if loaded.is_trained else UNTRAINED
    )
    return loaded


def ask(model: Clara, documents: Documents, questions: Iterator[str], top_k: int) -> None:
    """Answer questions of which nobody knows the answer."""
    for each in questions:
        with user_errors():
            result = compare_one(model, documents, each, top_k)
        print_comparison(result)


def compare_one(model: Clara, documents: Documents, question: str, top_k: int) -> Comparison:
    from clara.evaluation import demonstration

    return demonstration.compare(model, documents, question, top_k)


def typed() -> Iterator[str]:
    """Questions that are typed in, as long as somebody does."""
    while sys.stdin.isatty():
        try:
            given = input("\nYour question (empty to end): ").strip()
        except EOFError:
            print()
            return
        if not given:
            return
        yield given


def print_comparison(
    result: Comparison,
    golds: tuple[str, ...] = (),
    positives: tuple[str, ...] = (),
    number: int = 0,
    of: int = 0,
) -> None:
    """One question: both answers below each other, then the documents that they are from.

    Args:
        golds: what the documents say, where that is known.
        positives: ids of the documents that say so.
        number: of the question, among so many.
    """
    from rich.table import Table
    from rich.text import Text

    from clara.evaluation.demonstration import mark

    answer = result.answer
    counted = f" {number} of {of}" if of else ""
    print(f"\nQuestion{counted}: {one_line(result.question)}")
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    for options_of in (
        {"no_wrap": True},
        {"no_wrap": True},
        {"overflow": "fold", "ratio": 1},
        {"no_wrap": True, "justify": "right"},
        {"no_wrap": True, "justify": "right"},
    ):
        table.add_column(**options_of)
    if golds:
        table.add_row("the document says", "", Text(one_line(" / ".join(golds))), "", "")
    rows = (
        ("from memory tokens", answer.text, result.memory_seconds, answer.prompt_tokens),
        ("from plain text", result.text_answer, result.text_seconds, answer.text_prompt_tokens),
    )
    for name, text, seconds, tokens in rows:
        found = mark(text, golds) if golds else ""
        table.add_row(
            name,
            Text(found, style=_COLOURS.get(found, "")),
            Text(one_line(text) or EMPTY_ANSWER),
            f"{seconds:.2f} s",
            f"{tokens} tokens",
        )
    console().print(table)
    read = Text("read: ")
    for place, each in enumerate(answer.documents):
        read.append(f"{', ' if place else ''}{one_line(each.id)} {each.score:.3f}")
        if each.document_id in positives:
            read.append(" (says it)", style="bold")
    console().print(read)


def print_tallies(results: list[Comparison], known: list[Question], seconds: float) -> None:
    """How many answers are right in both ways, and what an answer takes."""
    if not results:
        return
    from rich.table import Table

    from clara.evaluation.demonstration import tallies

    names = ("from memory tokens", "from plain text")
    print(f"\n{len(results)} questions in {seconds:.1f} s:")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for head in ("right", "in it", "an answer takes", "its prompt has"):
        table.add_column(head, justify="right")
    golds = [each.golden_answers for each in known]
    for name, each in zip(names, tallies(results, golds)):
        table.add_row(
            name,
            f"{each.right} of {len(results)}",
            f"{each.in_it}",
            f"{each.seconds:.2f} s",
            f"{each.prompt_tokens:.0f} tokens",
        )
    console().print(table)
    said = sum(
        any(read.document_id in question.positives for read in result.answer.documents)
        for result, question in zip(results, known)
    )
    print(f"For {said} of {len(results)} questions a passage that says the answer was read.")
    print("“right”: the answer alone. “in it”: the right answer stands among other words.")
    print("Times and tokens are medians.")
