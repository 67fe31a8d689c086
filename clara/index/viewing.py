"""Views of an open index, as its user asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from clara.errors import reason
from clara.index.contents import Contents, RowReader
from clara.index.errors import MemoryIndexError
from clara.index.handle import Handle
from clara.index.hits import Hit, read_hits
from clara.index.ranking import Ranking
from clara.index.snapshot import Snapshot
from clara.index.views.choice import remove_views, source_of, view_path
from clara.index.views.layout import view_bytes
from clara.index.views.mapped import View


class ViewFile(NamedTuple):
    """A view of the version that is open.

    Attributes:
        path: of the file.
        rows, size: rows and bytes in it.
    """

    path: str
    rows: int
    size: int


class Viewing(Handle):
    """The methods of `MemoryIndex` for views."""

    _ranking: Ranking | None = None
    _alone: tuple[Snapshot, View | None] | None = None

    def build_view(self, on_progress: Callable[[int], None] | None = None) -> ViewFile:
        """Write a view of the version that is open, which searches map into memory.

        The first search of a large index makes its view by itself, see docs/views. This makes it
        beforehand, or of an index of any size. It takes the place of views of earlier versions.
        Answers do not change. A process that is killed meanwhile leaves none.

        Args:
            on_progress: is told how many rows were just read.

        Raises:
            MemoryIndexError: the view cannot be written, a document is damaged, or the index was
                opened without views.
        """
        if not self._views.used:
            raise MemoryIndexError(f"{self._snapshot.path}: opened without views")
        contents = self._current()
        try:
            view = self._ranking_of(contents).build(on_progress)
        except OSError as error:
            said = f"building the view failed: {error.strerror or reason(error)}"
            raise MemoryIndexError(f"{contents.snapshot.path}: {said}") from error
        return _described(view)

    def check_view(self) -> ViewFile | None:
        """Compare the view of the version that is open with its checksums; None if there is none.

        Raises:
            MemoryIndexError: it cannot be opened; names the file.
            ViewError: it is damaged, or of something else; names the file.
        """
        contents = self._current()
        source = source_of(contents.snapshot, contents)
        place = view_path(self._views.folder_of(contents.snapshot.path), source)
        try:
            view = View.open(place, source)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = error.strerror or reason(error)
            raise MemoryIndexError(f"{place}: cannot be opened: {why}") from error
        view.check()
        return _described(view)

    def remove_views(self) -> int:
        """Remove all views of the index; returns how many bytes they had.

        Searches that have one mapped go on with it.
        """
        snapshot = self._snapshot
        folder = self._views.folder_of(snapshot.path)
        return remove_views(folder, snapshot.identity, alone=self._views.folder is None)

    def _found_by_view(
        self, queries: Tensor, k: int, *, approximate: bool
    ) -> list[list[Hit]] | None:
        """Hits by a view alone; None if that does not do.

        A process that asks a few questions need not read the ids of all documents, which takes
        longer than the search. So a handle does without them where nothing but a search was asked
        of it, and a view is there. Whatever is wrong, the usual way says.
        """
        with self._lock:
            snapshot = self._unread() if self._views.used else None
            if snapshot is None:
                self._alone = None  # which keeps a file mapped that may be gone
                return None
            if self._alone is None or self._alone[0] is not snapshot:
                self._alone = (snapshot, self._opened(snapshot))
            view = self._alone[1]
        if view is None:
            return None
        if not len(queries) or not len(view):
            return [[] for _ in queries]
        try:
            scores, rows = view.nearest(queries, k, None, approximate=approximate)
            return read_hits(RowReader(snapshot, view.positions()), scores, rows)
        except MemoryIndexError:
            self._alone = (snapshot, None)
            return None

    def _opened(self, snapshot: Snapshot) -> View | None:
        try:
            source = source_of(snapshot)
            place = view_path(self._views.folder_of(snapshot.path), source)
            return View.open(place, source, exactly=False)
        except (OSError, MemoryIndexError):
            return None

    def _take_on(self, latest: Snapshot) -> None:
        super()._take_on(latest)
        if self._ranking is not None and self._ranking.contents is not self._contents:
            self._ranking = None  # with the vectors, or the file, of what is past

    def _ranking_of(self, contents: Contents) -> Ranking:
        """What searches of these contents read."""
        with self._lock:
            if self._ranking is None or self._ranking.contents is not contents:
                self._ranking = Ranking(contents, self._views)
            return self._ranking


def _described(view: View) -> ViewFile:
    return ViewFile(view.path, len(view), view_bytes(view.source))
