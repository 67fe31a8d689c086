"""Random documents for memory attention, and how their result is compared."""

import torch
from comparison import assert_close_to, offsets_of
from torch.nn.functional import scaled_dot_product_attention

from clara_kernels import memory_attention


def document_by_document(q, k, v, lengths, counts, memory_only, scale, window=None):
    """PyTorch's attention with a mask, one document at a time."""
    outputs, q_start, start = [], 0, 0
    for length, memory in zip(lengths, counts, strict=True):
        rows = memory if memory_only else length
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        if window is not None:
            mask = mask.triu(1 - window)
        mask = mask[-rows:]
        parts = q[q_start : q_start + rows], k[start : start + length], v[start : start + length]
        query, key, value = (x.transpose(0, 1)[None] for x in parts)
        out = scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
        q_start, start = q_start + rows, start + length
    return torch.cat(outputs)


def random_case(lengths, counts, heads, kv_heads, width, dtype, memory_only, device="cpu"):
    """q, k, v and a gradient of the result."""
    total = sum(lengths)
    q_rows = sum(counts) if memory_only else total
    shapes = ((q_rows, heads), (total, kv_heads), (total, kv_heads), (q_rows, heads))
    return [torch.randn(*shape, width, device=device).to(dtype) for shape in shapes]


def bfloat16_case(lengths, counts, heads, kv_heads, width, memory_only=False):
    """Gradient, q, k and v in bfloat16, and the documents."""
    sizes = heads, kv_heads, width
    *inputs, grad = random_case(lengths, counts, *sizes, torch.bfloat16, memory_only)
    numbers = torch.tensor(counts, dtype=torch.int32)
    return grad, *inputs, offsets_of(lengths), numbers, memory_only


def with_gradients(function, tensors, grad):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def check(
    lengths,
    counts,
    heads,
    kv_heads,
    width,
    dtype,
    memory_only,
    scale=None,
    device="cpu",
    window=None,
):
    """Result and gradients against float64, allowed twice PyTorch's own error."""
    uniform = isinstance(counts, int)
    every = [counts] * len(lengths) if uniform else counts
    n_memory = counts if uniform else torch.tensor(counts, dtype=torch.int32, device=device)
    *tensors, grad = random_case(lengths, every, heads, kv_heads, width, dtype, memory_only, device)
    bounds = offsets_of(lengths, device)

    def ours(*x):
        return memory_attention(
            *x, bounds, n_memory, memory_only=memory_only, scale=scale, window=window
        )

    def theirs(*x):
        return document_by_document(*x, lengths, every, memory_only, scale, window)

    actual = with_gradients(ours, tensors, grad)
    plain = with_gradients(theirs, tensors, grad)
    exact = with_gradients(theirs, [x.double() for x in tensors], grad.double())
    for one, wide, other in zip(actual, exact, plain, strict=True):
        assert one.dtype == dtype
        # ds = p (dp - D) cancels: dp and D are dot products of `width` normal numbers.
        assert_close_to(one, wide, other, scale=width**0.5)
