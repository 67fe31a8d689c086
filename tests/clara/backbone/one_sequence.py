"""What transformers' eager attention computes of one sequence: no packing, padding or cache."""

import torch
from transformers import AutoModelForCausalLM

from clara.text.tokenizer import Marker


def eager(model):
    """The backbone of a model whose adapters are untrained, in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(
        model.config.backbone, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def embedded(model, plain, ids, memory):
    """Input embeddings `[1, L, H]` of ids with markers, memory `[slots, H]` in their places."""
    ids = torch.tensor(ids)
    own = model.memory_tokens
    sequence = plain.get_input_embeddings()(ids.clamp_min(0)).detach().clone()
    sequence[ids == Marker.MEMORY] = memory
    for marker, row in ((Marker.SEPARATOR, own.separator), (Marker.ENCODE, own.encode)):
        sequence[ids == marker] = row.detach()
    return sequence[None]


@torch.no_grad()
def states(model, plain, ids, memory):
    """Final states `[L, H]`."""
    inputs = embedded(model, plain, ids, memory)
    return plain.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]


@torch.no_grad()
def loss(model, plain, prompts, memories):
    """Mean cross-entropy of the answers' tokens, from the logits of the whole backbone."""
    total, count = 0.0, 0
    for prompt, memory in zip(prompts, memories, strict=True):
        inputs = embedded(model, plain, prompt.ids, memory.flatten(0, 1))
        logits = plain(inputs_embeds=inputs, use_cache=False).logits[0]
        rows = logits[prompt.answer_start - 1 : -1]
        targets = torch.tensor(prompt.ids[prompt.answer_start :])
        total += torch.nn.functional.cross_entropy(rows, targets, reduction="sum").item()
        count += len(targets)
    return total / count


@torch.no_grad()
def answer(model, plain, prompt, memory, count):
    """Greedy tokens by full forwards, as text."""
    sequence = embedded(model, plain, prompt.ids, memory.flatten(0, 1))
    tokens = []
    for _ in range(count):
        best = plain(inputs_embeds=sequence, use_cache=False).logits[0, -1].argmax()
        tokens.append(best.item())
        if tokens[-1] == model.tokenizer.eos_id:
            break
        sequence = torch.cat([sequence, plain.get_input_embeddings()(best[None])[None]], 1)
    return model.tokenizer.decode(tokens)
