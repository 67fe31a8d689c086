"""`clara search` and `clara ask`: questions to an index."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options
from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.cli.id_lists import read_ids
from clara.cli.loading import load_both
from clara.cli.paths import expanded
from clara.terminal.printing import (
    EMPTY_ANSWER,
    UNTRAINED,
    console,
    excerpt,
    one_line,
    print_json,
    printable,
    say,
)

if TYPE_CHECKING:
    from clara.index import MemoryIndex, Selection
    from clara.model.answers import Found, RankedDocument
    from clara.model.clara import Clara

_LONGEST = 80  # characters of a page or heading


def search(
    model: options.Model,
    index: options.Index,
    question: options.Question,
    top_k: options.TopK = 5,
    rerank: options.Rerank = None,
    where: options.Filter = None,
    ids: options.Ids = None,
    approximate: options.Approximate = False,
    view: options.View = True,
    view_folder: options.ViewFolder = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Find the documents nearest to a question."""
    check_rerank(rerank, top_k)
    wanted = read_ids(ids)
    views = chosen_views(view, view_folder)
    opened, loaded = load_both(index, model, backbone, device, quantization, views)
    documents = selected(opened, where, wanted, approximate)
    with view_remarks(opened, view_folder):
        found, timings = find(loaded, documents, question, top_k, rerank)
    if as_json:
        print_json(
            {
                "question": question,
                "trained": loaded.is_trained,
                "documents": [as_fields(each) for each in found.documents],
                "timings_ms": timings,
            }
        )
    else:
        print_documents(found.documents, texts=True)
        print_timings(timings)
        print_untrained(loaded)


def ask(
    model: options.Model,
    index: options.Index,
    question: options.Question,
    top_k: options.ReadTopK = None,
    rerank: options.Rerank = None,
    where: options.Filter = None,
    ids: options.Ids = None,
    approximate: options.Approximate = False,
    view: options.View = True,
    view_folder: options.ViewFolder = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Token limit of the answer.")
    ] = 128,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it is generated.")
    ] = False,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Answer a question from the nearest documents of an index."""
    if stream and as_json:
        raise CommandError("--stream and --json exclude each other", BAD_USAGE)
    if top_k is not None:
        check_rerank(rerank, top_k)
    wanted = read_ids(ids)
    views = chosen_views(view, view_folder)
    opened, loaded = load_both(index, model, backbone, device, quantization, views)
    top_k = top_k or loaded.config.top_k
    check_rerank(rerank, top_k)
    documents = selected(opened, where, wanted, approximate)
    if stream:
        with view_remarks(opened, view_folder):
            ask_streaming(loaded, documents, question, top_k, rerank, max_new_tokens)
        return
    with user_errors(), view_remarks(opened, view_folder):
        (answer,) = loaded.answer(
            [question], documents, top_k=top_k, rerank=rerank, max_new_tokens=max_new_tokens
        )
    if as_json:
        print_json(
            {
                "question": question,
                "answer": answer.text,
                "trained": loaded.is_trained,
                "documents": [as_fields(each) for each in answer.documents],
                "timings_ms": answer.timings_ms,
                "prompt_tokens": answer.prompt_tokens,
                "text_prompt_tokens": answer.text_prompt_tokens,
            }
        )
        return
    print((printable(answer.text).strip() or EMPTY_ANSWER) + "\n")
    print_documents(answer.documents)
    print_tokens(answer.prompt_tokens, answer.text_prompt_tokens)
    print_timings(answer.timings_ms)
    print_untrained(loaded)


def chosen_views(view: bool, folder: str | None) -> bool | str:
    """What `MemoryIndex.open` takes."""
    if folder is None:
        return view
    if not view:
        raise CommandError("--no-view and --view-folder exclude each other", BAD_USAGE)
    return folder


@contextmanager
def view_remarks(index: MemoryIndex, folder: str | None) -> Iterator[None]:
    """Say on standard error why a view was not used."""
    places = [index.path, *([] if folder is None else [os.path.realpath(expanded(folder))])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the command hides those of libraries
        try:
            yield
        finally:
            for text in (str(warning.message) for warning in caught):
                if text.startswith(tuple(places)):
                    say(text)


def selected(
    index: MemoryIndex, where: str | None, ids: list[str] | None, approximate: bool
) -> MemoryIndex | Selection:
    """The index, or those of its documents that a filter and a list of ids keep."""
    from clara.index import Selection

    if where is None and ids is None and not approximate:
        return index
    return Selection(index, where, ids, approximate=approximate)


def ask_streaming(
    model: Clara,
    index: MemoryIndex | Selection,
    question: str,
    top_k: int,
    rerank: int | None,
    max_new_tokens: int,
) -> None:
    """Print the answer piece by piece, then where it comes from."""
    from clara.model.answers import Clock

    found, timings = find(model, index, question, top_k, rerank)
    clock = Clock(model.device)
    begun = False
    with user_errors():
        for piece in model.stream(question, found.memory, max_new_tokens=max_new_tokens):
            text = piece if begun else piece.lstrip()
            begun = begun or bool(text)
            print(printable(text), end="", flush=True)
    clock.lap("generate")
    print("\n" if begun else f"{EMPTY_ANSWER}\n")
    print_documents(found.documents)
    print_tokens(
        model.prompt_tokens(question, [len(memory) for memory in found.memory]),
        model.text_prompt_tokens(question, found.texts),
    )
    print_timings({**timings, **clock.laps})
    print_untrained(model)


def find(
    model: Clara,
    index: MemoryIndex | Selection,
    question: str,
    top_k: int,
    rerank: int | None = None,
) -> tuple[Found, dict[str, float]]:
    """The nearest documents, reranked or not, and the milliseconds of "query" and "rank"."""
    from clara.model.answers import Clock

    clock = Clock(model.device)
    with user_errors():
        (found,) = model.retrieve([question], index, top_k=top_k, rerank=rerank, lap=clock.lap)
    return found, clock.laps


def check_rerank(rerank: int | None, top_k: int) -> None:
    """Before anything is loaded."""
    if rerank is not None and rerank < top_k:
        raise CommandError(f"--rerank must be at least --top-k ({top_k}), got {rerank}", BAD_USAGE)


def as_fields(document: RankedDocument) -> dict[str, Any]:
    return {
        "id": document.id,
        "title": document.title,
        "score": document.score,
        "text": document.text,
        "place": document.place,
        "metadata": dict(document.metadata),
    }


def print_documents(documents: list[RankedDocument], *, texts: bool = False) -> None:
    """Documents by rank: score, id, title and place, and the beginning of the text if asked."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("document", overflow="fold")
    for document in documents:
        shown = Text(one_line(document.title or ""), style="bold")
        if document.place is not None:
            shown.append(
                (", " if shown else "") + excerpt(document.place, _LONGEST), style="italic"
            )
        if texts:
            shown.append(("\n" if shown else "") + excerpt(document.text), style="not bold")
        table.add_row(f"{document.score:.4f}", Text(one_line(document.id)), shown)
    console().print(table)


def print_untrained(model: Clara) -> None:
    """Say why answers are what they are, where the model has learnt nothing yet."""
    if not model.is_trained:
        print(UNTRAINED)


def print_tokens(memory: int, text: int | None) -> None:
    beside = "" if text is None else f", {text} with the documents' text"
    print(f"\nprompt: {memory} tokens{beside}")


def print_timings(timings: dict[str, float]) -> None:
    print("time: " + ", ".join(f"{name} {value:.0f} ms" for name, value in timings.items()))
