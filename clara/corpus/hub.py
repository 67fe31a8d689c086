"""Data sets of the Hugging Face hub, which `datasets` loads into its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from typing import Any, NamedTuple

from clara.data.values import DataError, shown
from clara.errors import reason

_SCHEME = "datasets:"
_HUB = "hf://"
_URL = f"{_HUB}datasets/"
_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_WORD = re.compile(r"\w[\w.+-]*")
_FORM = (
    f"give {_SCHEME}NAME, {_SCHEME}NAME:CONFIGURATION or {_SCHEME}NAME@REVISION:CONFIGURATION:SPLIT"
)


class Table(NamedTuple):
    """An Arrow file of a data set in the cache of `datasets`.

    Attributes:
        split: that it belongs to.
        path: of the file.
    """

    split: str
    path: str


@dataclass(frozen=True)
class HubName:
    """A data set of the hub, as a source names it.

    Attributes:
        name: such as "squad" or "owner/name".
        revision: a commit, branch or tag; None is the newest.
        configuration: None is the only one, or the default one.
        split: None is all splits, one after the other.
    """

    name: str
    revision: str | None = None
    configuration: str | None = None
    split: str | None = None

    @classmethod
    def parsed(cls, given: str) -> HubName | None:
        """The data set that a source names; None of a path.

        Raises:
            DataError: it begins like one, and is none.

        Example:
            >>> HubName.parsed("datasets:owner/name@main:en:train")
            HubName(name='owner/name', revision='main', configuration='en', split='train')
        """
        for scheme in (_SCHEME, _URL):
            if given.startswith(scheme):
                break
        else:
            return None
        named, *words = given.removeprefix(scheme).split(":")
        configuration, split = [*words, "", ""][:2]
        name, at, revision = named.partition("@")
        found = cls(name, revision or None, configuration or None, split or None)
        fine = _NAME.fullmatch(name) and all(_WORD.fullmatch(word) for word in words if word)
        if not fine or len(words) > 2 or (at and not _REVISION.fullmatch(revision)):
            raise DataError(f"source {shown(given)} names no data set of the hub; {_FORM}")
        return found

    @property
    def origin(self) -> str:
        """What stays the same when the data set has a new revision."""
        return f"{_SCHEME}{self.name}:{self.configuration or ''}:{self.split or ''}".rstrip(":")

    @property
    def last_name(self) -> str:
        """The name without its owner."""
        return self.name.rpartition("/")[2]


def is_of_hub(origin: str) -> bool:
    """Whether this is the origin of a data set of the hub, and no path."""
    return origin.startswith(_SCHEME)


def have_rows_in_common(one: str, other: str) -> bool:
    """Whether two origins are the same split of a data set, or one has all splits.

    Example:
        >>> have_rows_in_common("datasets:squad", "datasets:squad::train")
        True
    """
    *names, split = _words_of(one)
    *other_names, other_split = _words_of(other)
    return names == other_names and (not split or not other_split or split == other_split)


def _words_of(origin: str) -> list[str]:
    """Name, configuration and split; "" for each that is not given."""
    return [*origin.removeprefix(_SCHEME).split(":"), "", ""][:3]


def load_tables(wanted: HubName, given: str) -> list[Table]:
    """The files of a data set, which is downloaded and written to the cache of `datasets` before.

    No code that comes with a data set is run.

    Args:
        given: the source as messages name it.

    Raises:
        DataError: the package is not installed; or the data set is not in the cache and cannot be
            had, or has no such configuration or split.
    """
    if find_spec("datasets") is None:
        raise DataError(
            f"{given}: loading data sets of the hub needs the package datasets: install the extra "
            "datasets, pip install '.[datasets]'"
        )
    if os.path.lexists(wanted.name):
        raise DataError(
            f"{given}: there is a local {shown(wanted.name)}, which datasets may read in its "
            "place; give that path as the source, or work in another folder"
        )
    import datasets

    if wanted.name in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", ()) or (
        wanted.name.startswith("buckets/")
    ):
        raise DataError(f"{given}: datasets reads files with this name; give the files as sources")
    try:
        loaded = _loaded(datasets, wanted, given)
        found = list(_tables(loaded, wanted, given))
    except DataError:
        raise
    except Exception as error:  # of any library that reads what the hub holds
        raise DataError(f"{given}: {_why(datasets, error)}") from error
    if not found:
        raise DataError(f"{given}: holds nothing to read")
    return found


def _loaded(datasets: Any, wanted: HubName, given: str) -> dict[str, Any]:
    """The splits by their names.

    Raises:
        DataError: what the cache holds is of another revision, or the data set names files that lie
            elsewhere than on the hub.
    """
    options: dict[str, Any] = {"revision": wanted.revision}
    if "trust_remote_code" in signature(datasets.load_dataset_builder).parameters:
        options["trust_remote_code"] = False  # releases before 4 have it, whatever its default
    builder = datasets.load_dataset_builder(wanted.name, wanted.configuration, **options)
    # Where the hub cannot be asked, the newest that the cache holds is given for any revision.
    if type(builder).__name__ == "Cache" and wanted.revision is not None:
        commit = str(builder.hash)
        if not commit.startswith(wanted.revision):
            raise DataError(
                f"{given}: the hub cannot be asked, and the "
                f"newest in the cache {_cache(datasets)} is commit {commit}"
            )
    _require_on_hub(builder, given)
    builder.download_and_prepare()
    found = builder.as_dataset()
    return dict(found)


def _require_on_hub(builder: Any, given: str) -> None:
    """Refuse a data set whose card names files of this machine or of other ones as its own.

    Raises:
        DataError: names the file.
    """
    for files in (getattr(builder.config, "data_files", None) or {}).values():
        for file in map(str, files):
            if not file.rpartition("::")[2].startswith(_HUB):  # behind the name in an archive
                raise DataError(
                    f"{given}: has {shown(file)} among its files, which does not lie on the hub; "
                    "no such file is read"
                )


def _tables(loaded: dict[str, Any], wanted: HubName, given: str) -> Iterator[Table]:
    """The files of the split that is wanted, or of all.

    Raises:
        DataError: there is no such split.
    """
    if wanted.split is not None and wanted.split not in loaded:
        there = ", ".join(sorted(loaded))
        raise DataError(
            f"{given}: has no split {shown(wanted.split)}, there are: {shown(there, quoted=False)}"
        )
    for split, table in loaded.items():
        if wanted.split in (None, split):
            for file in table.cache_files:
                yield Table(split, file["filename"])


def _why(datasets: Any, error: Exception) -> str:
    """Why a data set cannot be had, and what to do."""
    cache = _cache(datasets)
    if datasets.config.HF_HUB_OFFLINE:
        return (
            f"cannot be taken from the cache {cache}, and HF_HUB_OFFLINE forbids to ask the hub: "
            f"{reason(error)}"
        )
    return (
        f"cannot be loaded: {reason(error)}; HF_HUB_OFFLINE=1 takes what the cache {cache} holds "
        "without asking the hub"
    )


def _cache(datasets: Any) -> str:
    return str(datasets.config.HF_DATASETS_CACHE)
