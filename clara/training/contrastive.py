"""The contrastive baseline: the query reasoner learns to rank from labelled positives alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clara.backbone.adapters import QUERY_REASONER
from clara.model.clara import Clara
from clara.training.batches import RankingBatch
from clara.training.candidates import CandidateMemory, ranking_stand_in
from clara.training.objectives import Objective, Term
from clara.training.statistics import compression_sums, recall_sums
from clara_kernels import cosine_scores


class ContrastiveObjective(Objective):
    """InfoNCE over cosines: `−log softmax(s/τ)` of each positive against the negatives.

    A question's other positives do not count as its negatives. The mean over its positives is
    the loss of a question.

    Args:
        candidates: where the candidates' memory is read from, by the rate of a batch.
        temperature: τ.
        in_batch_negatives: the other questions' candidates are negatives too, except those that
            are among a question's own.
    """

    adapters = (QUERY_REASONER,)

    def __init__(
        self,
        model: Clara,
        candidates: Mapping[int, CandidateMemory],
        *,
        temperature: float,
        in_batch_negatives: bool = False,
    ) -> None:
        super().__init__(model)
        self.terms = {"contrastive": Term("questions")}
        self._candidates = candidates
        self._temperature = temperature
        self._in_batch = in_batch_negatives

    def sums(self, batch: RankingBatch) -> dict[str, Tensor]:
        queries = self.encoded_questions(batch.questions)
        own = recall_batch = batch
        if self._in_batch:
            every = dict.fromkeys(n for names in batch.candidates for n in names)
            own = batch.with_candidates(
                [[*names, *(n for n in every if n not in set(names))] for names in batch.candidates]
            )
        # With negatives of the batch all questions share their candidates: each is read once.
        different = list(dict.fromkeys(n for names in own.candidates for n in names))
        candidates = self._candidates[batch.rate].read(different)
        place = {name: row for row, name in enumerate(different)}
        rows = [place[n] for names in own.candidates for n in names]
        memory = candidates.padded.to(self.model.device)
        offsets = torch.tensor(own.offsets, dtype=torch.int32, device=self.model.device)
        vectors = memory.vectors(self.model.config.ranking_rule)[rows]
        scores = cosine_scores(queries.flatten(1), vectors, offsets=offsets)
        losses = [
            self._loss(scores[start:end] / self._temperature, positives)
            for start, end, positives in zip(own.offsets, own.offsets[1:], batch.positives)
        ]
        # Recall among a question's own candidates, which come first.
        first = [
            scores[start : start + len(names)]
            for start, names in zip(own.offsets, recall_batch.candidates)
        ]
        statistics = recall_sums(torch.cat(first).detach(), recall_batch)
        statistics |= compression_sums(candidates)
        return {"contrastive": torch.stack(losses).sum(), **statistics}

    def stand_in(self) -> RankingBatch:
        return ranking_stand_in(self._plain_encoder, self._candidates, top_k=None)

    @staticmethod
    def _loss(scores: Tensor, positives: tuple[int, ...]) -> Tensor:
        chosen = list(positives)
        negative = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        negative[chosen] = False
        against = scores[negative].expand(len(chosen), -1)
        logits = torch.cat([scores[chosen, None], against], 1)
        return (logits.logsumexp(1) - logits[:, 0]).mean()
