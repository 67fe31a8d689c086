"""Compression pretraining and instruction tuning: compressor and generator learn together."""

from __future__ import annotations

import torch
from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.backbone.output_path import next_token_cross_entropy, next_token_divergence
from clara.data.examples import AnswerExample
from clara.model.clara import Clara
from clara.model.encoding import answer_states
from clara.text.packing import PackedBatch
from clara.training.batches import CompressionBatch
from clara.training.collators import CompressionCollator
from clara.training.objectives import Objective, Term
from clara_kernels import memory_alignment_loss


class CompressionObjective(Objective):
    """`CE + λ·MSE` (arXiv 2511.18659), `w·KL` with a teacher, and `u·SP` of span slots.

    CE is the generator's loss on the target given the memory of the documents. MSE lies between
    the mean state of a document's tokens and that of its memory; see `memory_alignment_loss`. KL
    lies between the probabilities of a teacher that reads the documents' text and the generator's
    (arXiv 1503.02531, at temperature 1), at the tokens that the batch is `taught`. CE and KL are
    added up over tokens and divided by the number of answers' tokens, with and without a teacher:
    a token's KL weighs w times what its CE weighs, however many tokens have a teacher. The log has
    the mean over the tokens with one.

    SP is the cross-entropy of a token of a slot's own span, predicted by the backbone's output head
    from the slot's final state. In memory form "spans" a generator reads the mean embedding of a
    span whether or not the compressor says anything. The shortest way down from a compressor that
    is of no use yet is then one that says the same about all texts, and from there no gradient
    leads back. SP has each slot look up its span, and tell which tokens come first in it, which a
    mean does not hold: see `drawn_tokens`.

    Args:
        alignment_weight: λ; 0 leaves the term out, and its cost.
        alignment_reduction: "mean" over H as the reference implementation has it, or "sum" as
            the paper writes it.
        distillation_weight: w; 0 leaves the term out.
        span_weight: u; 0 leaves the term out. Above it the model must have memory form "spans".
    """

    adapters = (COMPRESSOR, GENERATOR)
    trains_memory_tokens = True

    def __init__(
        self,
        model: Clara,
        *,
        alignment_weight: float = 0.1,
        alignment_reduction: str = "mean",
        distillation_weight: float = 0.0,
        span_weight: float = 0.0,
        train_backbone: bool = False,
    ) -> None:
        super().__init__(model, train_backbone=train_backbone)
        self._reduction = alignment_reduction
        self.terms = {"ce": Term("tokens")}
        if alignment_weight:
            self.terms["mse"] = Term("documents", alignment_weight)
        if distillation_weight:
            self.terms["kl"] = Term("tokens", distillation_weight, logged_per="taught")
        if span_weight:
            self.terms["span"] = Term("slots", span_weight)

    def sums(self, batch: CompressionBatch) -> dict[str, Tensor]:
        if batch.averages_only:
            return self._sums_of_averages(batch)
        aligned = "mse" in self.terms
        packed = batch.documents.batch
        encoded = self.model.encode_memory(packed, COMPRESSOR, memory_only=not aligned)
        memory = torch.cat(batch.documents.in_order(encoded.memory))
        sums = self._sums_of_answers(batch, memory)
        if aligned:
            mean = memory_alignment_loss(
                encoded.states, packed.cu_seqlens, packed.memory_counts, reduction=self._reduction
            )
            sums["mse"] = mean * len(batch.documents)
        if "span" in self.terms:
            slots = encoded.states[packed.memory_rows]
            drawn = drawn_tokens(packed, self.step_seed)
            sums["span"] = next_token_cross_entropy(self.model.backbone, slots, drawn)
        return sums

    def _sums_of_averages(self, batch: CompressionBatch) -> dict[str, Tensor]:
        """The sums with a connector at zero, at the cost of the generator alone."""
        means = self.model.span_means(batch.documents.batch).to(self.model.dtype)
        memory = torch.cat(batch.documents.in_order(means))
        sums = self._sums_of_answers(batch, memory)
        for name in ("mse", "span"):  # there are no states that could be compared
            if name in self.terms:
                sums[name] = torch.zeros_like(sums["ce"])
        return sums

    def _sums_of_answers(self, batch: CompressionBatch, memory: Tensor) -> dict[str, Tensor]:
        """The terms that look at the answers, given the memory for all slots."""
        backbone, taught = self.model.backbone, batch.taught
        states = answer_states(self.model, batch.prompts, memory)
        sums = {"ce": next_token_cross_entropy(backbone, states, batch.prompts.predicted)}
        if "kl" in self.terms:
            sums["kl"] = torch.zeros_like(sums["ce"])
            if taught is not None:
                chosen = states[taught.rows]
                sums["kl"] = next_token_divergence(backbone, chosen, taught.ids, taught.log_probs)
        return sums

    def stand_in(self) -> CompressionBatch:
        example = AnswerExample("Who?", ("Ada.",), "Ada")
        batch = CompressionCollator(self._plain_encoder)([example])
        assert isinstance(batch, CompressionBatch)
        return batch


def drawn_tokens(batch: PackedBatch, seed: int) -> Tensor:
    """A token of each slot's span: the first in every second draw, each later one half as often.

    So a state that predicts the draws tells the order of the tokens by their logits.

    Args:
        batch: packed for memory form "spans".

    Returns:
        int64 `[M]`, ids.
    """
    rows = batch.span_rows
    assert rows is not None, "the batch was packed without a rate"
    weights = 0.5 ** torch.arange(rows.shape[1]) * (rows >= 0).cpu()
    drawn = torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(seed))
    return batch.ids[rows.gather(1, drawn.to(rows.device))[:, 0]]
