"""What the operators are measured against computes what they compute."""

import pytest
import torch

from bench.baselines.alignment import masked_mean_loss
from bench.baselines.attention import VarlenAttention, pad, padded_attention, unpad
from bench.baselines.cosine import empty_scores, normalise_and_bmm
from bench.baselines.quantization import (
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_rows,
)
from bench.baselines.selection import straight_through_loop
from bench.baselines.sparsemax import sorted_sparsemax
from clara_kernels import (
    cosine_scores,
    dequantize_memory,
    memory_alignment_loss,
    quantize_memory,
    select_topk,
    sparsemax,
)


def by_documents(q, k, v, offsets_q, offsets_k):
    """Causal attention of each document alone; the last query sees the last key."""
    groups = q.shape[1] // k.shape[1]
    outputs = []
    for (q_start, q_end), (start, end) in zip(
        offsets_q.unfold(0, 2, 1).tolist(), offsets_k.unfold(0, 2, 1).tolist(), strict=True
    ):
        query = q[q_start:q_end].transpose(0, 1)
        key, value = (
            each[start:end].repeat_interleave(groups, dim=1).transpose(0, 1) for each in (k, v)
        )
        weights = query @ key.mT * q.shape[2] ** -0.5
        first_seen = (end - start) - (q_end - q_start)
        allowed = torch.ones_like(weights[0], dtype=torch.bool).tril(first_seen)
        weights = weights.masked_fill(~allowed, -torch.inf).softmax(-1)
        outputs.append((weights @ value).transpose(0, 1))
    return torch.cat(outputs)


def in_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    return by_documents(query, key, value, cu_seq_q, cu_seq_k)


def in_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    assert window_size == (-1, 0)
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("heads")
    return by_documents(query, key, value, cu_seq_q, cu_seq_k)


def in_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    window_size=(-1, -1),
    enable_gqa=False,
):
    assert enable_gqa
    assert window_size == (-1, 0)
    return by_documents(query, key, value, cu_seq_q, cu_seq_k)


@pytest.mark.parametrize(
    ("function", "kept_heads"), [(in_2_10, 2), (in_2_11, 4), (in_2_13, 2)], ids=["10", "11", "13"]
)
def test_varlen_attention_is_called_as_each_release_takes_it(function, kept_heads):
    attention = VarlenAttention(function)
    q, k, v = torch.randn(12, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    offsets = torch.tensor([0, 5, 12], dtype=torch.int32)
    keys, values = attention.keys(k, 4), attention.keys(v, 4)
    assert keys.shape[1] == kept_heads
    found = attention(q, keys, values, offsets, offsets, 7, 7)
    torch.testing.assert_close(found, by_documents(q, k, v, offsets, offsets))
    same = torch.randn(12, 4, 8)
    assert attention.keys(same, 4) is same


def test_installed_varlen_attention_is_understood():
    options = VarlenAttention()._options
    assert options.get("is_causal") or options["window_size"] == (-1, 0)


def test_padded_attention():
    lengths = [3, 9, 1]
    offsets = torch.tensor([0, 3, 12, 13], dtype=torch.int32)
    q, k, v = torch.randn(13, 4, 8), torch.randn(13, 2, 8), torch.randn(13, 2, 8)
    padded = [pad(each, lengths, 11) for each in (q, k, v)]
    assert torch.equal(unpad(padded[0], lengths), q)
    found = unpad(padded_attention(*padded), lengths)
    torch.testing.assert_close(found, by_documents(q, k, v, offsets, offsets))


def test_sorted_sparsemax():
    x, grad = torch.randn(5, 40), torch.randn(5, 40)
    found = []
    for function in (sorted_sparsemax, sparsemax):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, grad)))
    torch.testing.assert_close(*found)


def test_cosines():
    queries, documents = torch.randn(3, 40), torch.randn(3, 5, 40)
    found = normalise_and_bmm(queries, documents)
    torch.testing.assert_close(found, cosine_scores(queries, documents))
    assert empty_scores(queries, documents).shape == found.shape


@pytest.mark.parametrize("mask", ["reference", "exact"])
def test_straight_through_loop(mask):
    memory, grad = torch.randn(3, 6, 2, 10), torch.randn(3, 4, 2, 10)
    scores = torch.randn(3, 6) * 0.1
    found = []
    for function in (straight_through_loop, select_topk):
        leaf = scores.clone().requires_grad_()
        selected, indices = function(leaf, memory, 4, temperature=0.05, mask=mask)
        found.append((selected.detach(), indices, *torch.autograd.grad(selected, leaf, grad)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_masked_means():
    lengths, memory = [7, 4, 9], 2
    hidden = torch.randn(20, 6)
    offsets = torch.tensor([0, 7, 11, 20], dtype=torch.int32)
    ends = torch.tensor(lengths)[:, None]
    present = torch.arange(9) < ends
    is_token = torch.arange(9) < ends - memory
    padded = torch.zeros(3, 9, 6)
    padded[present] = hidden
    found = masked_mean_loss(padded, is_token.float(), (present & ~is_token).float())
    torch.testing.assert_close(found, memory_alignment_loss(hidden, offsets, memory))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantization(dtype):
    memory = torch.randn(4, 192).to(dtype)
    for bits, quantize, dequantize in (
        (8, quantize_rows, dequantize_rows),
        (4, quantize_groups, dequantize_groups),
    ):
        codes, scales = quantize_memory(memory, bits)
        their_codes, their_scales = quantize(memory)
        assert torch.equal(codes, their_codes)
        assert torch.equal(scales, their_scales)
        values = dequantize_memory(codes, scales, dtype=dtype)
        assert torch.equal(values, dequantize(codes, scales, dtype))
