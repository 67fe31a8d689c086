"""Synthesis over a corpus: concurrency, resuming, output."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clara.data.records import Document, as_documents, write_jsonl
from clara.data.values import DataError
from clara.files.writing import write_text
from clara.synthesis import replies
from clara.synthesis.document import (
    CallFailedError,
    DocumentLoop,
    LeftOutError,
    Limits,
    Material,
)
from clara.synthesis.generators import Completion, Generator, RequestFailedError
from clara.synthesis.journal import Journal, request_key
from clara.synthesis.prompts import Message, SynthesisPrompts, paraphrase_task
from clara.synthesis.statistics import Statistics

JOURNAL = ".journal"
REPORT = ".report.json"
MOST_FAILED = 100  # requests one after another, before a server is taken for broken


@dataclass(frozen=True)
class SynthesisSettings:
    """Attributes:
    prompts: what is asked.
    limits: of rounds and attempts.
    seed: picks the paraphrases' tasks, and keeps replies of different seeds apart.
    price_input, price_output: of a million tokens, for the report.
    """

    prompts: SynthesisPrompts
    limits: Limits
    seed: int = 0
    price_input: float | None = None
    price_output: float | None = None


def synthesize(
    documents: Sequence[Document],
    output: str | os.PathLike[str],
    generator: Generator,
    settings: SynthesisSettings,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write training records of documents to `output`, in their order, and a report beside it.

    Replies are kept in `output + ".journal"` as they arrive. The output appears when all documents
    are done; started again after a kill, a run asks only for what is not in the journal. Requests
    that failed are not kept: they are sent again.

    Args:
        on_progress: called after every document.

    Returns:
        The report, see `Statistics.report`.

    Raises:
        DataError: the generator refuses or fails all the time, or a file cannot be written or
            read.
    """
    target = os.path.realpath(output)
    for path in (target, target + REPORT):
        if os.path.isdir(path):
            raise DataError(f"{path}: is a folder")
    documents = as_documents(documents)
    journal = Journal(target + JOURNAL)
    try:
        counted = Statistics(documents=len(documents), held=journal.held)
        run = _Run(generator, journal, settings, counted)
        found = asyncio.run(run.all(documents, on_progress))
        counted.retries = generator.retries
        records = (
            record
            for document, material in zip(documents, found, strict=True)
            if material is not None
            for record in _records(document, material, settings.seed)
        )
        write_jsonl(target, records)
        report = counted.report(settings.price_input, settings.price_output)
        write_text(target + REPORT, json.dumps(report, indent=2) + "\n")
        return report
    finally:
        journal.close()


class _Run:
    def __init__(
        self,
        generator: Generator,
        journal: Journal,
        settings: SynthesisSettings,
        counted: Statistics,
    ) -> None:
        self._generator = generator
        self._journal = journal
        self._settings = settings
        self._counted = counted
        self._under_way: dict[bytes, asyncio.Task[Completion]] = {}
        self._failed = 0  # requests without a reply since the last reply

    async def all(
        self, documents: Sequence[Document], on_progress: Callable[[], None]
    ) -> list[Material | None]:
        """The material of each document; None of those left out."""
        # Made here: primitives of asyncio belong to the loop that runs.
        self._slots = asyncio.Semaphore(self._generator.concurrency)
        found: list[Material | None] = [None] * len(documents)
        waiting = iter(enumerate(documents))

        async def work() -> None:
            for row, document in waiting:
                found[row] = await self._one(document)
                on_progress()

        workers = min(self._generator.concurrency, max(len(documents), 1))
        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            left = [*tasks, *self._under_way.values()]
            for task in left:
                task.cancel()
            await self._generator.close()
            await asyncio.gather(*left, return_exceptions=True)
        return found

    async def _one(self, document: Document) -> Material | None:
        loop = DocumentLoop(document, self._ask, self._settings.limits, self._counted)
        try:
            material = await loop.run()
        except LeftOutError as error:
            self._counted.left_out[error.reason] += 1
            return None
        self._counted.finished += 1
        return material

    async def _ask(
        self, prompt: str, kind: type[replies.Kind], *, attempt: int = 0, **values: Any
    ) -> replies.Kind:
        """See `Ask`; a reply that cannot be read is sent back once."""
        prompts = self._settings.prompts
        messages = prompts.messages(prompt, **values)
        reply = await self._complete(messages, attempt)
        try:
            return replies.parse_reply(reply.text, kind)
        except replies.UnreadableReplyError as error:
            again = prompts.repair_messages(messages, reply.text, str(error))
        reply = await self._complete(again, attempt)
        try:
            read = replies.parse_reply(reply.text, kind)
        except replies.UnreadableReplyError as error:
            raise CallFailedError("unreadable reply") from error
        self._counted.repaired += 1
        return read

    async def _complete(self, messages: Sequence[Message], attempt: int) -> Completion:
        """A reply, from the journal if it is there."""
        key = request_key(f"{self._generator.name}#{self._settings.seed}", messages, attempt)
        counted = self._counted
        reply = self._journal.get(key)
        paid = False
        if reply is None:
            task = self._under_way.get(key)
            if task is None:
                task = self._under_way[key] = asyncio.create_task(self._request(key, messages))
                task.add_done_callback(lambda done: self._over(key, done))
                paid = True
            # Shielded: documents of the same text ask the same, and wait for one reply.
            reply = await asyncio.shield(task)
        if paid:
            counted.paid_prompt_tokens += reply.prompt_tokens
            counted.paid_completion_tokens += reply.completion_tokens
        else:
            counted.reused += 1
        counted.calls += 1
        counted.prompt_tokens += reply.prompt_tokens
        counted.completion_tokens += reply.completion_tokens
        return reply

    def _over(self, key: bytes, task: asyncio.Task[Completion]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # nobody is told of an error that nobody waits for any more

    async def _request(self, key: bytes, messages: Sequence[Message]) -> Completion:
        """A reply of the generator, in the journal when this returns."""
        counted = self._counted
        async with self._slots:
            try:
                reply = await self._generator.complete(messages)
            except RequestFailedError as error:
                counted.messages.setdefault(error.reason, str(error))
                self._failed += 1
                if error.malformed and counted.calls == 0:
                    raise DataError(str(error)) from error
                if self._failed >= MOST_FAILED:
                    raise DataError(
                        f"{self._failed} requests in a row had no reply, the last for: "
                        f"{error.reason}: {error}"
                    ) from error
                raise CallFailedError(error.reason) from error
        self._failed = 0
        # Halves of surrogate pairs have no place in a file, nor in a request that repeats them.
        reply = replace(reply, text=reply.text.encode(errors="replace").decode())
        self._journal.put(key, reply)
        return reply


def _records(document: Document, material: Material, seed: int) -> Iterator[dict[str, Any]]:
    """Records in the fields of the published data, and `document_id` and `kind` besides."""
    for kind in ("simple", "complex"):
        pairs = [pair for pair in material.pairs if pair.kind == kind]
        if pairs:
            yield {
                "data_type": "qa",
                "question": [pair.question for pair in pairs],
                "answers": [pair.answer for pair in pairs],
                "docs": [document.text],
                "document_id": document.id,
                "kind": kind,
            }
    yield {
        "data_type": "paraphrase",
        "question": [paraphrase_task(document.id, seed)],
        "answers": [material.paraphrase],
        "docs": [document.text],
        "document_id": document.id,
        "kind": "paraphrase",
    }
