"""Plain-text training: the same questions with the documents' text in the prompt.

It is the baseline for memory, and a warm-up for backbones that do not know a task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clara.backbone.adapters import GENERATOR
from clara.data.examples import AnswerExample
from clara.model.clara import Clara
from clara.model.encoding import answer_cross_entropy
from clara.training.batches import PromptBatch
from clara.training.collators import TextCollator
from clara.training.objectives import Objective, Term


class TextObjective(Objective):
    """Cross-entropy of answers given texts.

    Trains the backbone itself with `train_backbone`, as it is without any adapter, else the
    generator.
    """

    def __init__(self, model: Clara, *, train_backbone: bool = False) -> None:
        self.adapters = () if train_backbone else (GENERATOR,)
        super().__init__(model, train_backbone=train_backbone)
        self._adapter = None if train_backbone else GENERATOR
        self.terms = {"ce": Term("tokens")}

    def sums(self, batch: PromptBatch) -> dict[str, Tensor]:
        model = self.model
        none = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
        return {"ce": answer_cross_entropy(model, batch.prompts, none, self._adapter)}

    def stand_in(self) -> PromptBatch:
        batch = TextCollator(self._plain_encoder)([AnswerExample("Who?", ("Ada.",), "Ada")])
        assert isinstance(batch, PromptBatch)
        return batch
