"""`clara index verify`: find damaged documents, and make their memory again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options
from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.cli.index_documents import Path_
from clara.cli.loading import load_model, open_index
from clara.terminal.printing import excerpt, one_line, print_json

if TYPE_CHECKING:
    from clara.data.records import Document
    from clara.index import MemoryIndex
    from clara.index.checking import Damaged
    from clara.memory.documents import CompressedDocuments


def verify(
    path: Path_,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make damaged memory again from the text. Needs --model."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            envvar="CLARA_MODEL",
            help="The model that wrote the index, to repair.",
            show_default=False,
        ),
    ] = None,
    backbone: options.Backbone = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Read all documents and compare them with their checksums.

    Every damaged document is named, and the exit status is 1 if any is left. A document whose text
    is damaged cannot be repaired: build the index again from its source.
    """
    if repair and model is None:
        raise CommandError("--repair needs --model, the model that wrote the index", BAD_USAGE)
    index = open_index(path)
    damaged: list[Damaged] = []
    for found in index.verify():
        damaged.append(found)
        if not as_json:
            print(line(found))
    repaired: list[str] = []
    left = damaged
    if damaged and repair and model is not None:
        loaded = load_model(model, backbone=backbone, device=device)
        done = index.repair(_compressing(loaded, index, model), found=damaged)
        repaired, left = done.documents, done.left
    if as_json:
        print_json(
            {
                "index": index.path,
                "damaged": [each._asdict() for each in damaged],
                "repaired": repaired,
                "left": [each._asdict() for each in left],
            }
        )
    elif repaired:
        print(one_line(f"{_documents(len(repaired))} repaired: {index.path}"))
    elif not damaged:
        count = _documents(index.info()["documents"])
        print(one_line(f"{count}, all as written: {index.path}"))
    if left:
        count = _documents(len({each.document_id for each in left}))
        raise CommandError(f"{index.path}: {count} damaged; {_remedy(repair)}")


def line(found: Damaged) -> str:
    """What is damaged, on one line."""
    if found.document_id is None:
        return excerpt(f"damaged: {found.what}")
    row = "" if found.row in (None, found.document_id) else f", row {found.row!r}"
    return one_line(f"damaged: {found.what} of document {found.document_id!r}{row}")


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


def _remedy(repair: bool) -> str:
    if repair:
        return (
            "delete what cannot be repaired with 'clara index delete', and build again from the "
            "sources"
        )
    return "--repair --model MODEL makes memory again from the text"


def _compressing(model: Any, index: MemoryIndex, name: str) -> Any:
    """The function that makes memory as the index was built, of whole documents."""
    from clara.model import index_settings

    with user_errors():
        overflow = index_settings.chosen_overflow(
            model, index, None, model_name=name, spelled=options.spelled
        )
        rate = index_settings.chosen_rate(model, index, None, False, spelled=options.spelled)
    compress = index_settings.compressing(model, overflow, rate)

    def compressed(documents: Sequence[Document]) -> CompressedDocuments:
        return compress(documents, on_progress=lambda rows: None)

    return compressed
