"""Questions answered while a model trains: from their memory, from another's, from none, from text.

A model that answers as well from another document's memory, or from none, does not read memory.
The answers from text show what the backbone alone can do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.backbone.packed_forward import positions_of
from clara.data.matching import is_exact_match
from clara.memory.documents import CompressedDocuments
from clara.model.clara import Clara
from clara.model.encoding import answer_cross_entropy, encode_states
from clara.text.packing import PackedPrompts
from clara.text.prompts import Prompt, build_prompt, text_background
from clara.training.settings import SettingsError, chosen_rates

RANKED = (1, 5)
"""Cutoffs of the recall of the questions' documents among all documents."""

_LOOKED_AT = 32  # documents whose memory is taken apart

_LONGEST_ANSWER = 64  # tokens; a longer one would not be an exact match
_SPARE = 4  # tokens that an answer may be longer than the longest expected one


@dataclass(frozen=True)
class Asked:
    """A question with the documents that answer it.

    Attributes:
        sizes: tokens of each document.
    """

    question: str
    answer: str
    documents: tuple[str, ...]
    sizes: tuple[int, ...] = ()


class Controls:
    """The same questions at every evaluation, and what their answers are compared with.

    Args:
        examples: held-out examples of any stage; those with a question, an answer and documents
            that hold it are used.
        number: how many of them, at most.
        rates: compression rates to answer at; None is the model's own.
        max_prompt_tokens: leave out questions whose text or memory does not fit such a prompt;
            the backbone's positions are a limit too.

    Raises:
        SettingsError: a rate is not one that the model trains, or there are no two questions
            about different documents.
    """

    def __init__(
        self,
        model: Clara,
        examples: Sequence[Any],
        number: int,
        rates: Sequence[int] | None = None,
        *,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self._model = model
        self._rates = chosen_rates(model.config, "evaluation_rates", rates)
        self._batch_size = batch_size
        positions = positions_of(model.backbone)
        limits = [each for each in (max_prompt_tokens, positions) if each is not None]
        self._budget = min(limits) if limits else None
        asked = self._choose(examples, number)
        self._questions = [each.question for each in asked]
        self._answers = [each.answer for each in asked]
        self._texts = [each.documents for each in asked]
        self._documents = list(dict.fromkeys(text for each in asked for text in each.documents))
        place = {text: row for row, text in enumerate(self._documents)}
        self._own = [[place[text] for text in each.documents] for each in asked]
        self._other = [other for row in range(len(asked)) for other in self._another(asked, row)]
        if not asked or len(self._other) < len(asked):
            raise SettingsError(
                "evaluate_answers: eval_data has no two questions with an answer that are about "
                "different documents"
            )
        bare = [self._prompt(row, ()) for row in range(len(asked))]
        self._tokens = [len(each.ids) - each.answer_start for each in bare]
        self._text_figures: dict[str, float] = {}
        self._longest = min(max(self._tokens), _LONGEST_ANSWER) + _SPARE

    def __len__(self) -> int:
        """Questions that are asked."""
        return len(self._questions)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Shares of exact matches, mean losses of an answer's token, and recall of the documents.

        Names end with the rate: `exact_match@4` and `loss_memory@4` from the right memory,
        `exact_match_other@4` and `loss_other@4` from another question's, `recall@1@4`,
        `recall@5@4`. Without a rate: `exact_match_none` and `loss_none` from no memory,
        `exact_match_text` and `loss_text` from texts by the backbone alone, and `exact_match`, the
        mean over rates from the right memory. In memory form "spans", `added@4` is how much what
        the compressor adds to the means of spans differs from slot to slot, as a share of memory's
        norm: near 0 the compressor says nothing about the text, however well a generator reads the
        means. Dropout is off meanwhile, and the model is left as it was.
        """
        with self._model.evaluating():
            return self._measured()

    def _measured(self) -> dict[str, float]:
        found: dict[str, float] = {}
        memory = None
        for rate in self._rates:
            memory = self._compressed(rate)
            own = [memory[rows] for rows in self._own]
            other = [memory[rows] for rows in self._other]
            found[f"exact_match@{rate}"] = self._matches(own)
            found[f"exact_match_other@{rate}"] = self._matches(other)
            found[f"loss_memory@{rate}"] = self._loss(own)
            found[f"loss_other@{rate}"] = self._loss(other)
            found |= {f"{name}@{rate}": value for name, value in self._recall(memory).items()}
            if self._model.config.memory_form == "spans":
                found[f"added@{rate}"] = self._added(memory, rate)
        assert memory is not None, "there is a rate at least"
        found["exact_match_none"] = self._matches([memory[[]]] * len(self))
        found["loss_none"] = self._loss_of_texts([()] * len(self), GENERATOR)
        found |= self._from_text()
        right = [found[f"exact_match@{rate}"] for rate in self._rates]
        return {"exact_match": sum(right) / len(right), **found}

    # Questions

    def _choose(self, examples: Sequence[Any], number: int) -> list[Asked]:
        """The same questions in every run over the same data, from all over it."""
        rows = list(range(len(examples)))
        random.Random(0).shuffle(rows)
        chosen: list[Asked] = []
        for row in rows:
            asked = self._as_read(_asked(examples[row], row))
            if asked is not None and self._fits(asked, asked.sizes):
                chosen.append(asked)
            if len(chosen) == number:
                break
        return chosen

    def _as_read(self, asked: Asked | None) -> Asked | None:
        """The question with its documents cut to what the compressor reads of them.

        None for documents that do not fit the backbone's positions at one of the rates.
        """
        if asked is None:
            return None
        passages = self._model.passages(asked.documents, "truncate")
        try:
            for rate in self._rates:
                self._model.check_fits(passages, rate)
        except ValueError:
            return None
        texts = tuple(passage.text for passage in passages)
        sizes = tuple(len(passage.tokens) for passage in passages)
        return Asked(asked.question, asked.answer, texts, sizes)

    def _fits(self, asked: Asked, sizes: Sequence[int]) -> bool:
        """Whether the budget holds a question with text, and with memory at every rate.

        Args:
            sizes: tokens of the documents whose memory it is asked of.
        """
        if self._budget is None:
            return True
        model = self._model
        m = model.config.memory_tokens
        counts = [-(-size // min(self._rates)) if m is None else m for size in sizes]
        background = text_background(asked.documents)
        prompts = [
            *model.memory_prompts([asked.question], [counts], [asked.answer]),
            build_prompt(
                model.tokenizer, model.config.prompt, background, asked.question, asked.answer
            ),
        ]
        generated = _LONGEST_ANSWER + _SPARE
        longest = (max(len(each.ids), each.answer_start + generated) for each in prompts)
        return max(longest) <= self._budget

    def _another(self, asked: Sequence[Asked], row: int) -> Iterator[list[int]]:
        """Documents of the next question that shares none with this one, and fits its prompt."""
        for shift in range(1, len(asked)):
            place = (row + shift) % len(asked)
            other = self._own[place]
            shared = set(other) & set(self._own[row])
            if not shared and self._fits(asked[row], asked[place].sizes):
                yield other
                return

    def _prompt(self, row: int, texts: Sequence[str]) -> Prompt:
        return build_prompt(
            self._model.tokenizer,
            self._model.config.prompt,
            text_background(texts),
            self._questions[row],
            self._answers[row],
        )

    # Measures

    def _compressed(self, rate: int) -> CompressedDocuments:
        spans = self._model.config.memory_form == "spans"
        return self._model.compress(
            self._documents, overflow="truncate", compression_rate=rate if spans else None
        )

    def _matches(self, memory: Sequence[CompressedDocuments]) -> float:
        written = self._model.generate(
            self._questions, memory, max_new_tokens=self._longest, batch_size=self._batch_size
        )
        return self._share(written)

    def _share(self, written: Sequence[str]) -> float:
        pairs = zip(written, self._answers, strict=True)
        return sum(is_exact_match(text, [answer]) for text, answer in pairs) / len(self)

    def _loss(self, memory: Sequence[Any]) -> float:
        total = 0.0
        for part in self._parts():
            mean = self._model.answer_loss(self._questions[part], memory[part], self._answers[part])
            total += float(mean) * sum(self._tokens[part])
        return total / sum(self._tokens)

    def _from_text(self) -> dict[str, float]:
        """The bare backbone answers alike in every evaluation, unless it trains too."""
        if not self._text_figures or self._model.owns_backbone:
            written = self._model.answer_from_text(
                self._questions,
                self._texts,
                max_new_tokens=self._longest,
                batch_size=self._batch_size,
            )
            self._text_figures = {
                "exact_match_text": self._share(written),
                "loss_text": self._loss_of_texts(self._texts, None),
            }
        return self._text_figures

    def _loss_of_texts(self, texts: Sequence[Sequence[str]], adapter: str | None) -> float:
        """The loss from documents' texts in place of memory; from no texts, that without memory."""
        model = self._model
        nothing = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
        total, tokens = 0.0, 0
        for part in self._parts():
            rows = range(len(self))[part]
            packed = PackedPrompts.of([self._prompt(r, texts[r]) for r in rows], model.device)
            total += float(answer_cross_entropy(model, packed, nothing, adapter))
            tokens += len(packed.targets)
        return total / tokens

    def _recall(self, memory: CompressedDocuments) -> dict[str, float]:
        ranked: Tensor = self._model.rank(self._questions, memory, max(RANKED)).indices
        found = {}
        for k in RANKED:
            best = [set(row[:k]) for row in ranked.tolist()]
            shares = [len(b & set(own)) / len(own) for b, own in zip(best, self._own, strict=True)]
            found[f"recall@{k}"] = sum(shares) / len(shares)
        return found

    def _added(self, memory: CompressedDocuments, rate: int) -> float:
        _, added = states_and_added(self._model, self._documents[:_LOOKED_AT], rate)
        norms = memory.memory[:_LOOKED_AT].float().norm(dim=-1)  # of padding: 0
        return spread(added) / float(norms.sum() / len(added))

    def _parts(self) -> list[slice]:
        starts = range(0, len(self), self._batch_size)
        return [slice(start, start + self._batch_size) for start in starts]


@torch.no_grad()
def states_and_added(model: Clara, documents: Sequence[str], rate: int) -> tuple[Tensor, Tensor]:
    """Final states of documents' slots, and what the compressor adds to the means of their spans.

    Args:
        model: in memory form "spans".

    Returns:
        `[M, H]` each in float32, M the slots of all documents; states divided by the connector's
        scale.
    """
    passages = model.passages(documents, "truncate")
    states = torch.cat(encode_states(model, passages, COMPRESSOR, rate=rate)).float()
    connector = model.connectors.of(COMPRESSOR)
    return states / connector.scale, connector(states, torch.zeros_like(states))


def spread(rows: Tensor) -> float:
    """Mean distance of rows `[M, H]` from their mean."""
    return float((rows - rows.mean(0)).norm(dim=1).mean())


def _asked(example: Any, row: int) -> Asked | None:
    """A question of an example; None for an example that asks none, such as a paraphrase."""
    documents = example.documents
    if hasattr(example, "questions"):
        if getattr(example, "task", "qa") != "qa" or not example.questions:
            return None
        pair = row % len(example.questions)
        question, answer = example.questions[pair], example.answers[pair]
    else:
        question, answer = example.question, example.answer
        if hasattr(example, "positives"):
            documents = tuple(documents[place] for place in example.positives)
    texts = (question, answer, *documents)
    usable = documents and all(text.strip() for text in texts)
    return Asked(question, answer, tuple(dict.fromkeys(documents))) if usable else None
