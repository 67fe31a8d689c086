"""The JSON objects that the generator must reply, and how to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

from clara.errors import ClaraError, reason

MOST_OBJECTS = 50  # looked at in one reply

# Control characters but tab and newline, and halves of surrogate pairs.
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
Text = Annotated[str, StringConstraints(strip_whitespace=True)]


class Reply(BaseModel):
    """An object of a reply; fields that were not asked for are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _readable(cls, value: object) -> object:
        """Without control characters and halves of surrogate pairs."""
        if isinstance(value, str):
            return _UNREADABLE.sub("", value)
        if isinstance(value, list):
            return [_UNREADABLE.sub("", v) if isinstance(v, str) else v for v in value]
        return value


class Questions(Reply):
    questions: list[Text]


class AnswerReply(Reply):
    answerable: bool
    answer: Text


class Verdict(Reply):
    correct: bool


class Coverage(Reply):
    missing: list[Text]


class Paraphrase(Reply):
    paraphrase: Text


class ParaphraseCheck(Reply):
    preserved: bool


Kind = TypeVar("Kind", bound=Reply)


class UnreadableReplyError(ClaraError, ValueError):
    """A reply is not the JSON object that was asked for."""


def parse_reply(text: str, kind: type[Kind]) -> Kind:
    """Read a reply; thoughts, prose and code fences around the object are passed over.

    Raises:
        UnreadableReplyError: no object in it, none of this kind, or several that differ; says
            what is wrong.
    """
    problem = "there is no JSON object in it"
    found: list[Kind] = []
    for value, flaw in _objects(_THOUGHTS.sub("", text)):
        if value is None:
            problem = flaw if problem.startswith("there is no") else problem
            continue
        try:
            found.append(kind.model_validate(value))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            problem = f"{place}: {first['msg']}" if place else first["msg"]
    if not found:
        raise UnreadableReplyError(problem)
    # A reply may quote an object before it gives its own: which one is meant is not for us to say.
    if any(each != found[0] for each in found):
        raise UnreadableReplyError("there are several objects in it, and they differ")
    return found[0]


def _objects(text: str) -> Iterator[tuple[Any, str]]:
    """The objects that stand in a text, not those inside others; or None and what is wrong."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    for _ in range(MOST_OBJECTS):
        if start < 0:
            return
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            yield None, reason(error, None)
        else:
            yield value, ""
        start = text.find("{", end)
