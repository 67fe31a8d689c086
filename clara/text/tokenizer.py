"""Tokenise text so that it can never become a special token.

A tokenizer maps the literal characters `</s>` or `<|im_end|>` in a document to the control token
of that name; `split_special_tokens` stops this for special tokens only. `SafeTokenizer` works on a
copy of the tokenizer from which every added token is removed. The control tokens that a *template*
asks for are put back under names drawn at random, which no document or question can contain.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Encoding, Tokenizer

from clara.errors.checks import surrogate_flaw

if TYPE_CHECKING:  # settings are read on the command line, which need not wait for transformers
    from transformers import PreTrainedTokenizerBase


class Marker(IntEnum):
    """Our own tokens. They have embedding rows of our own and, as ids, are negative."""

    MEMORY = -1
    SEPARATOR = -2
    ENCODE = -3


@dataclass(frozen=True)
class Control:
    """Template text, in which the names of control tokens mean those tokens."""

    text: str


Piece = str | Control | Marker
"""Part of a prompt; a plain `str` is text of a user or a document."""


@dataclass(frozen=True)
class EncodedText:
    """Token ids of a text and, for each, the index of the character where it starts."""

    ids: list[int]
    starts: list[int]


def check_text(text: object, name: str) -> None:
    """Refuse what no tokenizer can read.

    Raises:
        TypeError: not a string.
        ValueError: half a surrogate pair, as `json` makes of a lone "\\ud83d".
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, got {type(text).__name__}")
    if flaw := surrogate_flaw(text):
        raise ValueError(f"{name} {flaw}")


class SafeTokenizer:
    """Encodes text and prompts for a fast tokenizer without ever parsing tokens out of text.

    Raises:
        ValueError: the tokenizer has no Rust implementation (`tokenizers`) behind it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer; "
                "CLaRa needs one backed by the 'tokenizers' library"
            )
        self.tokenizer = tokenizer
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        added = description["added_tokens"]
        for setting in ("truncation", "padding", "post_processor"):
            description[setting] = None
        description["added_tokens"] = []
        self._backend = Tokenizer.from_str(json.dumps(description))
        # Runs of blanks are added tokens of some backbones, and ordinary text all the same.
        self._added_ids = {token["id"] for token in added if token["content"].strip(" \t\r\n▁")}

        self._names: dict[str | Marker, str] = {}
        self._ids: dict[int, int] = {}
        self._add(added)
        self._stripping = {token["content"] for token in added if token["lstrip"]}
        self._control_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        # Longest first, as the tokenizer itself matches added tokens.
        controls = sorted((n for n in self._names if isinstance(n, str)), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls)) or r"(?!)")

    def _add(self, added: Sequence[Mapping[str, Any]]) -> None:
        """Put control tokens and markers back, under names that nobody can guess."""
        keys: list[tuple[str | Marker, int, dict[str, bool]]] = [
            (token["content"], token["id"], {side: token[side] for side in ("lstrip", "rstrip")})
            for token in added
        ]
        keys += [(marker, marker.value, {}) for marker in Marker]
        nonce = secrets.token_hex(16)
        # The library numbers new tokens from the size of the vocabulary on, also where those
        # numbers are taken because others below are free: a name there is not used.
        taken = set(self._backend.get_vocab(with_added_tokens=False).values())
        internal = self._backend.get_vocab_size(with_added_tokens=False)
        tokens = []
        for key, token_id, strip in keys:
            while internal in taken:
                tokens.append(AddedToken(f"x{nonce}{internal:09d}x", normalized=False))
                internal += 1
            name = f"x{nonce}{internal:09d}x"
            tokens.append(AddedToken(name, normalized=False, **strip))
            self._names[key] = name
            self._ids[internal] = token_id
            internal += 1
        # All at once: each call goes over all tokens added before.
        self._backend.add_special_tokens(tokens)

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    @property
    def eos_id(self) -> int:
        """End-of-sequence token.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token")
        return self.tokenizer.eos_token_id

    def first_control(self, text: str) -> tuple[str, int | None]:
        """The text of a template up to its first control token, and that token.

        Runs of blanks are text, also where the tokenizer has a token for them.
        """
        for match in self._controls.finditer(text):
            if match[0].strip(" \t\r\n▁"):
                return text[: match.start()], self._control_ids[match[0]]
        return text, None

    def until_control(self, text: str) -> tuple[str, str, bool]:
        """The text of a template up to its first control token, and what begins with that token.

        Here a run of blanks is a control token where the tokenizer has a token for it.

        Returns:
            The two, and whether that token takes the white space before it away.
        """
        match = self._controls.search(text)
        if match is None:
            return text, "", False
        return text[: match.start()], text[match.start() :], match[0] in self._stripping

    @property
    def control_ids(self) -> list[int]:
        """Ids of tokens that no text of users and documents becomes, ascending."""
        return sorted(self._added_ids)

    def encode_texts(self, texts: Sequence[str]) -> list[EncodedText]:
        """Token ids of texts of users and documents, no token added before or after.

        Raises:
            TypeError, ValueError: see `check_text`.
        """
        for row, text in enumerate(texts):
            check_text(text, f"texts[{row}]")
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            self._without_added(encoding, text)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def encode_pieces(self, pieces: Iterable[Piece]) -> EncodedText:
        """Token ids of a prompt; our own tokens come out as the negative ids of `Marker`.

        Neighbouring texts are tokenised together, as if the prompt were one string. `starts`
        counts characters in the concatenation where a control token or marker has the length of
        its internal name.

        Raises:
            TypeError, ValueError: see `check_text`.
        """
        text = "".join(self._spell(piece) for piece in pieces)
        check_text(text, "the prompt")
        return self._without_added(self._backend.encode(text, add_special_tokens=False), text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _spell(self, piece: Piece) -> str:
        if isinstance(piece, Marker):
            return self._names[piece]
        if isinstance(piece, Control):
            return self._controls.sub(lambda match: self._names[match[0]], piece.text)
        return piece

    def _without_added(self, encoding: Encoding, text: str) -> EncodedText:
        """Translate internal ids, and re-spell added tokens that the vocabulary itself produced.

        Byte-pair merges cannot produce one in the tokenizers in use; a unigram vocabulary that
        lists `</s>`, or an unknown-character token, can. Such a piece is encoded one character
        at a time, and a character that is still an added token is left out.
        """
        ids: list[int] = []
        starts: list[int] = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            known = self._ids.get(token_id, token_id)
            if token_id in self._ids or token_id not in self._added_ids:
                ids.append(known)
                starts.append(start)
                continue
            for position in range(start, end):
                single = self._backend.encode(text[position], add_special_tokens=False)
                kept = [i for i in single.ids if i not in self._added_ids]
                ids.extend(kept)
                starts.extend([position] * len(kept))
        return EncodedText(ids, starts)
