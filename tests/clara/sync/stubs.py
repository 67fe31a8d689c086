"""A stub in the compressor's place, and indexes for its memory."""

import zlib

import torch

from clara.data.values import DataError
from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments

FINGERPRINT = "f" * 64
CHUNK = 40  # characters


class Stub:
    """A compressor of nothing but random numbers, which counts the documents that it gets.

    Texts are split after `chunk` characters, and "unreadable" in one is refused.

    Args:
        shape: of a text's memory. With a `rate`, which stands for the memory form "spans", a text
            has a vector for every so many characters, and as many as the shape says at most.
    """

    def __init__(self, fingerprint=FINGERPRINT, chunk=CHUNK, shape=(2, 8), rate=None) -> None:
        self.fingerprint, self.chunk, self.shape, self.rate = fingerprint, chunk, shape, rate
        self.seen: list[str] = []
        self.calls = 0

    def __call__(self, documents, *, on_progress):
        for document in documents:
            if "unreadable" in document.text:
                raise DataError(f"document {document.id!r} is unreadable")
        self.calls += 1
        rows = []
        for document in documents:
            self.seen.append(document.id)
            starts = range(0, len(document.text), self.chunk)
            for number, begin in enumerate(starts):
                name = document.id if len(starts) == 1 else f"{document.id}#{number}"
                rows.append((name, document, document.text[begin : begin + self.chunk]))
        memory = torch.empty(len(rows), *self.shape)
        for row, (name, _, text) in enumerate(rows):
            seed = torch.Generator().manual_seed(zlib.crc32(f"{name} {text}".encode()))
            memory[row].normal_(generator=seed)
        counts = [
            self.shape[0] if self.rate is None else -(-len(text) // self.rate)
            for _, _, text in rows
        ]
        on_progress(len(rows))
        return CompressedDocuments(
            memory=memory,
            counts=counts,
            ids=[name for name, _, _ in rows],
            document_ids=[document.id for _, document, _ in rows],
            token_counts=[len(text) for _, _, text in rows],
            texts=[text for _, _, text in rows],
            titles=[document.title for _, document, _ in rows],
            fingerprint=self.fingerprint,
        )


def new_index(path, types=None, **options):
    return MemoryIndex.create(
        path,
        fingerprint=FINGERPRINT,
        memory_tokens=2,
        hidden_size=8,
        columns=types,
        **{"settings": {"overflow": "chunk", "compression_rate": 16}, **options},
    )
