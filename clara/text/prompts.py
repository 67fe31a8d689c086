"""The generator's prompts: wording, memory slots, and their token ids."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from jinja2 import TemplateError

from clara.config import MEMORY_FIELD, QUESTION_FIELD, PromptTemplate
from clara.text.tokenizer import Control, Marker, Piece, SafeTokenizer


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: token ids; `Marker.MEMORY` and `Marker.SEPARATOR` stand for our own rows.
        answer_start: index in `ids` where the answer begins; `len(ids)` without an answer.
    """

    ids: list[int]
    answer_start: int

    @property
    def first_slot(self) -> int | None:
        """Index in `ids` of the first memory slot; None without memory."""
        return self.ids.index(Marker.MEMORY) if Marker.MEMORY in self.ids else None


def memory_slots(counts: Sequence[int], separator: bool) -> list[Piece]:
    """Slots for the memory of documents, each followed by the separator.

    Args:
        counts: memory tokens of each document.
    """
    end: list[Piece] = [Marker.SEPARATOR] if separator else []
    return [slot for count in counts for slot in ([Marker.MEMORY] * count + end)]


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
    pieces, opening = words_around(tokenizer, template.system)
    pieces += [head, *background, middle + question.strip() + tail]
    ids = tokenizer.encode_pieces([*pieces, opening]).ids
    if answer is None:
        return Prompt(ids, len(ids))
    frame = _chat_frame(tokenizer)
    full = tokenizer.encode_pieces([*pieces, frame.turn, answer, frame.closing]).ids
    # The answer begins where the model has to go on differently: its first characters may be
    # part of a token that holds a blank of the template too.
    same = (i for i, (one, other) in enumerate(zip(ids, full)) if one != other)
    return Prompt(full, next(same, min(len(ids), len(full))))


def words_around(tokenizer: SafeTokenizer, system: str) -> tuple[list[Piece], Control]:
    """What stands in front of a user turn and behind it, up to where the answer begins.

    Args:
        system: text of the system turn.
    """
    frame = _chat_frame(tokenizer)
    pieces: list[Piece] = [frame.before]
    if frame.between is None:
        pieces += [f"{system}\n\n"] if system else []
    else:
        pieces += [system, frame.between]
    return pieces, frame.opening


def build_text_prompt(
    tokenizer: SafeTokenizer, template: PromptTemplate, texts: Sequence[str], question: str
) -> Prompt:
    """Prompt for one question with the texts of documents in place of their memory."""
    return build_prompt(tokenizer, template, text_background(texts), question)


@dataclass(frozen=True)
class AnswerEnd:
    """What a generator that was trained on `build_prompt` writes after an answer.

    Attributes:
        token: the control token that the template's closing turn begins with; None if it begins
            with other text, or with nothing.
        text: that text, without blanks around it; empty if it begins with a control token.
        blank: white space that the template writes in front of either.
    """

    token: int | None
    text: str
    blank: str


def answer_end(tokenizer: SafeTokenizer) -> AnswerEnd:
    """How the backbone's chat format ends an answer.

    Raises:
        ValueError: the chat template does not write the text of a user turn.
    """
    text, token = tokenizer.first_control(_chat_frame(tokenizer).closing.text)
    visible = text.strip()
    blank = text[: len(text) - len(text.lstrip())]
    return AnswerEnd(None if visible else token, visible, blank)


class _Frame(NamedTuple):
    """What the chat template writes around the turns.

    Attributes:
        before: in front of the system turn.
        between: from the system to the user turn; None if the backbone has no system role.
        opening: from the user turn to where generation begins.
        turn: from the user turn to the answer: `opening` and perhaps a blank.
        closing: after the answer; eos if the template writes nothing there but white space, which
            is no end: an answer may hold as much.
    """

    before: Control
    between: Control | None
    opening: Control
    turn: Control
    closing: Control


@lru_cache(maxsize=8)
def _chat_frame(tokenizer: SafeTokenizer) -> _Frame:
    bos = tokenizer.tokenizer.bos_token or ""
    eos = tokenizer.tokenizer.eos_token or ""
    if tokenizer.tokenizer.chat_template is None:
        parts = (bos, "\n\n", "\nAnswer:", "\nAnswer: ", eos)
        return _Frame(*map(Control, parts))
    system, user, answer = (f"x{secrets.token_hex(16)}x" for _ in range(3))
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    prompt = _render(tokenizer, turns, generate=True)
    if not 0 <= prompt.find(system) < prompt.find(user):
        turns = turns[1:]
        prompt = _render(tokenizer, turns, generate=True)
    before, found, opening = prompt.partition(user)
    if not found:
        raise ValueError("the tokenizer's chat template does not write the text of a user turn")
    full = _render(tokenizer, [*turns, {"role": "assistant", "content": answer}], generate=False)
    turn, found, closing = full.partition(user)[2].partition(answer)
    if not found:
        turn, closing = opening, eos
    elif not turn.startswith(opening):
        turn = opening
    elif turn[len(opening) :].strip():
        # The template knows no generation prompt: the assistant is named before answers only.
        opening = turn.rstrip(" ")
    closing = closing if closing.strip() else eos
    between = None
    if len(turns) == 2:
        before, _, rest = before.partition(system)
        between = Control(rest)
    return _Frame(Control(before), between, Control(opening), Control(turn), Control(closing))


def _render(tokenizer: SafeTokenizer, turns: list[dict[str, str]], *, generate: bool) -> str:
    """The turns in the template's words; nothing for turns that it refuses."""
    try:
        # enable_thinking: templates of reasoning models open a chain of thought without it.
        return str(
            tokenizer.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generate, enable_thinking=False
            )
        )
    except TemplateError:
        return ""
