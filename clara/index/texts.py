"""Digests of the texts that the documents of an index were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import groupby

from clara.index.contents import Contents
from clara.index.digests import DIGEST_BYTES, number


def text_digest(title: str | None, parts: Iterable[str]) -> bytes:
    """The digest of a document's title and text, 16 bytes; the text may come in parts."""
    name = None if title is None else title.encode(errors="surrogatepass")
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"clara.text")
    state.update(number(-1) if name is None else number(len(name)) + name)
    for part in parts:
        state.update(part.encode(errors="surrogatepass"))
    return state.digest()


def text_digests(contents: Contents) -> dict[str, bytes]:
    """`text_digest` of each document; its chunks were added together, so they are neighbours."""
    found: dict[str, bytes] = {}
    for document_id, rows in groupby(contents.texts(), key=lambda row: row.document_id):
        parts = list(rows)
        digest = text_digest(parts[0].title, [part.text for part in parts])
        found.setdefault(document_id, digest)
    return found
