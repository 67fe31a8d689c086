"""Models whose next token a test decides."""

from contextlib import contextmanager

import torch


@contextmanager
def saying(model, ids):
    """Whatever it reads, the model writes `ids` in every row, then the last of them for ever.

    Gives a list that grows by one with each token written.
    """
    steps = []

    def put(module, arguments, logits):
        made = torch.full_like(logits, -100.0)
        made[..., ids[min(len(steps), len(ids) - 1)]] = 100.0
        steps.append(1)
        return made

    with _head(model, put):
        yield steps


@contextmanager
def preferring(model, scores):
    """The model gives these tokens these scores at every step, and all others -100."""

    def put(module, arguments, logits):
        made = torch.full_like(logits, -100.0)
        made[..., list(scores)] = torch.tensor(list(scores.values()), dtype=made.dtype)
        return made

    with _head(model, put):
        yield


@contextmanager
def _head(model, put):
    heads = {model.backbone.get_output_embeddings()}
    if model._merged is not None:
        heads.add(model._merged.backbone.get_output_embeddings())
    handles = [head.register_forward_hook(put) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
