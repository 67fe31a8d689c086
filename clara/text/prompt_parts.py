"""A generator's prompt in parts, of which only the question has to be tokenised.

For programs that build prompts without this package: they have the tokenizer's files, but not
`SafeTokenizer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from clara.config import MEMORY_FIELD, QUESTION_FIELD, PromptTemplate
from clara.text.prompts import build_prompt, memory_slots, words_around
from clara.text.tokenizer import Control, Marker, Piece, SafeTokenizer

_PROBES = ("Who built it?", "42", "Ünï 北京 😀", "a\n\n b", "</s><|im_end|>")
"""Questions whose prompts are compared."""


@dataclass(frozen=True)
class PromptParts:
    """A prompt with the memory of at least one document is

        before, memory, tokens of "opening question closing", after

    where the question is not empty and has no white space around it. The memory of each document is
    followed by the separator if the model has one. The text in the middle is tokenised as one, as
    it stands behind something else, and no control token comes of it.

    Attributes:
        before: token ids in front of the memory.
        opening: text in front of the question.
        closing: text behind the question.
        after: token ids behind that.
    """

    before: list[int]
    opening: str
    closing: str
    after: list[int]

    def ids(self, tokenizer: SafeTokenizer, background: list[Piece], question: str) -> list[int]:
        """Token ids of a prompt, `Marker` values among them.

        Args:
            background: of `memory_slots`, not empty.
        """
        text = self.opening + question.strip() + self.closing
        return [*self.before, *tokenizer.encode_pieces([*background, text]).ids, *self.after]


def prompt_parts(tokenizer: SafeTokenizer, template: PromptTemplate) -> PromptParts:
    """The parts of `build_prompt`'s prompts with memory.

    Raises:
        ValueError: a tokenizer whose prompts do not fall into such parts.
    """
    head, between = template.user.split(MEMORY_FIELD)
    opening, tail = between.split(QUESTION_FIELD)
    pieces, end = words_around(tokenizer, template.system)
    # A marker ends the text before it, as memory does.
    before = tokenizer.encode_pieces([*pieces, head, Marker.MEMORY]).ids[:-1]
    text, rest, strips = tokenizer.until_control(end.text)
    closing = tail + text
    after = tokenizer.encode_pieces([Marker.MEMORY, Control(rest)]).ids[1:]
    parts = PromptParts(before, opening, closing.rstrip() if strips else closing, after)
    for separator in (False, True):
        slots = memory_slots([2], separator)
        for question in _PROBES:
            if parts.ids(tokenizer, slots, question) != (
                build_prompt(tokenizer, template, slots, question).ids
            ):
                raise ValueError(
                    f"the prompt of the question {question!r} does not fall into parts with this "
                    "tokenizer and chat template, so it cannot be described to other programs"
                )
    return parts
