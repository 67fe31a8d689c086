"""The generator's prompts: wording, memory slots, and their token ids."""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError

from clara.tokenizer import Control, Marker, Piece, SafeTokenizer

MEMORY_FIELD = "{memory}"
QUESTION_FIELD = "{question}"


@dataclass(frozen=True)
class PromptTemplate:
    """Wording of a prompt.

    Attributes:
        system: system turn; put before the user turn when the backbone has no system role.
        user: user turn with `{memory}` and `{question}` once each, memory first.
    """

    system: str
    user: str

    def __post_init__(self) -> None:
        for name in ("system", "user"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"prompt.{name} must be a string, got {getattr(self, name)!r}")
        for name in (MEMORY_FIELD, QUESTION_FIELD):
            if self.user.count(name) != 1:
                raise ValueError(f"prompt.user must contain {name} exactly once: {self.user!r}")
        if self.user.index(MEMORY_FIELD) > self.user.index(QUESTION_FIELD):
            raise ValueError(f"prompt.user must have {MEMORY_FIELD} before {QUESTION_FIELD}")


DEFAULT_PROMPT = PromptTemplate(
    system=(
        "You answer questions. Find the information needed in the background and reply with the "
        "answer alone, as short as possible."
    ),
    user="Background:\n{memory}\n\nQuestion: {question}",
)


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: token ids; `Marker.MEMORY` and `Marker.SEPARATOR` stand for our own rows.
        answer_start: index in `ids` where the answer begins; `len(ids)` without an answer.
    """

    ids: list[int]
    answer_start: int


def memory_slots(documents: int, memory_tokens: int, separator: bool) -> list[Piece]:
    """Slots for the memory of `documents` documents, each followed by the separator."""
    slots: list[Piece] = [Marker.MEMORY] * memory_tokens
    if separator:
        slots.append(Marker.SEPARATOR)
    return slots * documents


def text_background(texts: Sequence[str]) -> list[Piece]:
    """The documents themselves, for plain-text retrieval-augmented generation."""
    return ["\n\n".join(texts)]


def build_prompt(
    tokenizer: SafeTokenizer,
    template: PromptTemplate,
    background: Sequence[Piece],
    question: str,
    answer: str | None = None,
) -> Prompt:
    """Prompt for one question, in the backbone's chat format.

    Args:
        background: what stands at `{memory}`: `memory_slots` or `text_background`.
        question: text of a user; stripped, never parsed for control tokens.
        answer: with an answer, the assistant's turn including its end is appended.
    """
    head, after = template.user.split(MEMORY_FIELD)
    middle, tail = after.split(QUESTION_FIELD)
    user: list[Piece] = [head, *background, middle + question.strip() + tail]
    before, between, opening, closing = _chat_frame(tokenizer)
    pieces: list[Piece] = [before]
    if between is None:
        pieces += [f"{template.system}\n\n"] if template.system else []
    else:
        pieces += [template.system, between]
    pieces += [*user, opening]
    if answer is None:
        ids = tokenizer.encode_pieces(pieces).ids
        return Prompt(ids, len(ids))
    answer_from = tokenizer.length(pieces)
    encoded = tokenizer.encode_pieces([*pieces, answer, closing])
    first = bisect_left(encoded.starts, answer_from)
    if first == len(encoded.starts) or encoded.starts[first] > answer_from:
        first -= 1  # the answer begins inside a token that the text before it begins
    return Prompt(encoded.ids, first)


@lru_cache(maxsize=8)
def _chat_frame(
    tokenizer: SafeTokenizer,
) -> tuple[Control, Control | None, Control, Control]:
    """What the chat template writes around the turns.

    Returns:
        Text before the system turn, between system and user turn (None if the backbone has no
        system role), from the user turn to the answer, and after the answer.
    """
    if tokenizer.tokenizer.chat_template is None:
        bos = tokenizer.tokenizer.bos_token or ""
        return (
            Control(bos),
            Control("\n\n"),
            Control("\nAnswer: "),
            Control(tokenizer.tokenizer.eos_token or ""),
        )
    system, user, answer = (f"x{secrets.token_hex(16)}x" for _ in range(3))
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    try:
        prompt = _render(tokenizer, turns, generate=True)
    except TemplateError:
        prompt = ""
    if system not in prompt:
        turns = turns[1:]
        prompt = _render(tokenizer, turns, generate=True)
    full = _render(tokenizer, [*turns, {"role": "assistant", "content": answer}], generate=False)
    before, _, opening = prompt.partition(user)
    closing = Control(full.partition(answer)[2])
    if len(turns) == 1:
        return Control(before), None, Control(opening), closing
    before, _, between = before.partition(system)
    return Control(before), Control(between), Control(opening), closing


def _render(tokenizer: SafeTokenizer, turns: list[dict[str, str]], *, generate: bool) -> str:
    # enable_thinking: templates of reasoning models open a chain of thought without it.
    return str(
        tokenizer.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generate, enable_thinking=False
        )
    )
