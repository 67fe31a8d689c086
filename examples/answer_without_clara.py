#!/usr/bin/env python
"""Answer questions from memory with transformers alone: `clara` is not imported.

    python examples/answer_without_clara.py FOLDER MEMORY QUESTION...

FOLDER is what `clara export --merged FOLDER` wrote. MEMORY is a safetensors file with the tensors
"0", "1", ..., [m, H] for each document in the order of the prompt, or a .npy file with the memory
of one document.
"""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


class Prompts:
    """Prompts with memory as embeddings, by `clara.json`."""

    def __init__(self, folder: str | Path, model: Any, tokenizer: Any) -> None:
        self.about = json.loads((Path(folder) / "clara.json").read_text(encoding="utf-8"))
        if self.about["clara_export"] != 1:
            raise SystemExit(f"error: {folder} is of another format: {self.about['clara_export']}")
        self._controls = set(self.about["control_ids"])
        self._embeddings = model.get_input_embeddings()
        # Without control tokens: "</s>" in a question is a run of ordinary characters. The text
        # stands behind something, which a word of our own is here.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._word = secrets.token_hex(16)
        self._tokenizer.add_special_tokens([AddedToken(self._word, normalized=False)])

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text behind other text."""
        spelt = self._word + text
        made = self._tokenizer.encode(spelt, add_special_tokens=False)
        ids = []
        for token, (start, end) in list(zip(made.ids, made.offsets, strict=True))[1:]:
            # Some vocabularies make control tokens of text: of "</s>", or of what they do not know.
            again = token in self._controls
            ids += self._without_controls(spelt[start:end]) if again else [token]
        return ids

    def _without_controls(self, text: str) -> list[int]:
        """Token ids of single characters."""
        made = (self._tokenizer.encode(one, add_special_tokens=False).ids for one in text)
        return [token for ids in made for token in ids if token not in self._controls]

    def embeddings(self, question: str, documents: Sequence[torch.Tensor]) -> torch.Tensor:
        """The whole prompt, [L, H], from memory [m, H] of each document."""
        parts = []
        for piece in self.about["pieces"]:
            if piece["kind"] == "memory":
                for memory in documents:
                    parts.append(memory)
                    if self.about["separator"] is not None:
                        parts.append(torch.tensor([self.about["separator"]]))
                continue
            ids = piece.get("ids")
            if piece["kind"] == "question":
                ids = self.text_ids(piece["before"] + question.strip() + piece["after"])
            parts.append(self._embeddings(torch.tensor(ids, dtype=torch.long)))
        return torch.cat([part.to(self._embeddings.weight.dtype) for part in parts])


def read_memory(file: str) -> list[torch.Tensor]:
    if file.endswith(".npy"):
        return [torch.from_numpy(np.load(file, allow_pickle=False))]
    tensors = load_file(file)
    return [tensors[str(place)] for place in range(len(tensors))]


@torch.no_grad()
def answer(
    folder: str,
    memory: Sequence[torch.Tensor],
    questions: Sequence[str],
    max_new_tokens: int | None,
) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    prompts = Prompts(folder, model, tokenizer)
    ends = set(prompts.about["end_ids"])
    answers = []
    for question in questions:
        (ids,) = model.generate(
            inputs_embeds=prompts.embeddings(question, memory)[None],
            max_new_tokens=max_new_tokens or prompts.about["max_new_tokens"],
            stop_strings=prompts.about["stop_texts"] or None,
            tokenizer=tokenizer,
        )
        ids = takewhile(lambda token: token not in ends, ids.tolist())
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        for stop in prompts.about["stop_texts"]:
            text = text.partition(stop)[0]
        answers.append(text.strip())
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("memory")
    parser.add_argument("questions", nargs="+", metavar="question")
    parser.add_argument("--max-new-tokens", type=int)
    given = parser.parse_args()
    memory = read_memory(given.memory)
    for text in answer(given.folder, memory, given.questions, given.max_new_tokens):
        print(json.dumps(text))


if __name__ == "__main__":
    main()
