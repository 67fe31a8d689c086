"""What the generator has to reply, and how its text is read."""

from __future__ import annotations

import json
import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
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


class UnreadableReplyError(ValueError):
    """A reply is not the JSON object that was asked for."""


def parse_reply(text: str, kind: type[Kind]) -> Kind:
    """Read a reply; prose and code fences around the object are passed over.

    Raises:
        UnreadableReplyError: no object in it, or not of this kind; says what is wrong.
    """
    problem = "there is no JSON object in it"
    decoder = json.JSONDecoder(strict=False)
    for match in list(re.finditer(r"\{", text))[:20]:
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError) as error:
            if problem.startswith("there is no"):
                problem = " ".join(str(error).split())
            continue
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            problem = f"{place}: {first['msg']}" if place else first["msg"]
    raise UnreadableReplyError(problem)
