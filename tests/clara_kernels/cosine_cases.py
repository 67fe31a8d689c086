"""Random inputs of `cosine_scores`, and how its results are compared."""

import torch
from comparison import assert_close_to, offsets_of

from clara_kernels import cosine_scores
from clara_kernels.cosine_scores.reference import cosine_scores_reference, question_of_rows

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
NEEDS = [(True, True), (True, False), (False, True)]
LENGTHS = [2, 0, 1, 5, 0]


def randoms(lengths, width, queries=torch.float32, documents=torch.float32, device="cpu"):
    """Queries and documents, dense for one length of all; cosines between 0.1 and 0.9."""
    query = torch.randn(len(lengths), width, device=device)
    near = query.repeat_interleave(torch.tensor(lengths, device=device), 0)
    document = (near + torch.randn_like(near)) * torch.rand(len(near), 1, device=device)
    if len(set(lengths)) == 1:
        shaped = document.view(len(lengths), lengths[0], width)
        return query.to(queries), shaped.to(documents), None
    return query.to(queries), document.to(documents), offsets_of(lengths, device)


def with_gradients(function, queries, documents, offsets, grad, needs=(True, True)):
    inputs = zip((queries, documents), needs, strict=True)
    leaves = [each.detach().requires_grad_(needed) for each, needed in inputs]
    scores = function(*leaves, offsets)
    scores.backward(grad)
    return scores.detach(), *(leaf.grad for leaf in leaves)


def terms(grad, queries, documents, offsets):
    """The largest terms that the gradients are sums of; of nearly equal vectors little is left."""
    queries, documents = queries.double(), documents.double().flatten(0, -2)
    norms = [each.norm(dim=-1) for each in (queries, documents)]
    lengths = [torch.where(norm == 0, torch.inf, norm) for norm in norms]
    units = [x / length[:, None] for x, length in zip((queries, documents), lengths, strict=True)]
    largest = max(unit.abs().max().item() if unit.numel() else 0.0 for unit in units)
    if offsets is None:
        offsets = offsets_of([grad.shape[1]] * len(queries), queries.device)
    question = question_of_rows(queries, documents, offsets)
    grad = grad.flatten().double().abs()
    sums = torch.zeros_like(norms[0]).index_add(0, question, grad)
    found = sums / lengths[0], grad / lengths[1]
    return [largest * each.max().item() if each.numel() else 0.0 for each in found]


def check(queries, documents, offsets, needs=(True, True)):
    """Scores and gradients against float64, allowed twice the error of plain PyTorch."""
    grad = torch.randn(documents.shape[:-1], device=queries.device)
    reference = cosine_scores_reference
    exact = with_gradients(reference, queries.double(), documents.double(), offsets, grad.double())
    plain = with_gradients(reference, queries, documents, offsets, grad)
    actual = with_gradients(cosine_scores, queries, documents, offsets, grad, needs)
    dtypes = (torch.float32, queries.dtype, documents.dtype)
    scales = (1.0, *terms(grad, queries, documents, offsets))
    for found, *expected, dtype, scale, needed in zip(
        actual, exact, plain, dtypes, scales, (True, *needs), strict=True
    ):
        assert (found is not None) == needed
        if needed:
            assert found.dtype == dtype
            assert_close_to(found, *expected, scale=scale)
