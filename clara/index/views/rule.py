"""Whether a handle of an index uses views, and where they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clara.index.errors import MemoryIndexError
from clara.index.folders import VIEWS, local_path
from clara.index.views.layout import ViewError


@dataclass(frozen=True)
class ViewRule:
    """Whether a handle of an index uses views.

    Attributes:
        used: False: every search reads the vectors into RAM.
        folder: for views, absolute, such as one of a cache; None: in the folder of the index.
    """

    used: bool = True
    folder: str | None = None

    @classmethod
    def of(cls, views: bool | str | os.PathLike[str]) -> ViewRule:
        """From the argument of `MemoryIndex.open`.

        Raises:
            MemoryIndexError: a path that names no folder.
        """
        if isinstance(views, bool):
            return cls(views)
        if not os.fspath(views):
            raise MemoryIndexError("the folder for views has an empty name")
        return cls(True, local_path(views))

    def folder_of(self, index: str) -> str:
        """Where views of the index in a folder lie.

        Raises:
            ViewError: that is a link, which may lead anywhere.
        """
        if self.folder is not None:
            return self.folder
        found = os.path.join(index, VIEWS)
        if os.path.islink(found):
            raise ViewError(f"{found}: a link, not a folder; name another folder for views")
        return found


USUAL = ViewRule()
