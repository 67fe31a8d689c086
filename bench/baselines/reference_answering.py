"""Answering as the public reference implementation does it.

Written from a description of what it does: documents and question are padded to the limit, the
states of all layers are kept and the output head is computed for every position of them, documents
are selected by a one-hot einsum in float32, and memory is put into the prompt in a loop. Generation
is transformers' own, and in all else it is no slower than it has to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from bench.baselines.reference_training import ReferenceTraining
from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.text.packing import pack
from clara.text.passages import as_documents, compressor_inputs, prepare_passages
from clara.text.prompts import build_prompt, memory_slots


class ReferenceAnswering(ReferenceTraining):
    """Compresses, ranks and answers with the weights of a `Clara`.

    Args:
        backbone: without adapters, on the model's device; None loads it from its files.
    """

    def __init__(
        self, model: Clara, *, batch_size: int = 8, backbone: PreTrainedModel | None = None
    ) -> None:
        super().__init__(model, (), trains_rows=False, backbone=backbone)
        self.tokenizer, self.config, self.batch_size = model.tokenizer, model.config, batch_size
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def compress(self, texts: Sequence[str]) -> Tensor:
        """Memory `[N, m, H]`."""
        starts = range(0, len(texts), self.batch_size)
        parts = [self._encoded(texts[i : i + self.batch_size], COMPRESSOR) for i in starts]
        return torch.cat(parts)

    def answer(self, question: str, memory: Tensor, top_k: int, new_tokens: int) -> str:
        """From the best of documents `[N, m, H]`, exactly as many new tokens, greedily."""
        return self.answers([question], memory[None], top_k, new_tokens)[0]

    @torch.no_grad()
    def answers(
        self, questions: Sequence[str], memory: Tensor, top_k: int, new_tokens: int
    ) -> list[str]:
        """The same for several questions in one batch, from `[B, N, m, H]`."""
        query = self._encoded(questions, QUERY_REASONER).float().flatten(1)
        documents = memory.float()
        scores = torch.einsum(
            "bd,bnd->bn", normalize(query, dim=1), normalize(documents.flatten(2), dim=2)
        )
        chosen = self._selection(scores / self.config.temperature, min(top_k, memory.shape[1]))
        selected = torch.einsum("bkn,bnmh->bkmh", chosen, documents).flatten(1, 2)
        slots = memory_slots([self.slots] * chosen.shape[1], self.config.separator)
        prompts = [
            self._numbered(build_prompt(self.tokenizer, self.config.prompt, slots, question).ids)
            for question in questions
        ]
        ids, mask = self._padded(prompts, max(map(len, prompts)))
        embeddings = self._embedded(ids).clone()
        is_slot = (ids >= self.words) & (ids < self.words + self.slots)
        for row in range(len(prompts)):
            for used, place in enumerate(is_slot[row].nonzero()[:, 0].tolist()):
                embeddings[row, place] = selected[row, used].to(embeddings)
        self._activate(GENERATOR)
        output = self.backbone.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=self.tokenizer.eos_id,
        )
        return [self.tokenizer.decode(row) for row in output.tolist()]

    def _encoded(self, texts: Sequence[str], adapter: str) -> Tensor:
        passages = prepare_passages(
            self.tokenizer,
            as_documents(texts),
            limit=self.config.document_length,
            overflow="truncate",
        )
        sequences = compressor_inputs(self.tokenizer, passages, n_memory=self.slots)
        total = sum(len(each.ids) for each in sequences)
        (batch,) = pack(sequences, batch_tokens=total, device=torch.device("cpu"))
        return self.memory(self.encode(batch, adapter)[0])
