"""Models of memory form "spans", and their memory computed by transformers alone."""

import torch

from clara import ClaraConfig
from clara.backbone.adapters import COMPRESSOR

TEXTS = [
    "The mill on the river was built of stone by Ada, and it grinds the grain of four towns.",
    "Salt",
    "The coast is long. It has cliffs.",
    "A bridge leads to the north, where there is a town with a market and two churches.",
]
QUESTIONS = ["Who built the mill?", "What is long?"]


def spans_config(**settings):
    return ClaraConfig(
        **{
            "memory_form": "spans",
            "compression_rate": 4,
            "document_length": 64,
            "lora_rank": 4,
            "lora_alpha": 8,
            "dtype": "float32",
            **settings,
        }
    )


def draw_connectors(model, *, seed=0, std=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.normal_(std=std, generator=generator)
    return model


def embedding(model, ids):
    return model.backbone.get_input_embeddings()(torch.tensor(ids))


@torch.no_grad()
def memory_of_one(model, text, rate, adapter=COMPRESSOR):
    """Memory of a text by transformers alone: no packing, no shared code."""
    own, tokenizer = model.memory_tokens, model.tokenizer
    ids = tokenizer.encode_texts([text])[0].ids
    means = []
    for at in range(0, len(ids), rate):
        span = embedding(model, ids[at : at + rate])
        count = len(span)
        step = min(model.config.span_slope, 1.2 / max(count - 1, 1))
        weights = 1 + step * ((count - 1) / 2 - torch.arange(count, dtype=span.dtype))
        means.append((span * weights[:, None]).sum(0) / count)
    begin = [own.encode[0], *embedding(model, [tokenizer.bos_id])]
    text_rows = [*embedding(model, ids), *embedding(model, [tokenizer.eos_id])]
    slots = [own.memory[0] + mean for mean in means]
    inputs = torch.stack([*begin, *text_rows, *slots])[None]
    body = model.backbone.base_model
    with model.adapters.active(adapter):
        states = body(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -len(slots) :]
    connector = model.connectors[adapter]
    matrix = connector.up if connector.down is None else connector.up @ connector.down
    return torch.stack(means) + states / connector.scale @ matrix.T
