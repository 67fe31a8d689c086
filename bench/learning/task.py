"""The task: sheets of facts that nothing but their memory can carry.

A sheet has a name of two words and four facts, each a key and a value drawn at random:

    a3 b7 k11 v4 k2 v30 k9 v17 k5 v4

A question is a name and a key, `a3 b7 k9`, and its answer the value, `v17`. No value follows from
anything but the sheet. A fifth of the names is never trained on: the sheets of those are held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from clara import ClaraConfig
from clara.config import PromptTemplate
from clara.data import write_jsonl

FIRST = [f"a{i}" for i in range(16)]
SECOND = [f"b{i}" for i in range(16)]
KEYS = [f"k{i}" for i in range(16)]
VALUES = [f"v{i}" for i in range(32)]
FACTS = 4
WORDS = 2 + 2 * FACTS  # of a sheet, a token each
CORPUS = 4096  # sheets that questions are trained on end to end
CANDIDATES = 8
HELD_OUT = 512  # questions
WRITE = "write"
WRITING = 0.5  # share of the records that are sheets to write; the others are questions

_TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}{{ bos_token }}{{ turn.content }}"
    "{% else %} {{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Sheet:
    """A document."""

    name: str
    facts: tuple[tuple[str, str], ...]

    @classmethod
    def draw(cls, source: random.Random, *, held_out: bool) -> Sheet:
        while True:
            first, second = source.randrange(len(FIRST)), source.randrange(len(SECOND))
            if ((first + second) % 5 == 0) is held_out:
                break
        keys = source.sample(KEYS, FACTS)
        facts = tuple((key, source.choice(VALUES)) for key in keys)
        return cls(f"{FIRST[first]} {SECOND[second]}", facts)

    @property
    def text(self) -> str:
        return f"{self.name} {self.listed(range(FACTS))}"

    def listed(self, order: Iterable[int]) -> str:
        """The facts alone, in any order."""
        return " ".join(" ".join(self.facts[place]) for place in order)

    def question(self, fact: int) -> tuple[str, str]:
        key, value = self.facts[fact]
        return f"{self.name} {key}", value


def config(**changes: Any) -> ClaraConfig:
    """Settings of a model for sheets: a memory token for each fact and one for the name."""
    settings: dict[str, Any] = {
        "document_length": 40,
        "compression_rate": 8,
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "prompt": PromptTemplate(system="", user="{memory} {question}"),
        "top_k": 1,
        "dtype": "float32",
    }
    return ClaraConfig(**{**settings, **changes})


def write_backbone(folder: Path, *, width: int = 128, layers: int = 3, seed: int = 0) -> None:
    """A Llama drawn at random, whose tokens are the task's words."""
    words = ["<unk>", "<s>", "</s>", "Background", ":", WRITE, *FIRST, *SECOND, *KEYS, *VALUES]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = _TEMPLATE
    settings = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(
    folder: Path, counts: dict[str, int], seed: int, *, writing: float = WRITING
) -> None:
    """Training files of the stages in `counts`, in the fields that `clara train` reads.

    Args:
        writing: share of instruction tuning's records that are sheets to write.
    """
    makers: dict[str, Callable[[random.Random], Iterator[dict[str, Any]]]] = {
        "text": _text_records,
        "instruct": partial(_instruction_records, writing=writing),
        "end-to-end": _end_to_end_records,
    }
    for place, (stage, count) in enumerate(counts.items()):
        source = random.Random(seed * 100 + place)
        write_jsonl(folder / f"{stage}.jsonl", islice(makers[stage](source), count))


def held_out(count: int = HELD_OUT, seed: int = 12_345) -> list[dict[str, Any]]:
    """Questions with candidates, all of sheets with names that were never trained on."""
    source = random.Random(seed)
    draw = partial(Sheet.draw, source, held_out=True)
    return [_question_record(source, draw) for _ in range(count)]


def _text_records(source: random.Random) -> Iterator[dict[str, Any]]:
    return _records(source, write_name=False, writing=WRITING)


def _instruction_records(source: random.Random, writing: float) -> Iterator[dict[str, Any]]:
    """With the sheet's name in what is written, so that memory carries all of a sheet."""
    return _records(source, write_name=True, writing=writing)


def _records(
    source: random.Random, *, write_name: bool, writing: float
) -> Iterator[dict[str, Any]]:
    """Some of them questions, and the share `writing` of them facts to write, in another order.

    In another order a value can only be written by looking its key up, as a question has it.
    Written as they stand, facts go into memory by their place and their keys do not tell them
    apart.
    """
    while True:
        sheet = Sheet.draw(source, held_out=False)
        if source.random() < 1 - writing:
            question, answer = sheet.question(source.randrange(FACTS))
        else:
            listed = sheet.listed(source.sample(range(FACTS), FACTS))
            question, answer = WRITE, f"{sheet.name} {listed}" if write_name else listed
        yield {"question": question, "docs": [sheet.text], "answer": answer}


def _end_to_end_records(source: random.Random) -> Iterator[dict[str, Any]]:
    """About a corpus of `CORPUS` sheets, which are compressed once."""
    corpus = [Sheet.draw(source, held_out=False) for _ in range(CORPUS)]
    while True:
        yield _question_record(source, partial(source.choice, corpus))


def _question_record(source: random.Random, draw: Callable[[], Sheet]) -> dict[str, Any]:
    """A question with sheets of different names, one of them the one asked about."""
    sheets: dict[str, Sheet] = {}
    while len(sheets) < CANDIDATES:
        sheet = draw()
        sheets.setdefault(sheet.name, sheet)
    gold = source.randrange(CANDIDATES)
    question, answer = list(sheets.values())[gold].question(source.randrange(FACTS))
    return {
        "question": question,
        "docs": [sheet.text for sheet in sheets.values()],
        "pos_index": [gold],
        "answer": answer,
    }
