"""Compression as the public reference implementation computes it.

Written from a description of what it does. The differences from `Clara.compress` are those that
the benchmark is about: every document is padded on the left to the limit, the LoRA layers are
peft's own, the hidden states of all layers are kept, and the output head is computed for every
position. In all else it is no slower than it has to be.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from bench.backbones import plain_from_files
from clara import Clara
from clara.backbone.adapters import COMPRESSOR
from clara.backbone.loading import resolve_backbone


class ReferenceWay:
    """A compressor with the weights of a `Clara`, on a backbone of its own.

    The vocabulary is grown by the memory tokens and markers, whose rows are put into the input
    embeddings, so that a document is a string with special tokens like any other.

    Args:
        backbone: without adapters, on the model's device; None loads it from its files.
    """

    def __init__(
        self, model: Clara, *, batch_size: int = 8, backbone: PreTrainedModel | None = None
    ) -> None:
        config = model.config
        self.batch_size = batch_size
        self.length = config.document_length + 3 + config.memory_tokens
        if backbone is None:
            source = resolve_backbone(str(config.backbone))
            self.tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
            self.backbone = plain_from_files(model)
        else:
            self.tokenizer = copy.deepcopy(model.tokenizer.tokenizer)
            self.tokenizer.padding_side = "left"
            self.backbone = backbone
            rows = backbone.get_input_embeddings()
            rows.weight = nn.Parameter(rows.weight.clone(), False)  # others may share them
        self._grow_vocabulary(model)
        self._attach_compressor(model)
        self.backbone.requires_grad_(False).eval()

    def _grow_vocabulary(self, model: Clara) -> None:
        slots = [f"<MEM{i}>" for i in range(model.config.memory_tokens)]
        self.tokenizer.add_special_tokens({"additional_special_tokens": [*slots, "<ENC>"]})
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._begin = "<ENC>" + (self.tokenizer.bos_token or "")
        self._end = self.tokenizer.eos_token + "".join(slots)
        self._memory_ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(slots))
        enc = self.tokenizer.convert_tokens_to_ids("<ENC>")
        self.backbone.resize_token_embeddings(
            max(len(self.tokenizer), self.backbone.get_input_embeddings().num_embeddings),
            mean_resizing=False,
        )
        embeddings = self.backbone.get_input_embeddings().weight.data
        embeddings[self._memory_ids] = model.memory_tokens.slot_rows(1).to(embeddings)
        embeddings[enc] = model.memory_tokens.encode[0].to(embeddings)

    def _attach_compressor(self, model: Clara) -> None:
        settings = LoraConfig(
            r=model.config.lora_rank,
            lora_alpha=model.config.lora_alpha,
            lora_dropout=model.config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        inject_adapter_in_model(settings, self.backbone, adapter_name=COMPRESSOR)
        # A copy: peft moves what it is given into the model.
        state = {key: value.clone() for key, value in model.adapters.state(COMPRESSOR).items()}
        report = set_peft_model_state_dict(self.backbone, state, adapter_name=COMPRESSOR)
        if report.unexpected_keys:
            raise ValueError(f"the backbone has no place for {report.unexpected_keys[0]!r}")

    @torch.no_grad()
    def compress(self, documents: Sequence[str]) -> Tensor:
        """Memory `[N, m, H]` of texts within the document limit."""
        starts = range(0, len(documents), self.batch_size)
        return torch.cat([self._batch(documents[i : i + self.batch_size]) for i in starts])

    def _batch(self, documents: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(
            [self._begin + text + self._end for text in documents],
            add_special_tokens=False,
            padding="max_length",
            max_length=self.length,
            return_tensors="pt",
        ).to(self.backbone.device)
        outputs = self.backbone(**inputs, output_hidden_states=True, use_cache=False)
        slots = torch.isin(inputs["input_ids"], self._memory_ids.to(self.backbone.device))
        # The last of the hidden states is the one after the final normalisation.
        memory: Tensor = outputs.hidden_states[-1][slots]
        return memory.unflatten(0, (len(documents), -1))
