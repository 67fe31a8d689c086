"""Retrieval-augmented generation with the documents' text in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from bench.backbones import left_padded, plain_from_files
from clara import Clara
from clara.model.generation import generated
from clara.text.prompts import build_prompt, text_background


class TextRag:
    """The bare backbone of a `Clara` with transformers' own attention, and its prompts.

    Retrieval costs nothing here: the documents are given. Further tokens are decoded as ours are,
    for it is the same backbone.

    Args:
        backbone: without adapters, on the model's device; None loads it from its files.
    """

    def __init__(self, model: Clara, backbone: PreTrainedModel | None = None) -> None:
        self.tokenizer, self.template = model.tokenizer, model.config.prompt
        self.backbone = plain_from_files(model) if backbone is None else backbone
        self.backbone.requires_grad_(False).eval()

    def prompt(self, question: str, texts: Sequence[str]) -> list[int]:
        background = text_background(texts)
        return build_prompt(self.tokenizer, self.template, background, question).ids

    def answer(self, question: str, texts: Sequence[str], new_tokens: int) -> str:
        """Exactly as many new tokens, greedily."""
        return self.answers([question], [texts], new_tokens)[0]

    @torch.no_grad()
    def answers(
        self, questions: Sequence[str], texts: Sequence[Sequence[str]], new_tokens: int
    ) -> list[str]:
        """The same for several questions in one batch, from the texts of each."""
        prompts = [self.prompt(*pair) for pair in zip(questions, texts, strict=True)]
        width, device = max(map(len, prompts)), self.backbone.device
        ids, mask = left_padded(prompts, width, self.tokenizer.eos_id, device)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=self.tokenizer.eos_id,
            eos_token_id=self.tokenizer.eos_id,
        )
        embedded = self.backbone.get_input_embeddings()(ids)
        inputs = {"inputs_embeds": embedded, "attention_mask": mask}
        output = generated(self.backbone, inputs, settings, StoppingCriteriaList())
        return [self.tokenizer.decode(row) for row in output.tolist()]
