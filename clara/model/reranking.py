"""Order the documents found for a question again, vector by vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clara.errors.checks import as_integer
from clara.memory.padded import PaddedMemory
from clara.model.answers import Found


def check_rerank(rerank: object, top_k: int) -> int:
    """How many documents to find, of which `top_k` are kept.

    Raises:
        TypeError, ValueError: it is no integer, or below `top_k`; names both.
    """
    wanted = as_integer(rerank, "rerank")
    if wanted < top_k:
        raise ValueError(f"rerank must be at least top_k ({top_k}), got {wanted}")
    return wanted


def max_similarity(question: Tensor, document: Tensor) -> Tensor:
    """Each vector of a question compared with the vector of a document that is most like it.

    The mean over the question's vectors of their greatest cosine. It is the late interaction of
    ColBERT (arXiv 2004.12832, equation 3), divided by the number of the question's vectors.

    Args:
        question: `[q, H]`, its memory.
        document: `[m, H]`, without padding.

    Returns:
        0-d in [-1, 1], in float32, or float64 for a question in float64.
    """
    dtype = torch.promote_types(question.dtype, torch.float32)
    asked, read = (
        normalize(each.to(question.device, dtype), dim=-1) for each in (question, document)
    )
    return (asked @ read.T).amax(dim=1).mean().clamp(-1, 1)  # rounding may pass the end


def reranked(questions: PaddedMemory, found: Sequence[Found], k: int) -> list[Found]:
    """The best `k` of the documents found for each question by `max_similarity`, best first.

    Documents of equal similarity stay in the order in which they were found. The similarity
    becomes their score.
    """
    return [_best(asked, each, k) for asked, each in zip(questions.documents(), found, strict=True)]


def _best(question: Tensor, found: Found, k: int) -> Found:
    if not found.memory:
        return found
    scores = torch.stack([max_similarity(question, memory) for memory in found.memory])
    values, order = scores.sort(descending=True, stable=True)
    best = order[:k].tolist()
    documents = [
        replace(found.documents[place], score=score)
        for place, score in zip(best, values.tolist())
        if found.documents  # which are not known where memory alone was ranked
    ]
    return Found([found.memory[place] for place in best], documents)
