"""What all documents of an index have in common: a model, a rate, and what becomes of long texts.

What an index was begun with holds for all that is added to it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from clara.config import ClaraConfig, Overflow
from clara.data.records import Document, DocumentLike
from clara.data.values import DataError
from clara.index import MemoryIndex
from clara.index.corpus import Compress
from clara.memory.documents import CompressedDocuments
from clara.memory.space import MemorySpace
from clara.text.passages import Passage


class Compressing(Protocol):
    """What these functions need of a model; `Clara` has it."""

    @property
    def config(self) -> ClaraConfig: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def memory_space(self) -> MemorySpace: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def rate(self, given: int | None = None, *, any_rate: bool = False) -> int | None: ...
    def passages(
        self, documents: Iterable[DocumentLike], overflow: Overflow | None = None
    ) -> list[Passage]: ...
    def check_fits(
        self, passages: Sequence[Passage], compression_rate: int | None = None
    ) -> None: ...
    def compress(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_tokens: int | None = None,
        overflow: Overflow | None = None,
        compression_rate: int | None = None,
        any_rate: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> CompressedDocuments: ...


Spelled = Callable[[str], str]
"""How messages name a setting before its value: as an argument of a function, or as an option."""


def as_argument(name: str) -> str:
    """As it is given in Python: "storage="."""
    return f"{name}="


def check_storage(
    index: MemoryIndex | None, asked: str | None, spelled: Spelled = as_argument
) -> None:
    """Refuse to go on with an index that stores memory otherwise.

    Raises:
        ValueError: it does.
    """
    if index is not None and asked is not None and asked != index.storage:
        raise _mismatch(index, spelled("storage"), index.storage, asked)


def chosen_overflow(
    model: Compressing,
    index: MemoryIndex | None,
    asked: Overflow | None,
    *,
    model_name: str = "MODEL",
    spelled: Spelled = as_argument,
) -> Overflow:
    """What to do with long documents.

    Args:
        index: to go on with, if there is one.
        model_name: how a command that a message names calls the model.

    Raises:
        ValueError: the index was begun otherwise, by another model, or has a fingerprint of an
            earlier release.
    """
    chosen: Overflow = model.config.replace(overflow=asked or model.config.overflow).overflow
    if index is None:
        return chosen
    model.memory_space.require_addable(index, "compress into a new folder", model_name=model_name)
    begun: Overflow = index.settings.get("overflow", model.config.overflow)
    if asked is not None and chosen != begun:
        raise _mismatch(index, spelled("overflow"), begun, chosen)
    return begun


def chosen_rate(
    model: Compressing,
    index: MemoryIndex | None,
    asked: int | None,
    any_rate: bool,
    *,
    spelled: Spelled = as_argument,
) -> int | None:
    """The compression rate; None in memory form "learned".

    What an index was begun with needs no second permission, and gives no second warning.

    Raises:
        ValueError: the index was begun with another, or the model is not trained for it.
    """
    begun = None if index is None else index.settings.get("compression_rate")
    if index is not None and asked is not None and begun is not None and asked != begun:
        raise _mismatch(index, spelled("compression_rate"), begun, asked)
    with warnings.catch_warnings():
        if begun is not None and not any_rate:
            warnings.filterwarnings("ignore", "the model is not trained for")
        return model.rate(asked if begun is None else begun, any_rate=any_rate or begun is not None)


def create_index(
    model: Compressing,
    path: str | os.PathLike[str],
    overflow: Overflow,
    rate: int | None,
    storage: str | None,
    columns: Mapping[str, type] | None = None,
) -> MemoryIndex:
    """An empty index for memory of a model.

    Raises:
        MemoryIndexError, ValueError: as `MemoryIndex.create`.
    """
    return MemoryIndex.create(
        path, **index_arguments(model, overflow, rate, storage), columns=columns
    )


def index_arguments(
    model: Compressing, overflow: Overflow, rate: int | None, storage: str | None
) -> dict[str, Any]:
    """Arguments of `MemoryIndex.create` for memory of a model, but the path and the columns."""
    config = model.config
    return {
        "fingerprint": model.fingerprint,
        "memory_tokens": config.most_memory_tokens(rate),
        "hidden_size": model.hidden_size,
        "dtype": model.dtype,
        "storage": storage,
        "settings": {**config.index_settings(rate), "overflow": overflow},
    }


def compressing(
    model: Compressing, overflow: Overflow, rate: int | None, batch_tokens: int | None = None
) -> Compress:
    """`Clara.compress` for one index: a document that it refuses is a DataError.

    Any other ValueError is none of a document, and stays what it is.
    """

    def compress(
        documents: Sequence[Document], *, on_progress: Callable[[int], None]
    ) -> CompressedDocuments:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the model is not trained for")  # said before
                return model.compress(
                    documents,
                    batch_tokens=batch_tokens,
                    overflow=overflow,
                    compression_rate=rate,
                    any_rate=True,  # checked before
                    on_progress=on_progress,
                )
        except ValueError:
            _refuse(model, documents, overflow, rate)
            raise

    return compress


def _refuse(
    model: Compressing, documents: Sequence[Document], overflow: Overflow, rate: int | None
) -> None:
    """Raise a DataError if it is a document that the model does not take."""
    try:
        model.check_fits(model.passages(documents, overflow), rate)
    except ValueError as error:
        raise DataError(str(error)) from error


def _mismatch(index: MemoryIndex, option: str, begun: object, asked: object) -> ValueError:
    return ValueError(
        f"{index.path}: was created with {option}{begun}; {option}{asked} does not match"
    )
