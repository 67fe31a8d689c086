"""Synthesis over a corpus: concurrency, resuming, output."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.data.records import Document, write_jsonl
from clara.data.synthesis import replies
from clara.data.synthesis.document import (
    CallFailedError,
    DocumentLoop,
    LeftOutError,
    Limits,
    Material,
)
from clara.data.synthesis.generators import Completion, Generator, RequestFailedError
from clara.data.synthesis.journal import Journal, request_key
from clara.data.synthesis.prompts import Message, SynthesisPrompts, paraphrase_task
from clara.data.synthesis.statistics import Statistics

JOURNAL = ".journal"
REPORT = ".report.json"


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
    are done; started again after a kill, a run asks only for what is not in the journal.

    Args:
        on_progress: called after every document.

    Returns:
        The report, see `Statistics.report`.

    Raises:
        DataError: the generator refuses, or a file cannot be written or read.
    """
    target = os.path.realpath(output)
    journal = Journal(target + JOURNAL)
    try:
        counted = Statistics(documents=len(documents))
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
        text = json.dumps(report, indent=2) + "\n"
        Path(target + REPORT).write_text(text, encoding="utf-8")
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
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._generator.close()
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
        key = request_key(f"{self._generator.name}#{self._settings.seed}", messages, attempt)
        counted = self._counted
        reply = self._journal.get(key)
        if reply is None:
            async with self._slots:
                try:
                    reply = await self._generator.complete(messages)
                except RequestFailedError as error:
                    raise CallFailedError(error.reason) from error
            self._journal.put(key, reply)
            counted.paid_prompt_tokens += reply.prompt_tokens
            counted.paid_completion_tokens += reply.completion_tokens
        else:
            counted.reused += 1
        counted.calls += 1
        counted.prompt_tokens += reply.prompt_tokens
        counted.completion_tokens += reply.completion_tokens
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
