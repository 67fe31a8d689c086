"""The interface of an index for answering. `clara.index.MemoryIndex` has it; others may too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from typing_extensions import TypeIs


class SearchHit(Protocol):
    """A document that an index found.

    Attributes:
        id: of the document, or of a chunk of it.
        document_id: of the document.
        text, title: the text and title that were compressed.
        score: cosine to the query.
        memory: `[m, H]`.
    """

    @property
    def id(self) -> str: ...
    @property
    def document_id(self) -> str: ...
    @property
    def title(self) -> str | None: ...
    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def memory(self) -> Tensor: ...


class SearchableIndex(Protocol):
    """Documents of one model that can be searched by the memory of questions."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that wrote the memory, see `Clara.fingerprint`."""

    def search(self, query_memory: Tensor, k: int, /) -> Sequence[Sequence[SearchHit]]:
        """The best `k` documents for each query `[B, m, H]`, best first."""


def is_searchable(source: object) -> TypeIs[SearchableIndex]:
    """Whether documents are given as an index. (It may take its methods from `__getattr__`.)"""
    return hasattr(source, "search")
