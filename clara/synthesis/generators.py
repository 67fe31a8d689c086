"""The interface of all generators of replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from clara.synthesis.prompts import Message

TOO_LONG = "longer than the model reads"


@dataclass(frozen=True)
class Completion:
    """A reply and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class RequestFailedError(Exception):
    """One request has no reply; others may.

    Attributes:
        reason: what it is counted under.
        malformed: the request itself was refused; if it is the first, others will be too.
    """

    def __init__(self, reason: str, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.malformed = malformed


class Generator(Protocol):
    """A language model.

    Attributes:
        name: tells generators and their settings apart; replies are kept under it.
        concurrency: requests that it takes at once.
        retries: requests that were sent again.
    """

    name: str
    concurrency: int
    retries: int

    async def complete(self, messages: Sequence[Message]) -> Completion:
        """The reply to a conversation.

        Raises:
            RequestFailedError: no reply to this one.
            DataError: there will be none to any other either.
        """
        ...

    async def close(self) -> None:
        """Give up what is still asked."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn and how long is waited for them.

    Attributes:
        temperature: 0 for the likeliest.
        max_tokens: most tokens of a reply.
        timeout: seconds for one request.
        retries: times a request is sent again after a time-out, a broken connection, 408, 409,
            429 or 5xx.
        requests_per_minute: most requests sent, retries included; None is no limit.
    """

    temperature: float = 0.7
    max_tokens: int = 2048
    timeout: float = 120.0
    retries: int = 5
    requests_per_minute: float | None = None
