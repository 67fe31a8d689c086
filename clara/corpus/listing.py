"""From sources to files: folders, patterns and single files become one list in a fixed order."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath

from clara.corpus import kinds
from clara.corpus.documents import Failure
from clara.corpus.hub import HubName, Table, have_rows_in_common, is_of_hub, load_tables
from clara.data import recognition
from clara.data.values import DataError, shown
from clara.errors import reason

_MAGIC = re.compile(r"[*?\[]")
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED = ("state.json", "dataset_dict.json")  # what `datasets` writes into a folder


@dataclass(frozen=True)
class Origin:
    """Where a source lies.

    Attributes:
        path: absolute, of the file, the folder, or the folder before the pattern; without links.
            Of a data set of the hub `HubName.origin`.
        pattern: with slashes, empty if there is none.
    """

    path: str
    pattern: str = ""

    @property
    def is_there(self) -> bool:
        """Whether there is something; of the hub that is taken for granted."""
        return is_of_hub(self.path) or os.path.exists(self.path)

    def holds(self, path: str) -> bool:
        """Whether a file, given by an absolute path without links, is one of the source.

        Example:
            >>> Origin("/data/docs", "**/*.md").holds("/data/docs/harbour/prices.md")
            True
        """
        if is_of_hub(self.path) or is_of_hub(path):
            return is_of_hub(path) and have_rows_in_common(path, self.path)
        if not self.pattern:
            return path == self.path or path.startswith(os.path.join(self.path, ""))
        relative = os.path.relpath(path, self.path)
        parts = PurePath(relative).parts
        return parts[:1] != ("..",) and _fits(parts, tuple(self.pattern.split("/")))


@dataclass(frozen=True)
class SourceFile:
    """A file to read, a folder that `datasets` saved, or a data set of the hub.

    Attributes:
        id: the source's name and the relative path, with slashes.
        path: what to open; of a symbolic link what it leads to. Of a data set of the hub its
            origin.
        shown: the path as messages show it.
        kind: see `CorpusDocument.kind`.
        source: name of the source.
        root: the source's folder, below which opening follows no link; None of a file that is a
            source itself.
        tables: files of a data set of the hub.
    """

    id: str
    path: str
    shown: str
    kind: str
    source: str
    root: str | None = None
    tables: tuple[Table, ...] = ()

    @property
    def place(self) -> str:
        """The path without links, or the origin of a data set of the hub."""
        return self.path if self.root is not None or self.tables else os.path.realpath(self.path)


@dataclass
class Listing:
    """What sources hold, before anything is read.

    Attributes:
        files: by source in the order given, in each by path.
        failures: entries that cannot be read, such as links that leave their source.
        hidden: files and folders whose name begins with a dot, which are left out.
        linked_folders: links to folders of the same source, whose files are read in their place.
        others: files of kinds that are not read, by suffix.
        origins: where each source lies, by its name.
    """

    files: list[SourceFile] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    hidden: int = 0
    linked_folders: int = 0
    others: Counter[str] = field(default_factory=Counter)
    origins: dict[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    """One argument: its name, the path to look at, and a pattern if there is one; or of the hub."""

    name: str
    root: str
    pattern: tuple[str, ...] = ()
    hub: HubName | None = None

    @property
    def origin(self) -> Origin:
        if self.hub is not None:
            return Origin(self.hub.origin)
        return Origin(os.path.realpath(self.root), "/".join(self.pattern))


def list_sources(sources: Sequence[str]) -> Listing:
    """The files of sources.

    A source is a file, a folder, or a pattern with `*`, `**`, `?` or `[…]` such as
    "docs/**/*.md". Its name is that of the file, the folder, or the folder before the pattern;
    "NAME=PATH" gives it another. "datasets:NAME" is a data set of the hub, see `HubName`; it is
    loaded into the cache of `datasets`.

    Raises:
        DataError: a source does not exist, cannot be loaded or holds nothing to read, two have the
            same name, or a reader is not installed.
    """
    if isinstance(sources, str):
        raise DataError(f"sources must be a list of paths, got the string {shown(sources)}")
    listing = Listing()
    names: dict[str, str] = {}
    for given in map(os.fspath, sources):
        source = _parsed(given)
        if source.name in names:
            raise DataError(
                f"sources {shown(names[source.name])} and {shown(given)} are both called "
                f"{shown(source.name)}; name one with NAME=PATH, or quote a pattern so that it is "
                "one source"
            )
        names[source.name] = given
        listing.origins[source.name] = source.origin
        before = len(listing.files) + len(listing.failures)
        _list(source, given, listing)
        if len(listing.files) + len(listing.failures) == before:
            raise DataError(f"{given}: holds nothing to read; what is read: {kinds.ACCEPTED}")
    kinds.check_installed({file.kind for file in listing.files})
    return listing


def _parsed(given: str) -> _Source:
    path, name = given, ""
    named = _NAMED.fullmatch(given)
    if named and not os.path.lexists(given):
        name, path = named[1], named[2]
    if (hub := HubName.parsed(path)) is not None:
        return _Source(name or hub.last_name, path, hub=hub)
    path = os.path.expanduser(path)
    if not path or "\0" in path:
        raise DataError(f"source {shown(given)} is not a path")
    pattern: tuple[str, ...] = ()
    if _MAGIC.search(path) and not os.path.lexists(path):
        parts = PurePath(path).parts
        first = next(place for place, part in enumerate(parts) if _MAGIC.search(part))
        path, pattern = str(PurePath(*parts[:first])), parts[first:]
    if not os.path.exists(path):
        raise DataError(_missing(given, path))
    name = name or os.path.basename(os.path.normpath(path))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.realpath(path)) or "root"
    if flaw := _flaw(name):
        raise DataError(f"source {shown(given)}: {flaw}; give another with NAME=PATH")
    return _Source(name, path, pattern)


def _missing(given: str, path: str) -> str:
    """The message about a source that is not there."""
    if os.path.lexists(path):
        return f"{given}: is a symbolic link to nothing"
    hub = _HUB_NAME.fullmatch(given) and not os.path.splitext(given)[1]
    return f"{given}: no such file or folder" + (
        f"; a data set of the hub is 'datasets:{given}'" if hub else ""
    )


def _flaw(name: str) -> str | None:
    """What is wrong with a name that becomes an id."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return None if name.strip() else "the name is blank"


def _list(source: _Source, given: str, listing: Listing) -> None:
    if source.hub is not None:
        tables = tuple(load_tables(source.hub, given))
        place = source.hub.origin
        listing.files.append(
            SourceFile(source.name, place, given, "dataset", source.name, tables=tables)
        )
    elif not os.path.isdir(source.root):
        listing.files.append(_single(source, given))
    elif not source.pattern and (saved := _saved_by_datasets(source.root)):
        listing.files.append(SourceFile(source.name, saved, given, "dataset", source.name))
    else:
        _list_folder(source, listing)


def _single(source: _Source, given: str) -> SourceFile:
    """A file that is named itself, whose kind its content may tell."""
    kind = kinds.by_suffix(source.root)
    if kind is None:
        try:
            if not stat.S_ISREG(os.stat(source.root).st_mode):
                raise DataError(f"{given}: is neither a file nor a folder")
            with open(source.root, "rb") as file:
                head = file.read(recognition.HEAD)
        except OSError as error:
            raise DataError(f"{given}: {error.strerror or error}") from error
        kind = kinds.by_content(head)
    if kind is None:
        raise DataError(f"{given}: is of a kind that is not read; what is read: {kinds.ACCEPTED}")
    return SourceFile(source.name, source.root, source.root, kind, source.name)


def _saved_by_datasets(folder: str) -> str | None:
    """The folder if `datasets` saved it, else None."""
    return folder if any(os.path.isfile(os.path.join(folder, name)) for name in _SAVED) else None


def _list_folder(source: _Source, listing: Listing) -> None:
    """Everything below a folder that the pattern fits, sorted by the bytes of its path."""
    real_root = os.path.realpath(source.root)
    found: list[SourceFile] = []
    failed: list[Failure] = []
    for parts, entry in _walk(source, listing, failed):
        relative = "/".join(parts)
        path = os.path.join(source.root, *parts)
        if source.pattern and not _fits(parts, source.pattern):
            continue
        kind = kinds.by_suffix(path)
        if kind is None:
            listing.others[os.path.splitext(path)[1].lower() or "no suffix"] += 1
            continue
        identifier = f"{source.name}/{relative}"
        try:
            flaw = _flaw(relative) or _entry_flaw(entry, path, real_root)
        except OSError as error:
            flaw = reason(error)
        if flaw:
            failed.append(Failure(_as_shown(path), flaw))
        else:
            real = os.path.join(real_root, *parts)
            if entry.is_symlink():
                real = os.path.realpath(path)
            shown_path = _as_shown(path)
            found.append(SourceFile(identifier, real, shown_path, kind, source.name, real_root))
    listing.files += sorted(found, key=lambda file: file.id.encode())
    listing.failures += sorted(failed, key=lambda each: os.fsencode(each.where))


def _walk(
    source: _Source, listing: Listing, failed: list[Failure]
) -> Iterator[tuple[tuple[str, ...], os.DirEntry[str]]]:
    """All that is below a folder and not hidden, but folders; no link to a folder is followed.

    Folders in which nothing can fit the pattern are left alone.
    """
    real_root = os.path.realpath(source.root)
    left: list[tuple[str, ...]] = [()]
    while left:
        above = left.pop()
        folder = os.path.join(source.root, *above)
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as error:
            failed.append(Failure(_as_shown(folder), error.strerror or str(error)))
            continue
        for entry in inside:
            parts = (*above, entry.name)
            if entry.name.startswith("."):
                listing.hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                if _leads_on(parts, source.pattern):
                    left.append(parts)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                if not _leads_on(parts, source.pattern):
                    continue
                if flaw := _left(entry.path, real_root) or _unread(entry.path, real_root, source):
                    failed.append(Failure(_as_shown(entry.path), flaw))
                else:
                    listing.linked_folders += 1
            else:
                yield parts, entry


def _entry_flaw(entry: os.DirEntry[str], path: str, real_root: str) -> str | None:
    """Why an entry of a folder is refused."""
    if entry.is_symlink():
        if not os.path.exists(path):
            return "is a symbolic link to nothing, or to itself"
        if flaw := _left(path, real_root):
            return flaw
    if not stat.S_ISREG(os.stat(path).st_mode):
        return "is not a file, but a pipe, socket or device"
    return None


def _left(path: str, real_root: str) -> str | None:
    """The message about a link that leads out of its source; None for others."""
    target = os.path.realpath(path)
    if target == real_root or target.startswith(os.path.join(real_root, "")):
        return None
    return f"is a symbolic link that leaves its source, to {target}"


def _unread(path: str, real_root: str, source: _Source) -> str | None:
    """The message about a link to a folder of the source that is not read in the link's place."""
    target = os.path.relpath(os.path.realpath(path), real_root)
    parts = () if target == "." else PurePath(target).parts
    if any(part.startswith(".") for part in parts):
        return f"is a symbolic link to a hidden folder, {target}, which is not read"
    if parts and not _leads_on(parts, source.pattern):
        return f"is a symbolic link to {target}, which the pattern does not fit"
    return None


def _as_shown(path: str) -> str:
    """A path on one line, whatever its name holds."""
    return path if path.isprintable() else repr(path)[1:-1]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern part by part; `**` stands for any number of folders."""
    return _reached(parts, pattern)[-1]


def _leads_on(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether something below a folder may fit a pattern; an empty one is fitted by everything."""
    reached = _reached(parts, pattern)
    return not pattern or any(reached[:-1]) or (reached[-1] and pattern[-1] == "**")


def _reached(parts: Sequence[str], pattern: Sequence[str]) -> list[bool]:
    """Whether a path fits the first `n` parts of a pattern, for every n.

    No pattern takes more time than the product of both lengths.
    """
    reached = [True] + [False] * len(pattern)
    for place, each in enumerate(pattern):
        reached[place + 1] = reached[place] and each == "**"
    for part in parts:
        before = reached
        reached = [False] * (len(pattern) + 1)
        for place, each in enumerate(pattern):
            if each == "**":
                reached[place + 1] = before[place + 1] or before[place] or reached[place]
            else:
                reached[place + 1] = before[place] and fnmatchcase(part, each)
    return reached
