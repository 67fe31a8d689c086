"""`MemoryIndex`: compressed documents on disk and exact search over them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clara.errors.checks import as_integer
from clara.index import build
from clara.index.contents import Contents
from clara.index.description import describe
from clara.index.details import columns_of, types_of
from clara.index.errors import MemoryIndexError
from clara.index.folders import local_path, new_folder
from clara.index.handle import as_ids
from clara.index.header import new_header
from clara.index.hits import Hit, as_queries, read_hits
from clara.index.layout import StoredText
from clara.index.listing import Listing
from clara.index.searching import chosen_rows
from clara.index.snapshot import Snapshot
from clara.index.texts import text_digests
from clara.index.verifying import Verifying
from clara.index.viewing import Viewing
from clara.index.views import ViewRule
from clara.memory.documents import CompressedDocuments
from clara.memory.space import MemorySpace


class MemoryIndex(Verifying, Viewing, Listing):
    """Compressed documents of one model in a folder, a Lance dataset.

    `create` makes an index and `open` opens one. Each `add`, `upsert` and `delete` is one commit; a
    killed process leaves the index unchanged. Several processes may read and write, on several
    hosts too; each sees the commits of the others at its next call. A document with a long text
    is several rows. Every row has a checksum, which is verified whenever the row is read: if it is
    damaged, any method raises MemoryIndexError with its id.

    If the folder is replaced by a new index of the same model, shape, dtype and settings, the next
    call reads the new one. If it is replaced by any other index, every call raises
    MemoryIndexError.

    Without a view, the first search reads what documents are ranked by: all memory, or its means.
    If that is large it writes a view of it, a file that later searches map into memory, see
    `build_view`; otherwise it keeps it in RAM. So does a search after a change. Copies made by
    `copy.deepcopy` or `pickle` use the same folder: no document is copied.
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str,
        memory_tokens: int,
        hidden_size: int,
        dtype: torch.dtype = torch.float32,
        storage: str | None = None,
        settings: dict[str, Any] | None = None,
        columns: Mapping[str, type] | None = None,
    ) -> MemoryIndex:
        """Make an empty index.

        Args:
            path: a new folder, or an empty one.
            fingerprint: `Clara.fingerprint` of the model whose memory the index will hold.
            memory_tokens: m, memory tokens per document; the most of a document in memory form
                "spans".
            hidden_size: H.
            dtype: float32, float16 or bfloat16, or its name: in which memory is read.
            storage: "float32", "float16", "bfloat16", "int8" or "int4": how memory is stored.
                Default: the dtype. A floating-point storage takes the place of `dtype`. See
                `clara_kernels.quantize_memory` for "int8" and "int4".
            settings: any JSON object to store with the documents. With "memory_form": "spans" the
                index holds that form at the rate "compression_rate"; with "ranking": "mean" it
                ranks by the mean of memory. See `ClaraConfig.index_settings`.
            columns: names and types (str, int, float, bool) of the documents' metadata, perhaps
                none; they stay as they are. Each row then also has its document's source and
                digest, and the place of its text, see `Details`. Default: no such columns.

        Raises:
            ValueError, TypeError: an argument is not as stated.
            MemoryIndexError: `path` exists and is not an empty folder, or cannot be written.
                Nothing is left there then.
        """
        header = new_header(
            fingerprint=fingerprint,
            memory_tokens=memory_tokens,
            hidden_size=hidden_size,
            dtype=dtype,
            storage=storage,
            settings=settings,
            columns=None if columns is None else columns_of(columns),
        )
        target = local_path(path)
        with new_folder(target) as unfinished:
            build.write_empty(header, unfinished)
        return cls.open(target)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        version: int | None = None,
        *,
        views: bool | str | os.PathLike[str] = True,
    ) -> MemoryIndex:
        """Open an index that `create` made.

        Args:
            version: one of `versions`, to read the index as it was then. Nothing can be changed
                in it, and it does not see what others change.
            views: whether searches use views, see `build_view`; or a folder for them in place of
                the one in the index, for an index that can only be read.

        Raises:
            TypeError, ValueError: `version` is not a positive integer, or `views` no path.
            MemoryIndexError: there is no index or no such version, it has a newer format, or it is
                damaged.
        """
        rule = ViewRule.of(views)
        if version is None:
            return cls(Snapshot.latest(local_path(path)))._with(rule)
        number = as_integer(version, "version", least=1)
        return cls(Snapshot.at(local_path(path), number))._with(rule)

    def get(self, ids: Sequence[str]) -> CompressedDocuments:
        """Return the documents with these ids, in the given order.

        Raises:
            TypeError: `ids` is a single string.
            MemoryIndexError: an id is not in the index, or its document is damaged.
        """
        ids = as_ids(ids)

        def read(contents: Contents) -> CompressedDocuments:
            return contents.take(self._rows(contents, ids))

        return self._read(read)

    def contains(self, ids: Sequence[str]) -> list[bool]:
        """Whether the index holds each of these ids."""
        ids = as_ids(ids)
        with self._lock:
            stored = self._read_catalog().rows
            return [name in stored for name in ids]

    def contains_documents(self, document_ids: Sequence[str]) -> list[bool]:
        """Whether the index holds each of these documents, whole or in chunks."""
        document_ids = as_ids(document_ids)
        with self._lock:
            stored = self._read_catalog().documents
            return [name in stored for name in document_ids]

    def ids(self) -> list[str]:
        """Return the ids of all documents, in the order they were added."""
        with self._lock:
            return list(self._read_catalog().rows)

    def texts(self, ids: Sequence[str]) -> list[StoredText]:
        """Return title and text of these documents. Does not read memory; in formats 1 and 2 the
        checksums of texts need it, and are not verified.

        Raises:
            TypeError: `ids` is a single string.
            MemoryIndexError: an id is not in the index, or its document is damaged.
        """
        ids = as_ids(ids)
        return self._read(lambda contents: contents.take_texts(self._rows(contents, ids)))

    def text_digests(self) -> dict[str, bytes]:
        """`clara.index.text_digest` of each document, its chunks joined. Reads no memory."""
        return self._read(text_digests)

    def search(
        self,
        query_memory: Tensor,
        k: int,
        filter: str | None = None,
        ids: Sequence[str] | None = None,
        *,
        approximate: bool = False,
    ) -> list[list[Hit]]:
        """Find the documents whose memory has the highest cosine to each query.

        Memory is flattened for it, or averaged, see `ClaraConfig.ranking`.

        The search is exact and runs on the CPU with `clara_kernels.cosine_topk`. Equal scores are
        ordered by row.

        Args:
            query_memory: `[B, m, H]` or `[m, H]`; m is 1 where documents are ranked by the mean of
                their memory. float32, float16 or bfloat16, on any device.
            k: an integer of at least 1; at most 2,048 if the search is among more documents.
            filter: search only rows that it keeps, as exactly as if there were no others. A
                condition in Lance's SQL over the columns of metadata, "document_id", "title",
                "source" and "tokens", such as "year >= 1990 AND author IN ('A', 'B')". A name that
                is no plain word has `backticks`.
            ids: search only the rows of these documents; with a filter, those that it keeps.
            approximate: where a view is searched, do without the proof that no better document
                is missing. Scores are right all the same. See docs/views for what is found.

        Returns:
            `min(k, n)` hits for each of the B queries (one for `[m, H]`), best first, where n is
            the number of rows that are searched.

        Raises:
            TypeError: an argument has another type.
            ValueError: the shape differs, a value is not finite, or k is below 1.
            MemoryIndexError: the filter cannot be read or names a column that the index does not
                have, or a document of `ids` is not in the index.
            MemoryIndexError: a document is damaged. Every search checks its hits. The first search
                checks the memory of all documents, or their means, unless there is a view, for
                which they were checked when it was written.
        """
        queries = as_queries(self._header, query_memory)
        k = as_integer(k, "k", least=1)
        document_ids = None if ids is None else as_ids(ids)
        if filter is None and document_ids is None:
            found = self._found_by_view(queries, k, approximate=approximate)
            if found is not None:
                return found

        def read(contents: Contents) -> list[list[Hit]]:
            chosen = chosen_rows(contents, filter, document_ids)
            if not len(queries) or not contents.count:
                return [[] for _ in queries]
            ranking = self._ranking_of(contents)
            scores, rows = ranking.nearest(queries, k, chosen, approximate=approximate)
            return read_hits(contents, scores, rows)

        return self._read(read)

    def __len__(self) -> int:
        return self._current().count

    def __iter__(self) -> Iterator[CompressedDocuments]:
        """Iterate over all documents in the order they were added, in batches of some megabytes.

        Raises:
            MemoryIndexError: a document is damaged, or the index was replaced by another one
                after the iteration began.
        """
        return self._iterate(self._current())

    def __copy__(self) -> MemoryIndex:
        return type(self)(self._snapshot)._with(self._views)

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryIndex:
        return copy.copy(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        version = self._snapshot.version if self._snapshot.pinned else None
        identity = self._snapshot.identity
        return _reopen, (type(self), self.path, identity, version, self._views)

    def __repr__(self) -> str:
        return (
            f"MemoryIndex({self.path!r}, memory_tokens={self.memory_tokens}, "
            f"hidden_size={self.hidden_size}, dtype={self._header.dtype_name}, "
            f"storage={self.storage})"
        )

    def info(self) -> dict[str, Any]:
        """Describe the index, as `clara info` does, in a JSON-serialisable dict.

        Keys: "path", "format_version", "count" (rows), "documents" (distinct document ids),
        "vectors" (memory vectors of all rows), "memory_tokens", "hidden_size", "dtype", "storage",
        "fingerprint", "bytes" (on disk), "bytes_per_document", "expected_bytes_per_document" (by
        `clara.index.sizing`, after files are joined and old versions removed; None in formats 1
        and 2, 0 when empty as the one before), "tokens" (document tokens read),
        "effective_compression" (tokens read per memory token, 0 when empty), "duplicate_ids" (ids
        stored more than once by writers without a lock; the first row is the document, `clara
        index upgrade` removes the others), "columns" (names and types of metadata, None without
        such columns) and "settings".
        """
        with self._lock:
            return describe(self._read_catalog(), self._header, self.path)

    @property
    def path(self) -> str:
        """The folder, absolute."""
        return self._snapshot.path

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that wrote the memory."""
        return self._header.fingerprint

    @property
    def memory_space(self) -> MemorySpace:
        """Fingerprint, shape and dtype of all memory in the index."""
        return self._header.memory_space

    @property
    def memory_tokens(self) -> int:
        """m, memory tokens per document; the most of a document in memory form "spans"."""
        return self._header.memory_tokens

    @property
    def hidden_size(self) -> int:
        """H."""
        return self._header.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which memory is read; `storage` says how it is stored."""
        return self._header.dtype

    @property
    def storage(self) -> str:
        """How memory is stored: "float32", "float16", "bfloat16", "int8" or "int4"."""
        return self._header.storage_name

    @property
    def columns(self) -> dict[str, type] | None:
        """Names and types of the metadata; None: the index was made without columns for them."""
        return types_of(self._header)

    @property
    def settings(self) -> dict[str, Any]:
        """A copy of the settings that `create` got."""
        return copy.deepcopy(self._header.settings)

    def _rows(self, contents: Contents, ids: Sequence[str]) -> list[int]:
        """Where these ids are.

        Raises:
            MemoryIndexError: one is not in the index.
        """
        return [contents.known_row(name) for name in ids]


def _reopen(
    kind: type[MemoryIndex], path: str, identity: str, version: int | None, views: ViewRule
) -> MemoryIndex:
    """What a pickled index becomes.

    Raises:
        MemoryIndexError: the index is gone, or another one is in its place.
    """
    index = kind.open(path, version)._with(views)
    if index._snapshot.identity != identity:
        raise MemoryIndexError(f"{index.path}: was replaced by another index; open it again")
    return index
