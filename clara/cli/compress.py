"""`clara compress`: another name of `clara index build`, and from a file with no other look at it.

With sources it is `clara index build`. With `--corpus` it reads one file of JSON lines and stores
nothing unless all of it is in order.
"""

from __future__ import annotations

import functools
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from clara.cli import index as index_commands
from clara.cli import index_build, options
from clara.cli.errors import CommandError, user_errors
from clara.cli.loading import load_model, open_index
from clara.cli.paths import check_device, check_model, check_output, expanded
from clara.terminal.printing import one_line, print_json, say, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clara.config import Overflow
    from clara.data.records import Document
    from clara.index import MemoryIndex
    from clara.index.changes import Part
    from clara.index.corpus import Plan, Work
    from clara.model.clara import Clara


class OrBuild(TyperCommand):
    """`clara compress`, which is `clara index build` unless `--corpus` or `--help` is given."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context of the one or the other command, with the arguments parsed."""
        own = any(each in ("--corpus", "--help") or each.startswith("--corpus=") for each in args)
        if not own:
            try:
                return _build().make_context(info_name, list(args), parent=parent, **extra)
            except typer.BadParameter as error:
                if error.param is None or error.param.name != "sources":
                    raise
        return super().make_context(info_name, args, parent=parent, **extra)


@functools.cache
def _build() -> Any:
    """The command `clara index build`."""
    return cast(Any, typer.main.get_command(index_commands.index)).commands["build"]


def compress(
    model: options.Model,
    corpus: Annotated[
        str,
        typer.Option("--corpus", help="Corpus: JSON lines with id, contents and optionally title."),
    ],
    output: Annotated[str, typer.Option("--output", help="Folder of the index to write.")],
    batch_tokens: options.BatchTokens = None,
    overflow: options.OverflowOfIndex = None,
    compression_rate: options.RateOfIndex = None,
    any_rate: options.AnyRate = False,
    storage: options.StorageOfIndex = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an existing index; skip documents it already holds."
        ),
    ] = False,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Compress a corpus into an index.

    With SOURCE arguments in place of --corpus it is `clara index build`, with all of its options.
    """
    check_model(model, backbone=backbone)
    check_device(device)
    check_output(output, resume)
    from clara.data.records import read_document_ids

    ids = read_document_ids(corpus)
    existing = existing_index(output, resume)
    check_storage(existing, storage)
    loaded = load_model(model, backbone=backbone, device=device, quantization=quantization)
    rate = chosen_rate(loaded, existing, compression_rate, any_rate)
    plan = checked_plan(loaded, existing, corpus, ids, overflow, model, rate)
    index = existing
    if index is None:
        stored = None if storage is None else storage.value
        index, ours = create_index(loaded, output, plan.overflow, rate, stored, resume)
        if not ours:
            check_storage(index, storage)
            rate = chosen_rate(loaded, index, compression_rate, any_rate)
            plan = checked_plan(loaded, index, corpus, ids, overflow, model, rate)
    result = carry_out(loaded, index, corpus, plan, rate, batch_tokens)
    if as_json:
        print_json(result)
    else:
        print(summary(result))
        tokens = loaded.config.memory_tokens
        if result["short_documents"] and tokens is not None:
            print(remark(result["short_documents"], result["documents"], tokens))


def existing_index(output: str, resume: bool) -> MemoryIndex | None:
    """The index to go on with; None if there is nothing yet."""
    folder = expanded(output)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not resume:
        raise CommandError(f"{output}: exists already; add --resume to continue that index")
    return open_index(output)


def check_storage(index: MemoryIndex | None, asked: options.StorageName | None) -> None:
    """Refuse to go on with an index that stores memory otherwise."""
    from clara.model import index_settings

    if index is not None and asked is not None:
        with user_errors():
            index_settings.check_storage(index, asked.value, options.spelled)


def checked_plan(
    model: Clara,
    index: MemoryIndex | None,
    corpus: str,
    ids: set[str],
    overflow: options.Overflow | None,
    model_name: str,
    rate: int | None = None,
) -> Plan:
    """Compare a corpus with the model, and with the index to go on with if there is one.

    Raises:
        CommandError: the index is of another model, or was begun with another `overflow`; a
            document is too long, named as another's chunk, or differs from what the index holds.
    """
    from clara.index.corpus import make_plan

    def passages(documents: Sequence[Document], overflow: Overflow) -> Sequence[Part]:
        with user_errors():  # a ValueError of anything else is a bug and keeps its traceback
            found = model.passages(documents, overflow)
            model.check_fits(found, rate)
            return found

    how = chosen_overflow(model, index, overflow, model_name)
    return make_plan(index, corpus, ids, how, passages, every=not model.always_fits(rate))


def chosen_overflow(
    model: Clara, index: MemoryIndex | None, asked: options.Overflow | None, model_name: str
) -> Overflow:
    """What to do with long documents, the same for all of an index.

    Raises:
        CommandError: the index was begun otherwise, by another model, or has a fingerprint of an
            earlier release.
    """
    from clara.model import index_settings

    how = None if asked is None else asked.value
    with user_errors():
        return index_settings.chosen_overflow(
            model, index, how, model_name=model_name, spelled=options.spelled
        )


def chosen_rate(
    model: Clara, index: MemoryIndex | None, asked: int | None, any_rate: bool
) -> int | None:
    """The compression rate, the same for all of an index; None in memory form "learned".

    Raises:
        CommandError: the index was begun with another, or the model is not trained for it.
    """
    from clara.model import index_settings

    with warnings.catch_warnings(record=True) as caught, user_errors():
        warnings.simplefilter("always")  # the command hides those of libraries
        rate = index_settings.chosen_rate(model, index, asked, any_rate, spelled=options.spelled)
    for warning in caught:
        say(str(warning.message))
    return rate


def create_index(
    model: Clara,
    output: str,
    overflow: Overflow,
    rate: int | None,
    storage: str | None,
    resume: bool,
) -> tuple[MemoryIndex, bool]:
    """A new index and True; or that which another process has begun meanwhile, and False."""
    from clara.index import MemoryIndexError
    from clara.model import index_settings

    try:
        made = index_settings.create_index(model, output, overflow, rate, storage, columns={})
    except MemoryIndexError:
        other = existing_index(output, resume)
        if other is None:
            raise
        return other, False
    return made, True


def carry_out(
    model: Clara,
    index: MemoryIndex,
    corpus: str,
    plan: Plan,
    rate: int | None,
    batch_tokens: int | None,
) -> dict[str, Any]:
    """Do what is planned; what `--json` prints."""
    from clara.index.corpus import Work
    from clara.model.index_settings import compressing
    from clara.sync.records import details_of_records
    from clara.terminal.progress import document_progress

    compress = compressing(model, plan.overflow, rate, batch_tokens)
    work = Work(index, corpus, plan, compress, details_of_records(index, corpus))
    begin = time.perf_counter()
    with document_progress("compress", len(plan.ids), done=len(plan.stored)) as bar:
        work.run(bar.advance)
    return described(model, rate, work, time.perf_counter() - begin)


def described(model: Clara, rate: int | None, work: Work, seconds: float) -> dict[str, Any]:
    """What was done, as JSON holds it."""
    info = work.index.info()
    return {
        "index": info["path"],
        "documents": work.documents,
        "skipped": len(work.plan.stored),
        "added_by_others": work.added_by_others,
        "rows": work.rows,
        "tokens": work.tokens,
        "short_documents": work.short_documents,
        "seconds": seconds,
        "documents_per_second": work.documents / seconds,
        "nominal_compression": rate or model.config.compression_rate,
        "effective_compression": info["effective_compression"],
        **index_build.held(info),
    }


def summary(result: dict[str, Any]) -> str:
    """The last line for a reader."""
    notes = []
    if result["skipped"]:
        notes.append(f"{result['skipped']:,} were there already")
    if result["added_by_others"]:
        notes.append(f"{result['added_by_others']:,} were added by another process meanwhile")
    skipped = f" ({', '.join(notes)})" if notes else ""
    return one_line(
        f"{result['documents']:,} documents{skipped}, {result['rows']:,} rows, "
        f"{result['tokens']:,} tokens in {result['seconds']:.1f} s "
        f"({result['documents_per_second']:.1f} documents/s); compression "
        f"{result['nominal_compression']}x nominal, "
        f"{result['effective_compression']:.1f}x effective; index of "
        f"{result['index_documents']:,} documents, {size(result['index_bytes'])}: "
        f"{result['index']}"
    )


def remark(short: int, documents: int, memory_tokens: int) -> str:
    """What to do about documents with fewer tokens than the memory tokens they become."""
    whose = "1 document has" if short == 1 else f"{short:,} of {documents:,} documents have"
    return (
        f"{whose} fewer tokens than the {memory_tokens} memory tokens of a document, so memory is "
        "longer than the text there. Join short texts, or make a model with fewer memory tokens: "
        "`clara init` with a higher --compression-rate or a lower --document-length."
    )
