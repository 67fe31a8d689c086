"""`clara index list`, `get`, `delete`, `export` and `import`: the documents of an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options, streams
from clara.cli.errors import BAD_USAGE, CommandError
from clara.cli.index_build import confirmed
from clara.cli.loading import open_index
from clara.cli.paths import check_output, check_parent
from clara.cli.sources import DuplicateChoice, OnDuplicate
from clara.terminal.printing import excerpt, one_line, print_json, printable, size

if TYPE_CHECKING:
    from clara.corpus import CorpusDocument
    from clara.index import Entry
    from clara.terminal.progress import DocumentProgress

Path_ = Annotated[str, typer.Argument(metavar="INDEX", help="Folder of the index.")]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", help="Only documents whose ids begin so.", show_default=False),
]
_LONGEST = 80  # characters of a value in a list


def list_documents(
    path: Path_,
    prefix: Prefix = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Stop after so many documents.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List documents: id, source, tokens, metadata and title, without their texts."""
    index = open_index(path)
    entries = islice(index.documents(prefix), limit)
    if as_json:
        print_json({"index": index.path, "documents": [fields_of(entry) for entry in entries]})
        return
    count = 0
    for count, entry in enumerate(entries, 1):  # noqa: B007
        print(line(entry))
    print(one_line(f"{'1 document' if count == 1 else f'{count:,} documents'} of {index.path}"))


def get(
    path: Path_,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Id of a document.")],
    as_json: options.Json = False,
) -> None:
    """Print the text and metadata of documents."""
    from clara.sync.transfer import texts_of

    index = open_index(path).at_this_version()  # or texts might be of a later one
    entries = index.entries(ids)
    documents = texts_of(index, entries)
    if as_json:
        print_json(
            {
                "index": index.path,
                "documents": [
                    {**fields_of(entry), "contents": document.text}
                    for entry, document in zip(entries, documents, strict=True)
                ],
            }
        )
        return
    for place, (entry, document) in enumerate(zip(entries, documents, strict=True)):
        print(("\n" if place else "") + heading(entry) + "\n\n" + printable(document.text))


def delete(
    path: Path_,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]", help="Ids of documents.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Delete all documents of a source.", show_default=False),
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Leave out ids that are not in the index.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete documents with all of their chunks, in one commit.

    Above a tenth of the index's documents the command asks, or needs --yes. Old versions keep what
    was deleted until `clara index compact` removes them.
    """
    streams.output_is_extra()
    if bool(ids) == (source is not None):
        raise CommandError("give ids of documents, or --source and no ids", BAD_USAGE)
    from clara.sync.deciding import is_large

    index = open_index(path)
    names = list(dict.fromkeys(ids or ()))
    if source is not None:
        known = index.digests()  # reads all metadata, which must not be damaged
        names = [name for name, (origin, _) in known.items() if origin == source]
        if not names:
            there = ", ".join(sorted({repr(each) for each, _ in known.values() if each}))
            raise CommandError(
                f"{index.path}: no document is of the source {source!r}; there are: "
                f"{there or 'none'}"
            )
    total = index.info()["documents"]
    present = sum(index.contains_documents(names))
    if is_large(present, total) and not yes:
        what = f"{present:,} of {total:,} documents of {index.path}"
        if not confirmed(f"Delete {what}?"):
            raise CommandError(f"{what} are more than a tenth; add --yes to delete them")
    deleted = index.delete(names, missing_ok=missing_ok)
    left = index.info()["documents"]
    if as_json:
        print_json({"index": index.path, "deleted": deleted, "index_documents": left})
    else:
        print(one_line(f"{deleted:,} deleted; index of {left:,} documents: {index.path}"))


def export(
    path: Path_,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of JSON lines to write or replace.")
    ],
    prefix: Prefix = None,
    as_json: options.Json = False,
) -> None:
    """Write documents as JSON lines: id, contents, title, metadata and marks.

    `clara index build` reads the file back as the same documents.
    """
    streams.output_is_extra()
    target = output.expanduser()
    if target.exists() and not target.is_file():
        raise CommandError(f"{output}: is not a file")
    check_parent(target)
    if not target.parent.exists():
        raise CommandError(f"{target.parent}: no such folder")
    from clara.corpus import write_corpus
    from clara.sync.transfer import texts_of
    from clara.terminal.progress import document_progress

    index = open_index(path).at_this_version()  # or texts might be of a later one
    with document_progress("export", index.info()["documents"]) as bar:
        documents = write_corpus(target, _advancing(texts_of(index, index.documents(prefix)), bar))
    nbytes = target.stat().st_size
    if as_json:
        print_json({"file": str(target), "documents": documents, "bytes": nbytes})
    else:
        print(one_line(f"{target}: {documents:,} documents, {size(nbytes)}"))


def import_(
    path: Annotated[
        str, typer.Argument(metavar="INDEX", help="Folder of the index, made if there is none.")
    ],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Index to take documents from.")],
    on_duplicate: DuplicateChoice = OnDuplicate.error,
    as_json: options.Json = False,
) -> None:
    """Add the documents of another index of the same model, without compressing them again."""
    streams.output_is_extra()
    check_output(path, resume=True)
    from clara.sync.transfer import import_index
    from clara.terminal.progress import document_progress

    opened = open_index(other)
    with document_progress("import", opened.info()["documents"]) as bar:
        done = import_index(path, opened, on_duplicate=on_duplicate.value, advance=bar.advance)
    if as_json:
        print_json(asdict(done))
        return
    parts = [
        f"{done.added:,} added",
        f"{done.replaced:,} replaced",
        f"{done.unchanged:,} unchanged",
    ]
    if done.duplicates:
        parts.append(f"{done.duplicates:,} left out, whose ids are there")
    print(one_line(f"{', '.join(parts)}: {done.index}"))


def fields_of(entry: Entry) -> dict[str, Any]:
    """A document as JSON holds it, without its text."""
    return {
        "id": entry.document_id,
        "title": entry.title,
        "source": entry.source,
        "digest": entry.digest,
        "metadata": dict(entry.metadata),
        "tokens": entry.tokens,
        "vectors": entry.vectors,
        "rows": len(entry.rows),
    }


def line(entry: Entry) -> str:
    """A document on one line."""
    about = [] if entry.source is None else [excerpt(entry.source, _LONGEST)]
    about.append(f"{entry.tokens:,} tokens")
    about += [f"{excerpt(name, _LONGEST)}={value}" for name, value in metadata_of(entry)]
    title = f" {excerpt(entry.title, _LONGEST)}" if entry.title else ""
    return f"{excerpt(entry.document_id)} [{', '.join(about)}]{title}"


def heading(entry: Entry) -> str:
    """What stands above the text of a document."""
    lines = [f"id: {one_line(entry.document_id)}"]
    if entry.title:
        lines.append(f"title: {one_line(entry.title)}")
    if entry.source is not None:
        lines.append(f"source: {one_line(entry.source)}")
    lines += [f"{one_line(name)}: {value}" for name, value in metadata_of(entry)]
    lines.append(f"tokens: {entry.tokens:,} in {entry.vectors:,} vectors")
    return "\n".join(lines)


def metadata_of(entry: Entry) -> Iterator[tuple[str, str]]:
    """Metadata that a document has, with values as they are shown."""
    for name, value in entry.metadata.items():
        if value is not None:
            yield name, excerpt(str(value), _LONGEST)


def _advancing(
    documents: Iterator[CorpusDocument], bar: DocumentProgress
) -> Iterator[CorpusDocument]:
    for document in documents:
        bar.advance(1)
        yield document
