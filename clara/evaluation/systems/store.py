"""The memory of documents, computed once each or read from an index."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from clara.data.records import Document
from clara.evaluation.errors import EvaluationError
from clara.evaluation.systems.grouping import GROUP, Groups
from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments
from clara.model.clara import Clara

MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class KeptDocument:
    """The memory of a document, on the CPU.

    Attributes:
        parts: `[m_i, H]` of the document, or of each chunk that it was split into.
        tokens: of its text that were read.
    """

    parts: list[Tensor]
    tokens: int

    @property
    def vectors(self) -> int:
        return sum(map(len, self.parts))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass
class Measures:
    """What the documents took that were compressed so far."""

    documents: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    tokens: int = 0
    vectors: int = 0

    def add(self, kept: Iterable[KeptDocument], seconds: float) -> None:
        self.seconds += seconds
        for each in kept:
            self.documents += 1
            self.nbytes += each.nbytes
            self.tokens += each.tokens
            self.vectors += each.vectors


class DocumentMemory(Protocol):
    """Where the memory of documents comes from."""

    @property
    def model(self) -> Clara:
        """The model that wrote it."""

    @property
    def rate(self) -> int:
        """Tokens per memory vector."""

    @property
    def measures(self) -> Measures | None:
        """What compressing took; None where the memory was there already."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the memory besides the model and the documents, as a JSON object."""

    def plan(self, documents: Iterable[Document]) -> None:
        """Say which documents will be read, in the order in which they are needed."""

    def read(self, documents: Sequence[Document]) -> list[KeptDocument]:
        """The memory of documents."""


@dataclass
class ComputedMemory:
    """Compresses documents when they are first read, group by group, and keeps their memory in RAM.

    Args:
        rate: one of the model's; None is its own.
        most_bytes: of memory to keep. What was read longest ago goes first, and is computed again
            if it is needed again.

    Raises:
        ValueError: the model is not trained for the rate.
    """

    model: Clara
    given_rate: int | None = None
    most_bytes: int = MOST_BYTES
    measures: Measures = field(default_factory=Measures)
    _kept: OrderedDict[str, KeptDocument] = field(default_factory=OrderedDict, repr=False)
    _groups: Groups = field(default_factory=Groups, repr=False)
    _nbytes: int = 0
    _warm: bool = False

    def __post_init__(self) -> None:
        self.rate = self.model.rate(self.given_rate) or self.model.config.compression_rate

    @property
    def settings(self) -> dict[str, Any]:
        return {"rate": self.rate, "from": "documents", "group": GROUP}

    def plan(self, documents: Iterable[Document]) -> None:
        self._groups.plan(documents)

    def warm_up(self, documents: Sequence[Document]) -> None:
        """Compress the group of the first document without measuring or keeping it, but once."""
        if not self._warm:
            self.plan(documents)
            self._computed(self._groups.of(documents[0].id))
            self._warm = True

    def read(self, documents: Sequence[Document]) -> list[KeptDocument]:
        self.plan(documents)
        found: dict[str, KeptDocument] = {}
        for each in documents:
            if each.id in found:
                continue
            if each.id not in self._kept:
                self._compress(self._groups.of(each.id))
            found[each.id] = self._kept[each.id]
            self._kept.move_to_end(each.id)
        self._forget()
        return [found[each.id] for each in documents]

    def _compress(self, group: Sequence[Document]) -> None:
        begin = time.perf_counter()
        kept = self._computed(group)
        self.measures.add(kept.values(), time.perf_counter() - begin)
        for name, each in kept.items():
            before = self._kept.pop(name, None)
            self._nbytes += each.nbytes - (0 if before is None else before.nbytes)
            self._kept[name] = each

    def _computed(self, group: Sequence[Document]) -> dict[str, KeptDocument]:
        memory = self.model.compress(group, compression_rate=self.given_rate)
        kept = kept_documents(memory)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return kept

    def _forget(self) -> None:
        while self._nbytes > self.most_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._nbytes -= oldest.nbytes


class IndexedMemory:
    """Reads the memory of documents from an index.

    Raises:
        ValueError: the index is of another model.
    """

    measures = None

    def __init__(self, model: Clara, index: MemoryIndex) -> None:
        model.memory_space.require(
            index,
            f"{index.path}: was written",
            "evaluate the model that wrote it, or compress its documents again with this model",
            error=EvaluationError,
        )
        self.model = model
        self.rate = int(index.settings.get("compression_rate") or model.config.compression_rate)
        self._index = index
        self._rows: dict[str, list[str]] = defaultdict(list)
        for batch in index:
            for name, document in zip(batch.ids, batch.document_ids, strict=True):
                self._rows[document].append(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Memory may be stored in other bits or read in others, and texts cut in other chunks."""
        index = {
            "dtype": str(self._index.dtype).removeprefix("torch."),
            "storage": self._index.storage,
            "chunks": len(self._index),
            "settings": self._index.settings,
        }
        return {"rate": self.rate, "from": "index", "index": index}

    def plan(self, documents: Iterable[Document]) -> None:
        """Nothing: an index reads any document at any time."""

    def read(self, documents: Sequence[Document]) -> list[KeptDocument]:
        """
        Raises:
            EvaluationError: a document is not in the index.
        """
        names = list(dict.fromkeys(each.id for each in documents))
        for name in names:
            if name not in self._rows:
                raise EvaluationError(f"{self._index.path}: holds no document {name!r}")
        memory = self._index.get([row for name in names for row in self._rows[name]])
        kept = kept_documents(memory)
        return [kept[each.id] for each in documents]


def documents_of(index: MemoryIndex) -> dict[str, Document]:
    """The texts of an index as documents by id; the chunks of a document are joined."""
    texts: dict[str, list[str]] = defaultdict(list)
    titles: dict[str, str | None] = {}
    for batch in index:
        for row, name in enumerate(batch.document_ids):
            texts[name].append(batch.texts[row])
            titles[name] = batch.titles[row]
    return {name: Document(name, "".join(parts), titles[name]) for name, parts in texts.items()}


def kept_documents(memory: CompressedDocuments) -> dict[str, KeptDocument]:
    """The rows of compressed documents by the document that they are of."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    tokens: dict[str, int] = defaultdict(int)
    for row, name in enumerate(memory.document_ids):
        # A copy: a view would keep the memory of the whole batch.
        parts[name].append(memory.memory[row, : memory.counts[row]].cpu().clone())
        tokens[name] += memory.token_counts[row]
    return {name: KeptDocument(parts[name], tokens[name]) for name in parts}
