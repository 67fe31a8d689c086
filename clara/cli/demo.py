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
from clara.cli.paths import check_backbone, check_device
from clara.terminal.printing import (
    EMPTY_ANSWER,
    UNTRAINED,
    console,
    one_line,
    printable,
    quiet_libraries,
)

if TYPE_CHECKING:
    from clara.data.records import Question
    from clara.evaluation.demonstration import Comparison

MODELS = Path("models")


def _checked_questions(values: list[str]) -> list[str]:
    for value in values or ():
        options.checked_question(value)
    return values


def demo(
    documents: Annotated[
        int, typer.Option("--documents", min=1, help="Number of documents to compress.")
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
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="Backbone: hub id, folder or GGUF file. Default: SmolLM2-135M.",
            show_default=False,
        ),
    ] = None,
    top_k: options.TopK = 3,
    device: options.Device = None,
) -> None:
    """Compress sections of the CIA World Factbook and answer questions about them."""
    check_backbone(backbone)
    check_device(device)
    quiet_libraries()
    from clara.cli.inspection import is_trained
    from clara.evaluation import demonstration

    location = backbone or demonstration.default_backbone()
    checkpoint = demonstration.find_checkpoint(MODELS, location, is_trained)
    print(f"Backbone: {one_line(location)}")
    begin = time.perf_counter()
    with user_errors():
        model = demonstration.load_demo_model(location, checkpoint, device)
    print(f"Loaded in {time.perf_counter() - begin:.1f} s, on {model.device}.")
    print(
        UNTRAINED if checkpoint is None else f"Adapters: trained, from {one_line(str(checkpoint))}"
    )

    def count_tokens(text: str) -> int:
        return len(model.tokenizer.encode_texts([text])[0].ids)

    limit = model.config.document_length
    records, known = demonstration.factbook_sample(count_tokens, documents, limit)
    begin = time.perf_counter()
    compressed = model.compress(records, show_progress_bar=True)
    seconds = time.perf_counter() - begin
    print(
        f"Compressed {len(records)} sections of the CIA World Factbook in {seconds:.1f} s "
        f"({len(records) / seconds:.1f} documents/s): {sum(compressed.token_counts):,} tokens of "
        f"text became {sum(compressed.counts):,} memory tokens, "
        f"{compressed.effective_compression:.1f}x ({model.config.compression_rate}x nominal)."
    )
    for each, expected in asked(question, known):
        with user_errors():
            result = demonstration.compare(model, compressed, each, top_k)
        print_comparison(result, expected)


def asked(given: list[str] | None, known: list[Question]) -> Iterator[tuple[str, str | None]]:
    """Questions and, where it is known, the answer that the documents hold."""
    if given:
        yield from ((question, None) for question in given)
        return
    yield from ((each.question, " / ".join(each.golden_answers)) for each in known)
    while sys.stdin.isatty():
        try:
            typed = input("\nYour question (empty to end): ").strip()
        except EOFError:
            print()
            return
        if not typed:
            return
        yield typed, None


def print_comparison(result: Comparison, expected: str | None) -> None:
    """One question: the documents found, then both answers side by side."""
    from rich.table import Table
    from rich.text import Text

    from clara.cli.questions import print_documents

    answer = result.answer
    print(f"\nQuestion: {one_line(result.question)}")
    if expected is not None:
        print(f"In the documents: {one_line(expected)}")
    print_documents(answer.documents)
    table = Table(show_lines=True)
    table.add_column("")
    table.add_column("from memory tokens", overflow="fold", ratio=1)
    table.add_column("from plain text", overflow="fold", ratio=1)
    table.add_row("prompt", f"{answer.prompt_tokens} tokens", f"{answer.text_prompt_tokens} tokens")
    table.add_row("generated in", f"{result.memory_seconds:.2f} s", f"{result.text_seconds:.2f} s")
    table.add_row(
        "answer",
        Text(printable(answer.text).strip() or EMPTY_ANSWER),
        Text(printable(result.text_answer).strip() or EMPTY_ANSWER),
    )
    console().print(table)
    query, rank = answer.timings_ms["query"], answer.timings_ms["rank"]
    print(f"Before the answer: question encoded in {query:.0f} ms, ranked in {rank:.0f} ms.")
