"""Tiny backbones in files, whose weights can be changed."""

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def written(folder, family="Llama", **settings):
    """A tiny random backbone of a family, with values that every format of floats holds."""
    sizes = {
        "vocab_size": 100,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if family == "GPT2":
        sizes = {"vocab_size": 100, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **ids, **settings})
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((16 * torch.randn(p.shape, generator=generator)).round() / 16)
    model.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    """Give the weights of a folder to a function and write what it returns."""
    file = folder / "model.safetensors"
    weights = {name: value.clone() for name, value in change(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})
