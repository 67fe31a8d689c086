"""A backbone that was trained along with the adapters and is saved with them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from clara.backbone.plain import empty_plain_model
from clara.backbone.sharding import fill, whole
from clara.errors import SavedModelError
from clara.terminal.loading_bars import bars_on_a_terminal_only

FOLDER = "backbone"
"""In the model's folder; as `ClaraConfig.backbone`, it means the backbone there."""


def plain_state(backbone: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """The backbone's weights under their own names, without the LoRA layers around them."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in backbone.state_dict().items()
        if ".lora_" not in name
    }


def save(
    backbone: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write the backbone and its tokenizer as any causal language model is written.

    Raises:
        ValueError: the backbone is quantized: its weights as they were trained are not there.
    """
    if getattr(backbone, "is_quantized", False):
        raise ValueError(
            "a model whose backbone was trained cannot be saved while that is quantized; load it "
            "without quantization"
        )
    plain = empty_plain_model(backbone)
    state = {name: whole(value) for name, value in plain_state(backbone).items()}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = backbone.generation_config
    with bars_on_a_terminal_only():
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(backbone: transformers.PreTrainedModel, folder: Path) -> None:
    """Fill the backbone with weights that `save` wrote.

    Raises:
        SavedModelError: they cannot be read or are of another backbone.
    """
    own = plain_state(backbone)
    try:
        with bars_on_a_terminal_only():
            plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise SavedModelError(f"{folder}: cannot read the backbone: {error}") from error
    saved = plain.state_dict()
    if saved.keys() != own.keys() or any(own[name].shape != saved[name].shape for name in own):
        raise SavedModelError(f"{folder}: holds another backbone")
    for name, value in own.items():
        fill(value, saved[name])
