"""A language model of transformers in this process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteriaList,
)

from clara.backbone.generation_settings import default_ends
from clara.backbone.loading import BackboneError, resolve_backbone
from clara.backbone.stopping import AnswerReader, StopTexts, StopWhen
from clara.data.values import DataError
from clara.errors import reason
from clara.synthesis.generators import TOO_LONG, Completion, RequestFailedError, Sampling
from clara.synthesis.prompts import Message
from clara.text.prompts import AnswerEnd, answer_end
from clara.text.tokenizer import Control, Piece, SafeTokenizer

_Waiting = tuple[list[int], "asyncio.Future[Completion]"]


class LocalGenerator:
    """Generates for requests that wait together in one batch.

    Args:
        name_or_path: hub id, folder or GGUF file of a causal language model; safetensors alone.
        concurrency: most requests in a batch.

    Raises:
        DataError: it cannot be loaded.
    """

    def __init__(
        self, name_or_path: str, sampling: Sampling, concurrency: int, device: str | None = None
    ) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer, self._model = _loaded(name_or_path, self._device)
        self._tokenizer = SafeTokenizer(tokenizer)
        self.name = f"local:{name_or_path}@{sampling.temperature}/{sampling.max_tokens}"
        self.concurrency = concurrency
        self.retries = 0
        self._sampling = sampling
        self._window: int | None = getattr(self._model.config, "max_position_embeddings", None)
        try:
            end = answer_end(self._tokenizer)
        except Exception:  # a template can raise whatever it likes; `complete` says so
            end = AnswerEnd(None, "", "")
        self._ends = default_ends(self._model, self._tokenizer, end)
        stops = [end.text] if end.text else []
        stored = self._model.generation_config
        if stored.stop_strings:
            stops += (
                [stored.stop_strings]
                if isinstance(stored.stop_strings, str)
                else list(stored.stop_strings)
            )
        stored.stop_strings = None  # transformers looks for them with a tokenizer only
        self._reader = AnswerReader(
            self._tokenizer, self._ends, left_out=self._ends, stops=tuple(stops), blank=end.blank
        )
        pad = tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else (*self._ends, 0)[0]
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False

    async def complete(self, messages: Sequence[Message]) -> Completion:
        """See `Generator.complete`."""
        ids = self._encoded(list(messages))
        if self._window is not None and len(ids) >= self._window:
            message = f"a request has {len(ids)} tokens, the model reads {self._window}"
            raise RequestFailedError(TOO_LONG, message)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((ids, future))
        if self._worker is None or self._worker.done():
            self._stopped = False
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # so that all who can ask have asked
            self._waiting = [each for each in self._waiting if not each[1].done()]
            batch = self._waiting[: self.concurrency]
            del self._waiting[: self.concurrency]
            if not batch:
                continue
            try:
                found = await asyncio.to_thread(self._generate, [ids for ids, _ in batch])
            except Exception as error:  # whatever it is, somebody waits
                failure = f"generation failed with {type(error).__name__}"
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RequestFailedError(failure, str(error)))
                continue
            for (_, future), completion in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(completion)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]]) -> list[Completion]:
        width = max(map(len, prompts))
        blank = [width - len(ids) for ids in prompts]
        inputs = [[self._pad] * n + ids for n, ids in zip(blank, prompts, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in blank]
        texts = [StopTexts(self._reader, width)] if self._reader.stops else []
        output = self._model.generate(
            input_ids=torch.tensor(inputs, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            generation_config=self._settings(width),
            stopping_criteria=StoppingCriteriaList([StopWhen(lambda: self._stopped), *texts]),
        )
        return [
            self._completion(ids, made)
            for ids, made in zip(prompts, output[:, width:].tolist(), strict=True)
        ]

    def _settings(self, width: int) -> GenerationConfig:
        most = self._sampling.max_tokens
        temperature = self._sampling.temperature
        return GenerationConfig(
            max_new_tokens=most if self._window is None else min(most, self._window - width),
            do_sample=temperature > 0,
            temperature=temperature or None,
            pad_token_id=self._pad,
            eos_token_id=self._ends or None,
        )

    def _completion(self, prompt: list[int], made: list[int]) -> Completion:
        return Completion(self._reader.text(made), len(prompt), self._reader.length(made))

    def _encoded(self, messages: list[Message]) -> list[int]:
        """Token ids in the model's chat format; no text of a message becomes a control token."""
        system, first, *rest = messages
        merged = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        for turns in (messages, [merged, *rest]):  # templates may know no system role
            pieces = self._pieces(turns)
            if pieces is not None:
                return self._tokenizer.encode_pieces(pieces).ids
        raise DataError("the chat template of this model does not write the texts of the turns")

    def _pieces(self, turns: list[Message]) -> list[Piece] | None:
        """What the template writes around the turns, and their texts; None if it loses one."""
        names = [f"x{secrets.token_hex(16)}x" for _ in turns]
        named = [{**turn, "content": name} for turn, name in zip(turns, names, strict=True)]
        rest = self._spelled(named)
        pieces: list[Piece] = []
        for name, turn in zip(names, turns, strict=True):
            before, found, rest = rest.partition(name)
            if not found:
                return None
            pieces += [Control(before), turn["content"]]
        return [*pieces, Control(rest)]

    def _spelled(self, turns: list[Message]) -> str:
        tokenizer = self._tokenizer.tokenizer
        if tokenizer.chat_template is None:
            told = "\n\n".join(f"{each['role']}: {each['content']}" for each in turns)
            return f"{tokenizer.bos_token or ''}{told}\n\nassistant: "
        try:
            # enable_thinking: templates of reasoning models open a chain of thought without it.
            return str(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )
        except Exception:  # a template can raise whatever it likes
            return ""

    async def close(self) -> None:
        """Give up what is still asked; the batch at work stops at its next token."""
        self._stopped = True
        for _, future in self._waiting:
            future.cancel()
        if self._worker is not None:
            await self._worker


def _loaded(name_or_path: str, device: str) -> tuple[Any, Any]:
    """Tokenizer and model."""
    try:
        source = resolve_backbone(name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            dtype=torch.float32 if device == "cpu" else "auto",
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
        )
    except BackboneError as error:
        raise DataError(f"cannot load generator {name_or_path!r}: {error}") from error
    except Exception as error:  # damaged files raise errors of every kind
        raise DataError(f"cannot load generator {name_or_path!r}: {reason(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise DataError(f"cannot load generator {name_or_path!r}: it lacks {missing[0]!r}")
    return tokenizer, model.to(device).eval()
