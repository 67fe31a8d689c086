"""End-to-end training: one loss trains the query reasoner to find and the generator to answer."""

from __future__ import annotations

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
from clara_kernels import rank_and_select


class EndToEndObjective(Objective):
    """Cross-entropy of the answer given the memories that the question selects.

    The compressor is frozen, and with it the memory of every candidate and our embedding rows.
    The gradient reaches the query reasoner through the relaxation of the selection.

    Args:
        candidates: where the candidates' memory is read from.
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
        candidates: CandidateMemory,
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
        hidden = self.model.encode(batch.questions.batch, QUERY_REASONER, memory_only=True)
        queries = batch.questions.memory(hidden)
        if self.training and self._negatives and self._every and self.step % self._every == 0:
            batch = self._with_negatives(batch, queries.detach())
        candidates = self._candidates.read([n for names in batch.candidates for n in names])
        memory = candidates.memory.to(self.model.device)
        offsets = torch.tensor(batch.offsets, dtype=torch.int32, device=memory.device)
        selection = self._schedule.at(self.progress)
        noise = selection.noise if self.training else None
        selected, _, scores = rank_and_select(
            queries,
            memory,
            self._top_k,
            temperature=selection.temperature,
            relaxation=selection.relaxation,
            mask=selection.mask,
            noise=noise,
            seed=self.step_seed if noise else None,
            offsets=offsets,
        )
        # A question with fewer candidates than slots has a prompt with fewer slots.
        used = [min(self._top_k, len(names)) for names in batch.candidates]
        slots = torch.cat([selected[row, :count].flatten(0, 1) for row, count in enumerate(used)])
        assert batch.prompts is not None, "the collator makes prompts"
        loss = answer_cross_entropy(self.model, batch.prompts, slots)
        statistics = recall_sums(scores.detach(), batch) | compression_sums(candidates)
        return {"ce": loss, **statistics}

    def stand_in(self) -> RankingBatch:
        return ranking_stand_in(self._plain_encoder, self._candidates, top_k=1)

    def _with_negatives(self, batch: RankingBatch, queries: Tensor) -> RankingBatch:
        """The batch with what the index holds nearest to each question as further candidates.

        Only where they do not change how many slots the prompt has.
        """
        longest = max(len(names) for names in batch.candidates)
        found = self._candidates.search(queries, self._negatives + longest)
        extended = []
        for names, near in zip(batch.candidates, found, strict=True):
            new = [name for name in near if name not in set(names)][: self._negatives]
            extended.append([*names, *new] if len(names) >= self._top_k else names)
        return batch.with_candidates(extended)
