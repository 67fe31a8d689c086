"""`clara compress`: from a corpus to an index."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara.cli import options
from clara.cli.errors import CommandError, user_errors
from clara.cli.loading import load_model, open_index
from clara.cli.output import one_line, print_json, size
from clara.cli.paths import check_device, check_model, check_output
from clara.cli.short_documents import count_short, remark

if TYPE_CHECKING:
    from clara.data.records import Document
    from clara.index import MemoryIndex
    from clara.model import Clara

# Documents of one commit. They are counted from the start of the corpus, also by a run that
# resumes, so that interrupted and uninterrupted runs compute the same batches.
GROUP = 256


def compress(
    model: options.Model,
    corpus: Annotated[
        str, typer.Option("--corpus", help="JSON lines with id, contents and perhaps title.")
    ],
    output: Annotated[str, typer.Option("--output", help="Folder of the index to write.")],
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            min=1,
            help="Tokens of one forward pass; by default what suits the device.",
            show_default=False,
        ),
    ] = None,
    overflow: Annotated[
        options.Overflow | None,
        typer.Option(
            "--overflow",
            help="Split, cut or refuse documents over the model's limit. By default as the index "
            "was begun, else as the model says.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an index, skip documents it holds.")
    ] = False,
    backbone: options.Backbone = None,
    device: options.Device = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Compress a corpus into an index."""
    check_model(model, backbone=backbone)
    check_device(device)
    check_output(output, resume)
    ids = read_ids(corpus)
    existing = existing_index(output, resume)
    loaded = load_model(model, backbone=backbone, device=device, quantization=quantization)
    how = chosen_overflow(loaded, existing, overflow)
    check_rows(loaded, corpus, ids, how)
    index = existing or create_index(loaded, output, how)
    work = Work(loaded, index, corpus, ids, how, batch_tokens)
    result = work.run()
    if as_json:
        print_json(result)
    else:
        print(summary(result))
        if result["short_documents"]:
            tokens = loaded.config.memory_tokens
            print(remark(result["short_documents"], result["documents"], tokens))


def read_ids(corpus: str) -> set[str]:
    """Read all of a corpus before anything is computed; the ids of its documents.

    Raises:
        DataError: a line is not as it should be; names it.
        CommandError: the file holds no documents, or cannot be read twice.
    """
    from clara.data.recognition import CORPUS
    from clara.data.records import read_documents

    file = Path(corpus)
    if file.exists() and not file.is_dir() and not stat.S_ISREG(file.stat().st_mode):
        raise CommandError(f"{corpus}: is a pipe or device; a corpus is read twice, use a file")
    ids = {document.id for document in read_documents(corpus)}
    if not ids:
        raise CommandError(f"{corpus}: holds no documents; {CORPUS}")
    return ids


def existing_index(output: str, resume: bool) -> MemoryIndex | None:
    """The index to go on with; None if there is nothing yet."""
    folder = Path(output).expanduser()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not resume:
        raise CommandError(f"{output}: exists already; add --resume to go on with that index")
    return open_index(output)


def chosen_overflow(model: Clara, index: MemoryIndex | None, asked: options.Overflow | None) -> str:
    """What to do with long documents, the same for all of an index.

    Raises:
        CommandError: the index was begun otherwise, or by another model.
    """
    if index is None:
        return model.config.overflow if asked is None else asked.value
    if index.fingerprint != model.fingerprint:
        raise CommandError(
            f"{index.path}: was written by another model ({index.fingerprint[:12]}, this one is "
            f"{model.fingerprint[:12]})"
        )
    begun = str(index.settings.get("overflow", model.config.overflow))
    if asked is not None and asked.value != begun:
        raise CommandError(f"{index.path}: was begun with --overflow {begun}, not {asked.value}")
    return begun


def check_rows(model: Clara, corpus: str, ids: set[str], overflow: str) -> None:
    """Refuse a corpus in which a document is too long, or two would give rows of one name.

    Only documents that can be at fault are tokenised: all of them with "error", with "chunk"
    those whose chunks could be named as another document is.
    """
    from clara.compression import prepare_passages

    if overflow == "error":
        suspects = ids
    elif overflow == "chunk":
        suspects = {base for base in (name.rpartition("#")[0] for name in ids) if base in ids}
    else:
        suspects = set()
    if not suspects:
        return
    for group in groups(corpus):
        chosen = [document for document in group if document.id in suspects]
        with user_errors():
            passages = prepare_passages(
                model.tokenizer,
                chosen,
                limit=model.config.document_length,
                overflow="error" if overflow == "error" else "chunk",
            )
        for passage in passages:
            if passage.id != passage.document_id and passage.id in ids:
                raise CommandError(
                    f"{corpus}: a chunk of document {passage.document_id!r} would have the id of "
                    f"document {passage.id!r}; rename one of them"
                )


def create_index(model: Clara, output: str, overflow: str) -> MemoryIndex:
    from clara.index import MemoryIndex

    config = model.config
    return MemoryIndex.create(
        output,
        fingerprint=model.fingerprint,
        memory_tokens=config.memory_tokens,
        hidden_size=model.hidden_size,
        dtype=model.dtype,
        settings={
            "backbone": config.backbone,
            "compression_rate": config.compression_rate,
            "document_length": config.document_length,
            "overflow": overflow,
        },
    )


@dataclass
class Work:
    """Compressing the documents of a corpus that an index does not hold."""

    model: Clara
    index: MemoryIndex
    corpus: str
    ids: set[str]
    overflow: Any  # one of clara.config.Overflow
    batch_tokens: int | None

    def run(self) -> dict[str, Any]:
        """Compress group by group, a commit for each; what `clara compress --json` prints."""
        from clara.progress import document_progress

        stored = self._stored()
        rows = tokens = short = 0
        begin = time.perf_counter()
        with document_progress("compress", len(self.ids), done=len(stored)) as bar:
            for group in groups(self.corpus):
                todo = [document for document in group if document.id not in stored]
                if not todo:
                    continue
                shown = Shown(len(todo), bar.advance)
                compressed = self.model.compress(
                    todo,
                    batch_tokens=self.batch_tokens,
                    overflow=self.overflow,
                    on_progress=shown.rows_done,
                )
                self.index.add(compressed)
                rows += len(compressed)
                tokens += sum(compressed.token_counts)
                short += count_short(compressed)
                reached = tokens / (rows * self.index.memory_tokens)
                shown.all_done(f"{reached:.1f}x compression")
        seconds = time.perf_counter() - begin
        documents = len(self.ids) - len(stored)
        info = self.index.info()
        return {
            "index": info["path"],
            "documents": documents,
            "skipped": len(stored),
            "rows": rows,
            "tokens": tokens,
            "short_documents": short,
            "seconds": seconds,
            "documents_per_second": documents / seconds,
            "nominal_compression": self.model.config.compression_rate,
            "effective_compression": info["effective_compression"],
            "index_documents": info["documents"],
            "index_rows": info["count"],
            "index_bytes": info["bytes"],
        }

    def _stored(self) -> set[str]:
        """Documents of the corpus that the index holds, whole or in chunks.

        A document is added with all its chunks at once, so the first stands for all.
        """
        rows = set(self.index.ids())

        def in_chunks(name: str) -> bool:
            first = f"{name}#0"
            return first in rows and first not in self.ids

        return {name for name in self.ids if name in rows or in_chunks(name)}


class Shown:
    """Progress of one group: rows are reported, documents are shown."""

    def __init__(self, documents: int, advance: Any) -> None:
        self._left = documents
        self._advance = advance

    def rows_done(self, rows: int) -> None:
        documents = min(rows, self._left)
        self._left -= documents
        self._advance(documents)

    def all_done(self, detail: str) -> None:
        self._advance(self._left, detail)
        self._left = 0


def groups(corpus: str) -> Iterator[list[Document]]:
    """The documents of a corpus, `GROUP` at a time."""
    from clara.data.records import read_documents

    documents = read_documents(corpus)
    while group := list(islice(documents, GROUP)):
        yield group


def summary(result: dict[str, Any]) -> str:
    """The last line for a reader."""
    skipped = f" ({result['skipped']:,} were there already)" if result["skipped"] else ""
    return one_line(
        f"{result['documents']:,} documents{skipped}, {result['rows']:,} rows, "
        f"{result['tokens']:,} tokens in {result['seconds']:.1f} s "
        f"({result['documents_per_second']:.1f} documents/s); compression "
        f"{result['nominal_compression']}x nominal, "
        f"{result['effective_compression']:.1f}x effective; index of "
        f"{result['index_documents']:,} documents, {size(result['index_bytes'])}: "
        f"{result['index']}"
    )
