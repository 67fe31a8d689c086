"""Training steps as the public reference implementation computes them.

Written from a description of what it does. The differences from our steps are those that the
benchmark is about: every document and question is padded on the left to the limit, candidates are
encoded again at every step though their compressor is frozen, the states of all layers are kept,
the output head is computed for every position, documents are selected by a one-hot einsum over
the whole memories in float32, and prompts are padded to the longest and filled in a loop. Adapters
are switched without any cost, tokens are made beforehand, and in all else it is no slower than it
has to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from bench.backbones import left_padded, plain_from_files
from clara import Clara
from clara.backbone.adapters import ADAPTERS, COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.text.packing import PackedBatch
from clara.text.tokenizer import Marker

_TAKEN = -1e30
_TOGETHER = 8  # candidates in one forward


class ReferenceTraining(nn.Module):
    """The weights of a `Clara` on a backbone whose vocabulary was grown by our rows.

    Args:
        trained: adapters that train.
        trains_rows: whether the rows of memory tokens and markers train.
        backbone: without adapters, on the model's device; None loads it from its files.
    """

    def __init__(
        self,
        model: Clara,
        trained: Sequence[str],
        *,
        trains_rows: bool,
        backbone: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        config = model.config
        self.slots = config.memory_tokens
        self.limit = config.document_length + 3 + config.memory_tokens
        self.pad = model.tokenizer.eos_id
        self.backbone = plain_from_files(model) if backbone is None else backbone
        self.words = self.backbone.get_input_embeddings().num_embeddings
        own = model.memory_tokens
        rows = torch.cat([own.slot_rows(1), own.encode, own.separator]).detach()
        self.rows = nn.Parameter(rows.clone(), requires_grad=trains_rows)
        self.backbone.requires_grad_(False)
        settings = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        for name in ADAPTERS:
            inject_adapter_in_model(settings, self.backbone, adapter_name=name)
            state = {key: value.clone() for key, value in model.adapters.state(name).items()}
            set_peft_model_state_dict(self.backbone, state, adapter_name=name)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(any(f".{adapter}." in name for adapter in trained))
        self._layers = [m for m in self.backbone.modules() if isinstance(m, BaseTunerLayer)]

    def gradients(self, adapter: str) -> dict[str, Tensor]:
        """By the names that `Clara.adapters.parameters` has."""
        return {
            name.replace(f".{adapter}.", "."): parameter.grad
            for name, parameter in self.backbone.named_parameters()
            if f".{adapter}." in name and parameter.grad is not None
        }

    def encode(self, batch: PackedBatch, adapter: str) -> tuple[Tensor, Tensor]:
        """States `[N, L, H]` of texts in the caller's order, and their mask `[N, L]`."""
        return self._states(self._sequences(batch), adapter)

    def _sequences(self, batch: PackedBatch) -> list[list[int]]:
        """Tokens of each text in the caller's order."""
        sequences: list[list[int]] = [[]] * len(batch.rows)
        start = 0
        for row, length in zip(batch.rows, batch.lengths, strict=True):
            sequences[row] = self._numbered(batch.ids[start : start + length].tolist())
            start += length
        return sequences

    def _states(self, sequences: Sequence[Sequence[int]], adapter: str) -> tuple[Tensor, Tensor]:
        ids, mask = self._padded(sequences, self.limit)
        self._activate(adapter)
        outputs = self.backbone(
            inputs_embeds=self._embedded(ids),
            attention_mask=mask,
            position_ids=_positions(mask),
            output_hidden_states=True,
            use_cache=False,
        )
        return outputs.hidden_states[-1], mask

    def memory(self, states: Tensor) -> Tensor:
        return states[:, -self.slots :]

    def alignment(self, states: Tensor, mask: Tensor) -> Tensor:
        tokens = mask[:, : -self.slots, None].to(states)
        mean = (states[:, : -self.slots] * tokens).sum(1) / tokens.sum(1)
        return (mean - self.memory(states).mean(1)).square().mean()

    def answer_loss(self, prompts: PackedBatch, targets: Tensor, memory: Tensor) -> Tensor:
        """Args: memory: `[slots of all prompts, H]`."""
        sequences, labels, wanted, start = [], [], set(targets.tolist()), 0
        for length in prompts.lengths:
            sequence = prompts.ids[start : start + length].tolist()
            sequences.append(sequence)
            places = range(start, start + length)
            labels.append([t if p in wanted else -100 for p, t in zip(places, sequence)])
            start += length
        ids, mask = self._padded([self._numbered(s) for s in sequences], max(prompts.lengths))
        label, _ = self._padded(labels, max(prompts.lengths))
        label = label.masked_fill(mask == 0, -100)
        embeddings = self._embedded(ids).clone()
        is_slot, used = (ids >= self.words) & (ids < self.words + self.slots), 0
        for row in range(len(sequences)):  # in the reference's manner
            places = is_slot[row].nonzero()[:, 0]
            embeddings[row, places] = memory[used : used + len(places)].to(embeddings)
            used += len(places)
        self._activate(GENERATOR)
        logits = self.backbone(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        ).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), label[:, 1:].flatten())

    def pretraining_loss(self, batch: object, alignment_weight: float) -> Tensor:
        """The loss of a `CompressionBatch`."""
        states, mask = self.encode(batch.documents.batch, COMPRESSOR)  # type: ignore[attr-defined]
        memory = self.memory(states).flatten(0, 1)
        prompts = batch.prompts  # type: ignore[attr-defined]
        loss = self.answer_loss(prompts.batch, prompts.targets, memory)
        return loss + alignment_weight * self.alignment(states, mask)

    def end_to_end_loss(
        self, batch: object, documents: PackedBatch, k: int, temperature: float
    ) -> Tensor:
        """The loss of a `RankingBatch` whose questions all have the same number of candidates.

        Args:
            documents: the candidates of one question after another's.
        """
        questions, prompts = batch.questions, batch.prompts  # type: ignore[attr-defined]
        with torch.no_grad():
            sequences = self._sequences(documents)
            starts = range(0, len(sequences), _TOGETHER)
            parts = [
                self.memory(self._states(sequences[i : i + _TOGETHER], COMPRESSOR)[0])
                for i in starts
            ]
            memory = torch.cat(parts).float().unflatten(0, (len(questions), -1))
        query = self.memory(self.encode(questions.batch, QUERY_REASONER)[0]).float()
        scores = torch.einsum(
            "bd,bnd->bn", normalize(query.flatten(1), dim=1), normalize(memory.flatten(2), dim=2)
        )
        chosen = self._selection(scores / temperature, k)
        selected = torch.einsum("bkn,bnmh->bkmh", chosen, memory)
        return self.answer_loss(prompts.batch, prompts.targets, selected.flatten(0, 2))

    @staticmethod
    def _selection(scores: Tensor, k: int) -> Tensor:
        """Straight-through one-hot rows `[B, k, N]`."""
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        taken = torch.zeros_like(scores, dtype=torch.bool)
        rows = []
        for slot in range(k):
            soft = scores.masked_fill(taken, _TAKEN).softmax(1)
            hard = torch.zeros_like(soft).scatter(1, order[:, slot, None], 1.0)
            rows.append(hard + soft - soft.detach())
            taken = taken | (hard > 0)
        return torch.stack(rows, 1)

    def _activate(self, adapter: str) -> None:
        for layer in self._layers:
            layer._active_adapter = [adapter]

    def _numbered(self, ids: Sequence[int]) -> list[int]:
        """Tokens with our markers as entries of the grown vocabulary."""
        found, slot = [], 0
        for token in ids:
            if token == Marker.MEMORY:
                token, slot = self.words + slot % self.slots, slot + 1
            elif token == Marker.ENCODE:
                token = self.words + self.slots
            elif token == Marker.SEPARATOR:
                token = self.words + self.slots + 1
            found.append(token)
        return found

    def _padded(self, sequences: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        return left_padded(sequences, width, self.pad, self.rows.device)

    def _embedded(self, ids: Tensor) -> Tensor:
        vocabulary = self.backbone.get_input_embeddings()(ids.clamp(0, self.words - 1))
        own = self.rows[(ids - self.words).clamp(0)].to(vocabulary)
        return torch.where((ids >= self.words)[..., None], own, vocabulary)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(0)
