"""Views: files that a search of an index reads in place of its rows, mapped into memory.

`clara.index.views.layout` describes the file, `choice` says where it lies and when it is used.
"""

from clara.index.views.layout import ViewError
from clara.index.views.rule import ViewRule

__all__ = ["ViewError", "ViewRule"]
