"""End-to-end training: one loss trains the query reasoner to find and the generator to answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clara.backbone.adapters import GENERATOR, QUERY_REASONER
from clara.model.clara import Clara
from clara.model.encoding import answer_cross_entropy
from clara.training.batches import RankingBatch
from clara.training.candidates import CandidateMemory, ranking_stand_in
from clara.training.objectives import Objective, Term
from clara.training.selection import SelectionSchedule
from clara.training.statistics import compression_sums, recall_sums
from clara_kernels import cosine_scores, rank_and_select, select_topk


class EndToEndObjective(Objective):
    """Cross-entropy of the answer given the memories that the question selects.

    The compressor is frozen, and with it the memory of every candidate and our embedding rows.
    The gradient reaches the query reasoner through the relaxation of the selection.

    Args:
        candidates: where the candidates' memory is read from, by the rate of a batch.
        top_k: documents selected for a question.
        schedule: of the selection.
        negatives: candidates added to each question by searching the index with its current
            encoding, those already among its candidates left out.
        negatives_every: do so at every so many steps; 0 is never.
        train_query_reasoner: False trains the generator alone, an ablation.
    """

    adapters: tuple[str, ...] = (QUERY_REASONER, GENERATOR)

    def __init__(
        self,
        model: Clara,
        candidates: Mapping[int, CandidateMemory],
        *,
        top_k: int,
        schedule: SelectionSchedule,
        negatives: int = 0,
        negatives_every: int = 0,
        train_query_reasoner: bool = True,
    ) -> None:
        if not train_query_reasoner:
            self.adapters = (GENERATOR,)
        super().__init__(model)
        self.terms = {"ce": Term("tokens")}
        self._candidates = candidates
        self._top_k = top_k
        self._schedule = schedule
        self._negatives = negatives
        self._every = negatives_every

    def sums(self, batch: RankingBatch) -> dict[str, Tensor]:
        queries = self.encoded_questions(batch.questions)
        if self.training and self._negatives and self._every and self.step % self._every == 0:
            batch = self._with_negatives(batch, queries.detach())
        index = self._candidates[batch.rate]
        candidates = index.read([n for names in batch.candidates for n in names])
        memory = candidates.padded.to(self.model.device)
        offsets = torch.tensor(batch.offsets, dtype=torch.int32, device=self.model.device)
        selection = self._schedule.at(self.progress)
        noise = selection.noise if self.training else None
        options: dict[str, Any] = {
            "temperature": selection.temperature,
            "relaxation": selection.relaxation,
            "mask": selection.mask,
            "noise": noise,
            "seed": self.step_seed if noise else None,
            "offsets": offsets,
        }
        if self.model.config.ranking_rule == "flattened":
            selected, order, scores = rank_and_select(queries, memory.rows, self._top_k, **options)
        else:
            vectors = memory.vectors("mean")
            scores = cosine_scores(queries.flatten(1), vectors, offsets=offsets)
            selected, order = select_topk(scores, memory.rows, self._top_k, **options)
        # A question with fewer candidates than slots has a prompt with fewer slots.
        used = [min(self._top_k, len(names)) for names in batch.candidates]
        chosen = [
            [candidates.counts[start + at] for at in best[:count]]
            for best, start, count in zip(order.tolist(), batch.offsets, used)
        ]
        slots = torch.cat(
            [
                selected[row, place, :count]
                for row, counts in enumerate(chosen)
                for place, count in enumerate(counts)
            ]
        )
        prompts = batch.prompts
        assert prompts is not None, "the collator makes prompts"
        if self.model.config.memory_form == "spans":
            prompts = prompts.with_counts([count for counts in chosen for count in counts])
        loss = answer_cross_entropy(self.model, prompts, slots)
        statistics = recall_sums(scores.detach(), batch) | compression_sums(candidates)
        return {"ce": loss, **statistics}

    def stand_in(self) -> RankingBatch:
        return ranking_stand_in(self._plain_encoder, self._candidates, top_k=1)

    def _with_negatives(self, batch: RankingBatch, queries: Tensor) -> RankingBatch:
        """The batch with what the index holds nearest to each question as further candidates.

        Only where they do not change how many slots the prompt has.
        """
        longest = max(len(names) for names in batch.candidates)
        found = self._candidates[batch.rate].search(queries, self._negatives + longest)
        extended = []
        for names, near in zip(batch.candidates, found, strict=True):
            new = [name for name in near if name not in set(names)][: self._negatives]
            extended.append([*names, *new] if len(names) >= self._top_k else names)
        return batch.with_candidates(extended)
