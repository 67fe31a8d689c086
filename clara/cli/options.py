"""Arguments that several commands share."""

from __future__ import annotations

import re
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_args

import typer

from clara import config
from clara.cli.paths import default_model
from clara.errors.checks import surrogate_flaw
from clara.training import settings


def _words(name: str, literal: Any) -> Any:
    """The words of a `Literal` as an Enum, which every supported typer offers as choices."""
    return Enum(name, [(word, word) for word in get_args(literal)], type=str)


if TYPE_CHECKING:
    DtypeName: TypeAlias = Enum
    MemoryForm: TypeAlias = Enum
    Overflow: TypeAlias = Enum
    Quantization: TypeAlias = Enum
    Stage: TypeAlias = Enum
    StorageName: TypeAlias = Enum
else:
    DtypeName = _words("DtypeName", config.DtypeName)
    MemoryForm = _words("MemoryForm", config.MemoryForm)
    Overflow = _words("Overflow", config.Overflow)
    Quantization = _words("Quantization", config.Quantization)
    Stage = _words("Stage", settings.Stage)
    StorageName = _words("StorageName", config.StorageName)


def spelled(name: str) -> str:
    """How messages name a setting: "compression_rate" is "--compression-rate "."""
    return f"--{name.replace('_', '-')} "


def _checked_device(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise typer.BadParameter(f"must be cpu, cuda or cuda:N, got {value!r}")
    return value


def checked_question(value: str) -> str:
    if surrogate_flaw(value):
        raise typer.BadParameter("the question is not valid text in UTF-8")
    if not value.strip():
        raise typer.BadParameter("the question is empty")
    return value


def read_question(value: str) -> str:
    """The question; "-" stands for all of standard input."""
    if value != "-":
        return checked_question(value)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not valid text in UTF-8") from None
    return checked_question(text.strip())


NamedModel = Annotated[
    str,
    typer.Option(
        "--model", envvar="CLARA_MODEL", help="Model folder, or its id on the Hugging Face hub."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="CLARA_MODEL",
        default_factory=default_model,
        help="Model folder, or its id on the Hugging Face hub. Default: smollm2-135m-factbook, "
        "where its weights are.",
        show_default=False,
    ),
]
Index = Annotated[
    str,
    typer.Option("--index", envvar="CLARA_INDEX", help="Folder that `clara compress` wrote."),
]
Question = Annotated[
    str,
    typer.Argument(callback=read_question, help="Question; - reads it from standard input."),
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Number of documents to retrieve.")]
ReadTopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=1,
        help="Number of documents to answer from. Default: top_k of the model's settings.",
        show_default=False,
    ),
]
Rerank = Annotated[
    int | None,
    typer.Option(
        "--rerank",
        min=1,
        help="Find so many documents and keep the --top-k best by comparing all vectors.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help="Only documents that this condition keeps, in SQL over the metadata, such as "
        "\"since >= 2010 AND who = 'Anna'\".",
        show_default=False,
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--ids",
        metavar="ID,…|@FILE",
        help="Only these documents: ids with commas between them, or @ and a file with one on each "
        "line. Can be given many times; with --filter, those of them that it keeps.",
        show_default=False,
    ),
]
Approximate = Annotated[
    bool,
    typer.Option(
        "--approximate",
        help="Where the index has a view, do without the proof that no better document is missing.",
    ),
]
View = Annotated[
    bool,
    typer.Option(
        "--view/--no-view", help="Search a view of the index, and make one if it is large."
    ),
]
ViewFolder = Annotated[
    str | None,
    typer.Option(
        "--view-folder",
        help="Folder for views in place of the one in the index, such as one of a cache.",
        show_default=False,
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="Delete more than a tenth of the documents without asking.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        callback=_checked_device,
        help="cpu, cuda or cuda:N. Default: CUDA if available.",
        show_default=False,
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone to use instead of the one the model names.",
        show_default=False,
    ),
]
Quantized = Annotated[
    Quantization | None,
    typer.Option(
        "--quantization",
        help="Load the backbone in 4 or 8 bits. All but int8 on a CPU needs bitsandbytes.",
        show_default=False,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        help="Batch size in tokens. Default: chosen for the device.",
        show_default=False,
    ),
]
OverflowOfIndex = Annotated[
    Overflow | None,
    typer.Option(
        "--overflow",
        help="Split, cut or refuse documents over the model's limit. Default: the index's "
        "setting, or the model's for a new index.",
        show_default=False,
    ),
]
RateOfIndex = Annotated[
    int | None,
    typer.Option(
        "--compression-rate",
        min=1,
        help="Tokens per memory token, for a model in memory form spans. Default: the index's "
        "rate, or the model's for a new index.",
        show_default=False,
    ),
]
AnyRate = Annotated[
    bool, typer.Option("--any-rate", help="Allow a rate that the model is not trained for.")
]
StorageOfIndex = Annotated[
    StorageName | None,
    typer.Option(
        "--storage",
        help="How memory is stored. Default: the index's way, or the model's dtype for a new "
        "index.",
        show_default=False,
    ),
]
