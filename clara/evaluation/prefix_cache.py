"""Keys and values of documents kept and reused: the exact way to read documents beforehand.

The prompt of plain-text answering begins with the documents, and ends with the question. So what
the backbone computes of the documents can be kept and read by every question that is asked of the
same documents in the same order. Answers are those of plain-text answering. What is kept is large:
keys and values of every token in every layer.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clara.errors.checks import as_integer
from clara.evaluation.errors import EvaluationError
from clara.model import generation
from clara.model.answers import Clock
from clara.model.clara import Clara
from clara.model.prompt_prefix import PromptPrefix, can_continue, state_version
from clara.text.prompts import Prompt, build_text_prompt

MOST_BYTES = 2 << 30

# Prompts with these differ from the first token on that a question can change.
_BEGINNINGS = ("", "0", "Who", "é")


@dataclass(frozen=True)
class KeptDocuments:
    """The beginning of a prompt with documents, read by the backbone.

    Attributes:
        prefix: its tokens, with keys and values `[1, kv heads, P, head_dim]` of each layer.
        documents: how many there are in it.
        seconds: that reading took.
    """

    prefix: PromptPrefix
    documents: int
    seconds: float

    @property
    def tokens(self) -> int:
        return len(self.prefix.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.prefix.states)


@dataclass(frozen=True)
class CachedAnswer:
    """An answer to one question.

    Attributes:
        prompt_tokens: of the whole prompt.
        reused_tokens: how many of them were read before.
        nbytes: of keys and values that are kept of the documents.
        timings_ms: "read", of the documents, where they had not been read before, and "generate".
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    nbytes: int
    timings_ms: dict[str, float]


class PrefixCache:
    """Answers questions from documents' text with the bare backbone, and reads each list of
    documents once.

    Args:
        model: whose backbone, tokenizer and prompt are used; no adapter is active.
        most_bytes: of keys and values that are kept; the list used longest ago goes first. The
            last one stays, whatever its size.

    Raises:
        TypeError, ValueError: `most_bytes` is no integer, or negative.

    Example:
        cache = PrefixCache(model)
        first, second = cache.answer(["Who built the mill?", "When?"], ["The mill was …"])
    """

    def __init__(self, model: Clara, *, most_bytes: int = MOST_BYTES) -> None:
        self._model = model
        self._most_bytes = as_integer(most_bytes, "most_bytes", least=0)
        self._kept: OrderedDict[tuple[str, ...], KeptDocuments] = OrderedDict()
        self._reads = 0

    @property
    def reads(self) -> int:
        """How often documents were read so far."""
        return self._reads

    def __len__(self) -> int:
        """How many lists of documents are kept."""
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that are kept."""
        return sum(each.nbytes for each in self._kept.values())

    def read(self, texts: Sequence[str]) -> KeptDocuments:
        """Read documents, unless they are kept and the backbone is the same as then.

        Args:
            texts: of documents, in the order of the prompt.
        """
        key = tuple(texts)
        model = self._model
        with model.generating(None) as backbone:
            version = state_version(backbone)
            kept = self._kept.get(key)
            if kept is None or version is None or kept.prefix.version != version:
                ids = self._beginning(key)
                clock = Clock(model.device)
                # A template may have no word before the question, and there may be no document.
                prefix = PromptPrefix([], None, version or (), [])
                if ids:
                    prefix = PromptPrefix.read(backbone, None, ids, version or ())
                clock.lap("read")
                kept = KeptDocuments(prefix, len(key), clock.laps["read"] / 1000)
                self._reads += 1
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while self.nbytes > self._most_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return kept

    def answer(
        self,
        questions: Sequence[str],
        texts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[CachedAnswer]:
        """Greedy answers to questions about the same documents.

        Args:
            texts: of the documents, in the order of the prompt.
            max_new_tokens, batch_size: as in `Clara.answer_from_text`.

        Returns:
            One answer for each question; in float32 the text is that of `Clara.answer_from_text`.
            The first has the time that reading the documents took; all share the time of
            generating equally.

        Raises:
            EvaluationError: the backbone's attention has windows, or turns positions by the length
                of the prompt, so that nothing can be kept.
            TypeError, ValueError: those of `Clara.answer_from_text`.
        """
        if isinstance(questions, str):
            raise TypeError("questions must be a list of strings, got a single string")
        if not questions:
            return []
        model = self._model
        prompts = [self._prompt(texts, question) for question in questions]
        none = torch.empty(0, model.hidden_size, dtype=model.dtype)
        task = generation.prepare(
            model,
            prompts,
            [none] * len(prompts),
            adapter=None,
            generation_config=None,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=None,
        )
        if not can_continue(model.backbone, task.settings):
            raise EvaluationError(
                "keys and values of documents cannot be kept for "
                f"{type(model.backbone).__name__}: its attention has windows, its positions "
                "depend on the length of the prompt, or its cache is not transformers' plain one"
            )
        reads = self.reads
        kept = self.read(texts)
        reused = len(_shared_beginning([kept.prefix.ids, *(p.ids[:-1] for p in prompts)]))
        task = dataclasses.replace(task, prefix=kept.prefix.cropped(reused) if reused else None)
        clock = Clock(model.device)
        answers = generation.generate(model, task, batch_size=batch_size)
        clock.lap("generate")
        timings = {"generate": clock.laps["generate"] / len(prompts)}
        first = timings if self.reads == reads else {"read": 1000 * kept.seconds, **timings}
        return [
            CachedAnswer(
                text.strip(),
                len(prompt.ids),
                reused,
                kept.nbytes,
                dict(timings if row else first),
            )
            for row, (text, prompt) in enumerate(zip(answers, prompts, strict=True))
        ]

    def _prompt(self, texts: Sequence[str], question: str) -> Prompt:
        return build_text_prompt(self._model.tokenizer, self._model.config.prompt, texts, question)

    def _beginning(self, texts: Sequence[str]) -> list[int]:
        """The tokens that the prompts of all questions about these documents begin with."""
        return _shared_beginning([self._prompt(texts, each).ids for each in _BEGINNINGS])


def _shared_beginning(sequences: Sequence[list[int]]) -> list[int]:
    """What all of the sequences begin with."""
    shared = 0
    for tokens in zip(*sequences):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return sequences[0][:shared]
