"""Language models that replies are asked of."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from clara.data.lines import DataError
from clara.data.synthesis.prompts import Message


@dataclass(frozen=True)
class Completion:
    """A reply and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class RequestFailedError(Exception):
    """One request has no reply; others may. `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Generator(Protocol):
    """A language model.

    Attributes:
        name: tells generators and their settings apart; replies are kept under it.
        concurrency: requests that it takes at once.
    """

    name: str
    concurrency: int

    @property
    def retries(self) -> int:
        """Requests that were sent again."""
        ...

    async def complete(self, messages: Sequence[Message]) -> Completion:
        """The reply to a conversation.

        Raises:
            RequestFailedError: no reply to this one.
            DataError: there will be none to any other either.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn and how long is waited for them.

    Attributes:
        temperature: 0 for the likeliest.
        max_tokens: most tokens of a reply.
        timeout: seconds for one request.
        retries: times a request is sent again after a time-out, 429 or 5xx, with back-off.
        requests_per_minute: most requests sent, retries included; None is no limit.
    """

    temperature: float = 0.7
    max_tokens: int = 2048
    timeout: float = 120.0
    retries: int = 5
    requests_per_minute: float | None = None


class OpenAIGenerator:
    """A model behind any server that speaks OpenAI's protocol.

    The key is read from OPENAI_API_KEY.

    Args:
        model: its name at the server.
        base_url: of the server; OPENAI_BASE_URL by default.

    Raises:
        DataError: the package openai is not installed.
    """

    def __init__(
        self, model: str, base_url: str | None, sampling: Sampling, concurrency: int
    ) -> None:
        if find_spec("openai") is None:
            raise DataError("this generator needs the package openai: pip install openai")
        import openai

        self.name = f"openai:{model}@{sampling.temperature}/{sampling.max_tokens}"
        self.concurrency = concurrency
        self._model = model
        self._sampling = sampling
        self._sent = self._asked = 0
        self._pace = _Pace(sampling.requests_per_minute)
        # Called anew by openai for every retry: only here are all requests seen.
        hooks = {"request": [self._before_request]}
        newer = getattr(openai, "DefaultAsyncHttpx2Client", None)  # from version 3 on
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=sampling.timeout,
            max_retries=sampling.retries,
            http_client=(newer or openai.DefaultAsyncHttpxClient)(event_hooks=hooks),
        )

    @property
    def retries(self) -> int:
        return self._sent - self._asked

    async def _before_request(self, request: Any) -> None:
        await self._pace.wait()
        self._sent += 1

    async def complete(self, messages: Sequence[Message]) -> Completion:
        import openai

        self._asked += 1
        try:
            answer = await self._client.chat.completions.create(
                model=self._model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=self._sampling.temperature,
                max_tokens=self._sampling.max_tokens,
            )
        except openai.APITimeoutError as error:
            raise RequestFailedError("time-out", str(error)) from error
        except openai.APIConnectionError as error:
            raise RequestFailedError("no connection", str(error)) from error
        except openai.APIStatusError as error:
            raise self._failure(error) from error
        except openai.OpenAIError as error:
            raise RequestFailedError("unreadable answer of the server", str(error)) from error
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise RequestFailedError("unreadable answer of the server", "no choices")
        usage = answer.usage
        return Completion(
            choices[0].message.content or "",
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
        )

    def _failure(self, error: Any) -> Exception:
        """For this request alone, or for the run: what no other request would do better."""
        said = " ".join(str(error.message).split())[:200]
        if error.status_code in (401, 403, 404):
            return DataError(f"{self._client.base_url}: {error.status_code}: {said}")
        # 400, 413, 422: as a rule a document longer than the model reads.
        return RequestFailedError(f"status {error.status_code}", said)

    async def close(self) -> None:
        await self._client.close()


class _Pace:
    """Lets requests through at equal distances."""

    def __init__(self, per_minute: float | None) -> None:
        self._distance = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0

    async def wait(self) -> None:
        if not self._distance:
            return
        now = time.monotonic()
        start = max(self._next, now)
        self._next = start + self._distance
        await asyncio.sleep(start - now)
