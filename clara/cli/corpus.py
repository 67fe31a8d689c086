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
from clara.cli.paths import check_device, check_model, check_output, expanded
from clara.cli.resuming import (
    refuse_changed,
    refuse_changed_texts,
    refuse_other_texts,
    stored_documents,
)
from clara.cli.short_documents import count_short, remark
from clara.terminal.printing import one_line, print_json, size

if TYPE_CHECKING:
    from clara.data.records import Document
    from clara.index import MemoryIndex
    from clara.memory.documents import CompressedDocuments
    from clara.model.clara import Clara

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
    plan = checked_plan(loaded, existing, corpus, ids, overflow, model)
    index = existing
    if index is None:
        index, ours = create_index(loaded, output, plan.overflow, resume)
        if not ours:
            plan = checked_plan(loaded, index, corpus, ids, overflow, model)
    result = Work(loaded, index, corpus, plan, batch_tokens).run()
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
    folder = expanded(output)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not resume:
        raise CommandError(f"{output}: exists already; add --resume to go on with that index")
    return open_index(output)


@dataclass(frozen=True)
class Plan:
    """What is to be done with a corpus, after all checks that need no computing.

    Attributes:
        ids: of all its documents.
        stored: of those that the index holds.
        overflow: one of `clara.config.Overflow`.
    """

    ids: set[str]
    stored: set[str]
    overflow: Any


def checked_plan(
    model: Clara,
    index: MemoryIndex | None,
    corpus: str,
    ids: set[str],
    overflow: options.Overflow | None,
    model_name: str,
) -> Plan:
    """Compare a corpus with the model, and with the index to go on with if there is one.

    Raises:
        CommandError: the index is of another model, or was begun with another `overflow`; a
            document is too long, named as another's chunk, or differs from what the index holds.
    """
    from clara.data.records import read_documents

    how = chosen_overflow(model, index, overflow, model_name)
    stored = set() if index is None else stored_documents(index, corpus, ids)
    check_rows(model, corpus, ids, how, set() if index is None else set(index.ids()), stored)
    if index is not None and stored:
        documents = read_documents(corpus)
        refuse_changed(model, index, corpus, documents, overflow=how, stored=stored)
    return Plan(ids, stored, how)


def chosen_overflow(
    model: Clara, index: MemoryIndex | None, asked: options.Overflow | None, model_name: str
) -> str:
    """What to do with long documents, the same for all of an index.

    Raises:
        CommandError: the index was begun otherwise, by another model, or has a fingerprint of an
            earlier release.
    """
    if index is None:
        return model.config.overflow if asked is None else asked.value
    with user_errors():
        model.memory_space.require_addable(
            index, "compress into a new folder", model_name=model_name
        )
    begun = str(index.settings.get("overflow", model.config.overflow))
    if asked is not None and asked.value != begun:
        raise CommandError(f"{index.path}: was begun with --overflow {begun}, not {asked.value}")
    return begun


def check_rows(
    model: Clara, corpus: str, ids: set[str], overflow: str, rows: set[str], stored: set[str]
) -> None:
    """Refuse a corpus in which a document is too long, or two would give rows of one name.

    Args:
        rows: ids of the rows that the index holds.
        stored: documents of the corpus among them, which give no rows any more.

    Only documents that can be at fault are tokenised: all of them with "error", with "chunk"
    those whose chunks could be named as another document is.
    """
    from clara.text.passages import prepare_passages

    if overflow == "error":
        suspects = ids
    elif overflow == "chunk":
        suspects = {base for base in map(_base, ids) if base in ids}
        suspects |= {base for base in map(_base, rows) if base in ids and base not in stored}
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
            if passage.id == passage.document_id:
                continue
            if passage.id in ids or (passage.document_id not in stored and passage.id in rows):
                where = "" if passage.id in ids else " in the index"
                raise CommandError(
                    f"{corpus}: a chunk of document {passage.document_id!r} would have the id of "
                    f"document {passage.id!r}{where}; rename one of them"
                )


def _base(name: str) -> str:
    """The document that a row of this name would be a chunk of."""
    return name.rpartition("#")[0]


def create_index(
    model: Clara, output: str, overflow: str, resume: bool
) -> tuple[MemoryIndex, bool]:
    """A new index and True; or that which another process has begun meanwhile, and False."""
    from clara.index import MemoryIndex, MemoryIndexError

    config = model.config
    try:
        made = MemoryIndex.create(
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
    except MemoryIndexError:
        other = existing_index(output, resume)
        if other is None:
            raise
        return other, False
    return made, True


@dataclass
class Work:
    """Compressing the documents of a corpus that an index does not hold.

    Other processes may add documents of the corpus at the same time, such as a second run of the
    same command. Theirs are left out, also if that shows only when ours are to be stored.
    """

    model: Clara
    index: MemoryIndex
    corpus: str
    plan: Plan
    batch_tokens: int | None
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    short_documents: int = 0
    added_by_others: int = 0

    def run(self) -> dict[str, Any]:
        """Compress group by group, a commit for each; what `clara compress --json` prints."""
        from clara.terminal.progress import document_progress

        skipped = len(self.plan.stored)
        begin = time.perf_counter()
        with document_progress("compress", len(self.plan.ids), done=skipped) as bar:
            for group in groups(self.corpus):
                todo = [document for document in group if document.id not in self.plan.stored]
                if todo:
                    self._compress(todo, bar.advance)
        seconds = time.perf_counter() - begin
        info = self.index.info()
        return {
            "index": info["path"],
            "documents": self.documents,
            "skipped": skipped,
            "added_by_others": self.added_by_others,
            "rows": self.rows,
            "tokens": self.tokens,
            "short_documents": self.short_documents,
            "seconds": seconds,
            "documents_per_second": self.documents / seconds,
            "nominal_compression": self.model.config.compression_rate,
            "effective_compression": info["effective_compression"],
            "index_documents": info["documents"],
            "index_rows": info["count"],
            "index_bytes": info["bytes"],
        }

    def _compress(self, documents: list[Document], advance: Any) -> None:
        shown = Shown(len(documents), advance)
        todo = self._without_others(documents)
        if not todo:
            shown.all_done()
            return
        compressed = self.model.compress(
            todo,
            batch_tokens=self.batch_tokens,
            overflow=self.plan.overflow,
            on_progress=shown.rows_done,
        )
        added = self._added(compressed)
        self.documents += len(set(added.document_ids))
        self.rows += len(added)
        self.tokens += sum(added.token_counts)
        self.short_documents += count_short(added)
        reached = self.tokens / (self.rows * self.index.memory_tokens) if self.rows else 0.0
        shown.all_done(f"{reached:.1f}x compression")

    def _without_others(self, documents: list[Document]) -> list[Document]:
        """The documents that no other process has added since the command began."""
        there = self.index.contains_documents([document.id for document in documents])
        others = [document for document, known in zip(documents, there) if known]
        if others:
            refuse_changed_texts(
                self.model, self.index, self.corpus, others, overflow=self.plan.overflow
            )
            self.added_by_others += len(others)
        return [document for document, known in zip(documents, there) if not known]

    def _added(self, compressed: CompressedDocuments) -> CompressedDocuments:
        """Store documents but those that another process adds first; what was stored."""
        from clara.index import DuplicateIdError

        while True:
            try:
                self.index.add(compressed)
                return compressed
            except DuplicateIdError:
                names = list(dict.fromkeys(compressed.document_ids))
                there = zip(names, self.index.contains_documents(names))
                others = {name for name, known in there if known}
                if not others:  # an id of ours is that of another document's chunk
                    raise
                refuse_other_texts(self.index, self.corpus, compressed, others)
                self.added_by_others += len(others)
                rows = [
                    row for row, name in enumerate(compressed.document_ids) if name not in others
                ]
                compressed = compressed[rows]


class Shown:
    """Progress of one group: rows are reported, documents are shown."""

    def __init__(self, documents: int, advance: Any) -> None:
        self._left = documents
        self._advance = advance

    def rows_done(self, rows: int) -> None:
        documents = min(rows, self._left)
        self._left -= documents
        self._advance(documents)

    def all_done(self, detail: str | None = None) -> None:
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
