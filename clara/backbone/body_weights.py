"""Find the stored tensors that a backbone's final states depend on, and their model names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
import transformers

_STALE = ("rotary_emb.inv_freq", "masked_bias")
"""Ends of names of buffers in old checkpoints that models compute anew."""


def body_names(folder: Path, stored: Collection[str]) -> dict[str, str]:
    """Map the name of each weight of the model's body to the name under which it is stored.

    The body is the model without its output head. Files may leave out the body's own name in
    front of its weights ("model."), and may hold a tied weight under any of its names.

    Stored tensors that the model has no name for are left out when everything that the model
    needs is there without them. Otherwise transformers makes some weights from tensors of other
    names (experts stored one by one, for example), and the weights of a quantized checkpoint come
    with scales: they then count under their stored names.

    Args:
        folder: with `config.json`.
        stored: names of the tensors in the folder's weight files.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()  # some versions of transformers leave it to loading
    aliases = _aliases(model)
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    head = _head_names(model)
    found: dict[str, str] = {}
    known: set[str] = set()
    for name, others in aliases.items():
        spellings = [s for other in others for s in (other, other.removeprefix(prefix))]
        known.update(spellings)
        if name in head or not name.startswith(prefix):
            continue
        there = next((s for s in spellings if s in stored), None)
        if there is not None:
            found[name] = there
    parameters = {id(p): n for n, p in reversed([*model.named_parameters(remove_duplicate=False)])}
    needed = {n for n in parameters.values() if n.startswith(prefix) and n not in head}
    if needed - found.keys() or getattr(config, "quantization_config", None) is not None:
        for there in stored:
            if there not in known and not there.endswith(_STALE):
                found[there] = there
    return found


def _aliases(model: transformers.PreTrainedModel) -> dict[str, list[str]]:
    """All names of each weight and saved buffer, by the first of them."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return {each[0]: each for each in names.values()}


def _head_names(model: transformers.PreTrainedModel) -> set[str]:
    """Names of the output head's own weights; a tied one bears the name of the embeddings."""
    head = model.get_output_embeddings()
    if head is None or head is model.get_input_embeddings():
        return set()
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    own = {id(p) for p in head.parameters()} - embeddings
    return {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in own}
