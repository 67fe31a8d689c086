"""Characters that Lance cannot have in the path of an index."""

from __future__ import annotations


def check_characters(path: str, given: str) -> None:
    """Refuse a path that Lance cannot open.

    Args:
        path: absolute.
        given: what the user wrote, for the message.

    Raises:
        ValueError: names the character.
    """
    for character in path:
        if ord(character) < 32 or ord(character) == 127:
            what = f"the control character {character!r}"
        elif "\ud800" <= character <= "\udfff":
            what = "a byte that is not UTF-8"
        else:
            continue
        beside = "" if character in given else f", which is {path!r},"
        raise ValueError(
            f"the path {given!r}{beside} holds {what}, which Lance cannot have in a path; "
            "choose another"
        )
