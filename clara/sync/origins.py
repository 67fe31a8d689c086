"""Sources that overlap: where each source of an index lies, and that no file is in two of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from clara.corpus.listing import Listing, Origin
from clara.data.values import DataError, shown


def check_origins(listing: Listing, recorded: Mapping[str, Origin]) -> None:
    """Refuse sources that would bring documents twice, or take over those of another source.

    A file in two sources would be two documents, as ids begin with the source's name. And a folder
    with the name of another one would replace its documents, and prune them. A source that was
    moved, so that there is nothing at its earlier place, stays the same source.

    Args:
        listing: of the sources to read.
        recorded: where the sources lay whose documents an index holds, by name.

    Raises:
        DataError: names the source or file, and what to do.
    """
    for name, origin in listing.origins.items():
        before = recorded.get(name)
        if before is None or before.path == origin.path or not before.is_there:
            continue
        raise DataError(
            f"source {shown(name)} is {shown(before.path, quoted=False)} in the index, not "
            f"{shown(origin.path, quoted=False)}; give it another name with NAME=PATH"
        )
    places = {**recorded, **listing.origins}
    for file in listing.files:
        for name, origin in places.items():
            if name != file.source and origin.holds(file.place):
                raise DataError(
                    f"{file.shown}: is in two sources, {shown(name)} and {shown(file.source)}, and "
                    f"would be two documents; {_remedy(name, file.source, listing)}"
                )


def _remedy(other: str, source: str, listing: Listing) -> str:
    if other in listing.origins:
        return "leave one of them out, or give patterns that have no file in common"
    return (
        f"build {shown(other)} again in place of {shown(source)}, or delete the documents of "
        f"{shown(other)} from the index first"
    )


def as_text(origin: Origin) -> str:
    """An origin as an index records it."""
    return json.dumps({"path": origin.path, "pattern": origin.pattern})


def from_text(text: str) -> Origin | None:
    """What `as_text` wrote; None of anything else."""
    try:
        fields = json.loads(text)
        origin = Origin(fields["path"], fields["pattern"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(origin.path, str) and isinstance(origin.pattern, str)):
        return None
    return origin
