"""A language model behind a server that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from clara.data.values import DataError
from clara.synthesis.generators import TOO_LONG, Completion, RequestFailedError, Sampling
from clara.synthesis.prompts import Message

FIRST_PAUSE = 0.5  # seconds before the first retry; doubled for every other
LONGEST_PAUSE = 30.0
LONGEST_WAIT = 600.0  # that a server may ask for with Retry-After

_FINAL = (401, 402, 403, 404, 405)
_PASSING = (408, 409, 425, 429)
# What servers say, with status 400, of one request that is too long or not to their liking.
_LENGTH = re.compile(
    r"context.?(length|window|size)|maximum.{0,20}(length|tokens)|too (long|many tokens)|"
    r"(prompt|input|request).{0,40}(length|exceed|longer|larger)",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content.?(filter|policy|management)|flagged|safety", re.IGNORECASE)


class _PassingError(Exception):
    """A request that may be sent again, after `wait` seconds if the server says so."""

    def __init__(self, reason: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.wait = wait


class OpenAIGenerator:
    """A model behind any server that speaks OpenAI's protocol.

    The key is read from OPENAI_API_KEY. The server's address is no part of `name`: replies stay of
    use when the same model moves.

    Args:
        model: its name at the server.
        base_url: of the server; OPENAI_BASE_URL by default.
        concurrency: most requests at once.

    Raises:
        DataError: the package openai is not installed, or key or address cannot be sent.
    """

    def __init__(
        self, model: str, base_url: str | None, sampling: Sampling, concurrency: int
    ) -> None:
        if find_spec("openai") is None:
            raise DataError("this generator needs the package openai: pip install openai")
        import openai

        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (self._key.isascii() and self._key.isprintable()):
            raise DataError("OPENAI_API_KEY holds characters that a key cannot have")
        self._place = "api.openai.com" if base_url is None else _checked(base_url)
        self.name = f"openai:{model}@{sampling.temperature}/{sampling.max_tokens}"
        self.concurrency = concurrency
        self.retries = 0
        self._model = model
        self._sampling = sampling
        self._length_field = "max_tokens"
        self._pace = Pace(sampling.requests_per_minute)
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=self._key, timeout=sampling.timeout, max_retries=0
        )

    async def complete(self, messages: Sequence[Message]) -> Completion:
        """See `Generator.complete`."""
        for attempt in range(self._sampling.retries + 1):
            if attempt:
                self.retries += 1
            await self._pace.turn()
            try:
                return await self._request(messages)
            except _PassingError as error:
                failure = error
            if failure.wait is not None and failure.wait > LONGEST_WAIT:
                raise DataError(
                    f"{self._place}: {failure.reason}: the server asks to wait "
                    f"{failure.wait:.0f} s; start again after that"
                )
            if failure.wait is not None:
                self._pace.hold(failure.wait)
            elif attempt < self._sampling.retries:
                longest = min(FIRST_PAUSE * 2.0**attempt, LONGEST_PAUSE)
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))
        if failure.reason == "no server":
            raise DataError(f"{self._place}: cannot be reached: {failure}")
        raise RequestFailedError(failure.reason, str(failure))

    async def _request(self, messages: Sequence[Message]) -> Completion:
        import openai

        try:
            answer = await asyncio.wait_for(self._send(messages), self._sampling.timeout)
        except (openai.APITimeoutError, asyncio.TimeoutError) as error:
            shown = f"no answer in {self._sampling.timeout:g} s"
            raise _PassingError("time-out", shown) from error
        except openai.APIConnectionError as error:
            unreachable = type(error.__cause__).__name__ == "ConnectError"
            reason = "no server" if unreachable else "connection lost"
            raise _PassingError(reason, self._said(error.__cause__ or error)) from error
        except openai.APIStatusError as error:
            raise self._failure(error) from error
        except (openai.OpenAIError, ValueError) as error:
            raise RequestFailedError("unreadable answer of the server", str(error)) from error
        return _completion(answer)

    async def _send(self, messages: Sequence[Message]) -> Any:
        import openai

        field = self._length_field
        try:
            return await self._create(messages, field)
        except openai.BadRequestError as error:
            # Newer models know the limit under another name alone.
            if field == "max_completion_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._length_field = "max_completion_tokens"
        return await self._create(messages, self._length_field)

    async def _create(self, messages: Sequence[Message], length_field: str) -> Any:
        settings: dict[str, Any] = {length_field: self._sampling.max_tokens}
        return await self._client.chat.completions.create(
            model=self._model,
            messages=list(messages),  # type: ignore[arg-type]
            temperature=self._sampling.temperature,
            **settings,
        )

    def _failure(self, error: Any) -> Exception:
        """For now, for this request alone, or for the run."""
        status, code, said = error.status_code, str(error.code or ""), self._said(error)
        if status in _FINAL or code == "insufficient_quota":
            return DataError(f"{self._place}: {status}: {said}")
        if status in _PASSING or status >= 500:
            return _PassingError(f"status {status}", said, retry_after(error.response.headers))
        if status == 413 or _LENGTH.search(f"{code} {said}"):
            return RequestFailedError(TOO_LONG, said)
        if _FILTER.search(f"{code} {said}"):
            return RequestFailedError("refused by the server's filter", said)
        shown = f"{self._place}: {status}: {said}"
        return RequestFailedError(f"status {status}", shown, malformed=True)

    def _said(self, error: Any) -> str:
        """An error's words, on one line and without the key."""
        text = " ".join(str(getattr(error, "message", error)).split())
        if self._key != "none":
            text = text.replace(self._key, "…")
        return text[:300]

    async def close(self) -> None:
        await self._client.close()


class Pace:
    """Lets requests through at equal distances, and none while the server wants to be left alone.

    Args:
        per_minute: most requests; None is no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._distance = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._order = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until a request may be sent."""
        async with self._order:
            while (left := self._next - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self._next = time.monotonic() + self._distance

    def hold(self, seconds: float) -> None:
        """Let nothing through for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or the time until a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _checked(base_url: str) -> str:
    """Host and path of an address, without the password that it may hold."""
    try:
        parts = urlsplit(base_url)
        place = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError as error:
        raise DataError(f"base_url is not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"base_url must be http://HOST/... or https://HOST/..., got {base_url!r}")
    return place


def _completion(answer: Any) -> Completion:
    try:
        text = answer.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise RequestFailedError("unreadable answer of the server", "no choices") from error
    if text is not None and not isinstance(text, str):
        raise RequestFailedError("unreadable answer of the server", "content is not text")
    usage = getattr(answer, "usage", None)
    counts = [getattr(usage, f"{name}_tokens", 0) for name in ("prompt", "completion")]
    read, written = (n if isinstance(n, int) and 0 <= n < 2**62 else 0 for n in counts)
    return Completion(text or "", read, written)
