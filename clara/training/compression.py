"""Compression pretraining and instruction tuning: compressor and generator learn together."""

from __future__ import annotations

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.examples import AnswerExample
from clara.model.clara import Clara
from clara.model.encoding import answer_cross_entropy
from clara.training.batches import CompressionBatch
from clara.training.collators import CompressionCollator
from clara.training.objectives import Objective, Term
from clara_kernels import memory_alignment_loss


class CompressionObjective(Objective):
    """`CE + λ·MSE` (arXiv 2511.18659).

    CE is the generator's loss on the target given the memory of the documents. MSE lies between
    the mean state of a document's tokens and that of its memory; see `memory_alignment_loss`.

    Args:
        alignment_weight: λ; 0 leaves the term out, and its cost.
        alignment_reduction: "mean" over H as the reference implementation has it, or "sum" as
            the paper writes it.
    """

    adapters = (COMPRESSOR, GENERATOR)
    trains_memory_tokens = True

    def __init__(
        self,
        model: Clara,
        *,
        alignment_weight: float = 0.1,
        alignment_reduction: str = "mean",
        train_backbone: bool = False,
    ) -> None:
        super().__init__(model, train_backbone=train_backbone)
        self._reduction = alignment_reduction
        self.terms = {"ce": Term("tokens")}
        if alignment_weight:
            self.terms["mse"] = Term("documents", alignment_weight)

    def sums(self, batch: CompressionBatch) -> dict[str, Tensor]:
        if batch.averages_only:
            return self._sums_of_averages(batch)
        aligned = "mse" in self.terms
        packed = batch.documents.batch
        encoded = self.model.encode_memory(packed, COMPRESSOR, memory_only=not aligned)
        memory = torch.cat(batch.documents.in_order(encoded.memory))
        sums = {"ce": answer_cross_entropy(self.model, batch.prompts, memory)}
        if aligned:
            mean = memory_alignment_loss(
                encoded.states, packed.cu_seqlens, packed.memory_counts, reduction=self._reduction
            )
            sums["mse"] = mean * len(batch.documents)
        return sums

    def _sums_of_averages(self, batch: CompressionBatch) -> dict[str, Tensor]:
        """As with a connector at zero, at the cost of the generator alone."""
        means = self.model.span_means(batch.documents.batch).to(self.model.dtype)
        memory = torch.cat(batch.documents.in_order(means))
        loss = answer_cross_entropy(self.model, batch.prompts, memory)
        # There are no states that could be aligned.
        return {"ce": loss, **{name: torch.zeros_like(loss) for name in self.terms if name != "ce"}}

    def stand_in(self) -> CompressionBatch:
        example = AnswerExample("Who?", ("Ada.",), "Ada")
        batch = CompressionCollator(self._plain_encoder)([example])
        assert isinstance(batch, CompressionBatch)
        return batch
