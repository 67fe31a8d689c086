"""Build or migrate an index with a model: `Clara.build_index` and `migrate_index`, step by step."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from clara.config import Overflow
from clara.corpus import Reading
from clara.index import MemoryIndex, MemoryIndexError
from clara.index.folders import is_vacant, local_path
from clara.model import index_settings
from clara.model.index_settings import Compressing, Spelled, as_argument
from clara.sync import Build, Decision, Migration
from clara.sync.build import ALL, Confirm


def prepare_build(
    model: Compressing,
    path: str | os.PathLike[str],
    sources: Sequence[str] | Reading,
    *,
    allowed: Collection[Decision] = ALL,
    prune: bool = False,
    confirm: Confirm | None = None,
    overflow: Overflow | None = None,
    compression_rate: int | None = None,
    any_rate: bool = False,
    storage: str | None = None,
    batch_tokens: int | None = None,
    model_name: str = "MODEL",
    spelled: Spelled = as_argument,
) -> Build:
    """All checks of a build that need no computing; `Build.run` does the rest.

    Args:
        path: of the index; a folder that is not there, or empty, becomes a new one.
        sources: see `clara.corpus.list_sources`, or a reading of them with other options.
        allowed, prune, confirm: see `Build`.
        overflow, compression_rate, any_rate, batch_tokens: as in `Clara.compress`. An index that
            is there has settings of its own, which these must not contradict.
        storage: see `MemoryIndex.create`.
        model_name, spelled: for messages.

    Raises:
        DataError: the sources cannot be listed, overlap, or do not fit the index's columns.
        ValueError: the index is of another model, or was begun with other settings.
        MemoryIndexError: the index cannot be opened or written, or has no columns for metadata.
    """
    reading = sources if isinstance(sources, Reading) else Reading(sources)
    folder = local_path(path)
    index = opened_index(folder)
    index_settings.check_storage(index, storage, spelled)
    how = index_settings.chosen_overflow(
        model, index, overflow, model_name=model_name, spelled=spelled
    )
    rate = index_settings.chosen_rate(model, index, compression_rate, any_rate, spelled=spelled)

    def create(types: Mapping[str, type]) -> MemoryIndex:
        return index_settings.create_index(model, folder, how, rate, storage, types)

    compress = index_settings.compressing(model, how, rate, batch_tokens)
    return Build(reading, index, create, compress, allowed=allowed, prune=prune, confirm=confirm)


def prepare_migration(
    model: Compressing,
    path: str | os.PathLike[str],
    *,
    overflow: Overflow | None = None,
    compression_rate: int | None = None,
    any_rate: bool = False,
    storage: str | None = None,
    batch_tokens: int | None = None,
    spelled: Spelled = as_argument,
) -> Migration:
    """All checks of a migration that need no computing; `Migration.run` does the rest.

    Args:
        overflow, storage: as the index has them by default.
        compression_rate, any_rate, batch_tokens: as in `Clara.compress`.
        spelled: for messages.

    Raises:
        ValueError: an argument is not as stated, or the model is not trained for the rate.
        MemoryIndexError: the index cannot be opened or written.
    """
    folder = local_path(path)
    index = opened_index(folder)
    if index is None:
        raise MemoryIndexError(f"{folder}: not found, or an empty folder, so there is no index")
    asked = overflow or index.settings.get("overflow")
    how = index_settings.chosen_overflow(model, None, asked, spelled=spelled)
    rate = index_settings.chosen_rate(model, None, compression_rate, any_rate, spelled=spelled)
    arguments = index_settings.index_arguments(model, how, rate, storage or index.storage)
    compress = index_settings.compressing(model, how, rate, batch_tokens)
    return Migration(folder, arguments, compress)


def opened_index(folder: str) -> MemoryIndex | None:
    """The index to go on with; None where there is nothing yet.

    Raises:
        MemoryIndexError: there is something else, or it cannot be read or written.
    """
    if is_vacant(folder):
        return None
    index = MemoryIndex.open(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MemoryIndexError(f"{folder}: cannot be written: no permission")
    return index
