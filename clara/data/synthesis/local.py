"""A language model of transformers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from clara.backbone import resolve_backbone
from clara.data.lines import DataError
from clara.data.synthesis.generators import Completion, RequestFailedError, Sampling
from clara.data.synthesis.prompts import Message

_Waiting = tuple[list[Message], "asyncio.Future[Completion]"]


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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            source = resolve_backbone(name_or_path)
            self._tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype="auto" if device != "cpu" else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"cannot load generator {name_or_path!r}: {reason}") from error
        self._model = model.to(device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.name = f"local:{name_or_path}@{sampling.temperature}/{sampling.max_tokens}"
        self.concurrency = concurrency
        self._settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id or self._tokenizer.eos_token_id,
        )
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    @property
    def retries(self) -> int:
        return 0

    async def complete(self, messages: Sequence[Message]) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(messages), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # so that all who can ask have asked
            batch = self._waiting[: self.concurrency]
            del self._waiting[: self.concurrency]
            try:
                found = await asyncio.to_thread(self._generate, [each for each, _ in batch])
            except Exception as error:  # whatever it is, somebody waits
                reason = f"generation failed with {type(error).__name__}"
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RequestFailedError(reason, str(error)))
                continue
            for (_, future), completion in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(completion)

    @torch.no_grad()
    def _generate(self, conversations: Sequence[list[Message]]) -> list[Completion]:
        texts = [self._spelled(each) for each in conversations]
        inputs = self._tokenizer(
            texts, add_special_tokens=False, padding=True, return_tensors="pt"
        ).to(self._model.device)
        width = inputs["input_ids"].shape[1]
        window = getattr(self._model.config, "max_position_embeddings", None)
        if window is not None and width >= window:
            raise ValueError(f"a request has {width} tokens, the model reads {window}")
        inputs.pop("token_type_ids", None)
        output = self._model.generate(**inputs, generation_config=self._settings)
        lengths = inputs["attention_mask"].sum(1).tolist()
        ends = {self._tokenizer.pad_token_id, self._tokenizer.eos_token_id}
        made = output[:, width:].tolist()
        return [
            Completion(
                self._tokenizer.decode(ids, skip_special_tokens=True),
                length,
                sum(token not in ends for token in ids),
            )
            for ids, length in zip(made, lengths, strict=True)
        ]

    def _spelled(self, messages: list[Message]) -> str:
        if self._tokenizer.chat_template is None:
            turns = "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)
            return f"{turns}\n\nassistant: "
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )
        except Exception:  # a template without a system role
            system, first, *rest = messages
            merged = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            return str(
                self._tokenizer.apply_chat_template(
                    [merged, *rest], tokenize=False, add_generation_prompt=True
                )
            )

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker
