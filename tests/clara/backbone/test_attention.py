"""Packed attention against each document alone, written out in matrix products."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone.attention import CLARA_SDPA, PackedLayout, packed_arguments, packed_attention
from clara.backbone.attention_patterns import FULL, AttentionPattern
from clara.text.packing import Branch, CompressorInput, PackedBatch, pack

LENGTHS = [
    [9],
    [5, 5, 5],
    [17, 17, 9, 9, 9, 6, 5],
    [6, 17, 6, 6, 5],  # of any order, though packing sorts
]
ONE_BY_ONE = {"rtol": 1e-10, "atol": 1e-12}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def layout_of(lengths, n_memory):
    ids = torch.zeros(sum(lengths), dtype=torch.long)
    counts = [n_memory] * len(lengths)
    return PackedLayout.of(PackedBatch(ids, lengths, counts, list(range(len(lengths)))))


def alone(query, key, value, scale, pattern=FULL):
    """Attention of one document, `[heads, n, d]` each, without torch's own attention."""
    repeats = query.shape[0] // key.shape[0]
    key, value = (x.repeat_interleave(repeats, 0) for x in (key, value))
    scores = scale * query @ key.transpose(1, 2)
    n = query.shape[1]
    unseen = torch.ones(n, n, dtype=torch.bool).triu(1)
    for i in range(n):
        first = 0
        if pattern.window is not None:
            first = max(i + 1 - pattern.window, 0)
        if pattern.chunk is not None:
            first = max(i - i % pattern.chunk, first)
        unseen[i, :first] = True
    return (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ value).transpose(0, 1)


def one_by_one(query, key, value, lengths, scale, pattern=FULL):
    parts = [x.split(lengths, 1) for x in (query, key, value)]
    return torch.cat([alone(q, k, v, scale, pattern) for q, k, v in zip(*parts, strict=True)])


def random_inputs(lengths, heads, kv_heads, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return [
        torch.randn(count, total, 8, dtype=dtype, generator=generator).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_documents_attend_to_themselves_only(lengths, heads, kv_heads, dtype):
    inputs = random_inputs(lengths, heads, kv_heads, dtype)
    layout = layout_of(lengths, 4)
    packed = packed_attention(*inputs, layout, scale=0.3, memory_only=False)
    expected = one_by_one(*inputs, lengths, 0.3)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(packed, expected, rtol=tolerance, atol=tolerance)

    weight = torch.randn(packed.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((packed * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("n_memory", [1, 3, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_memory_rows_alone_are_the_same(lengths, n_memory, heads, kv_heads, dtype):
    inputs = random_inputs(lengths, heads, kv_heads, dtype)
    layout = layout_of(lengths, n_memory)
    only = packed_attention(*inputs, layout, scale=0.3, memory_only=True)
    expected = one_by_one(*inputs, lengths, 0.3)
    ends = torch.tensor(lengths).cumsum(0)
    rows = (ends[:, None] + torch.arange(-n_memory, 0)).flatten()
    rest = torch.ones(sum(lengths), dtype=torch.bool)
    rest[rows] = False
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(only[rows], expected[rows], rtol=tolerance, atol=tolerance)
    assert not only[rest].any()

    ours = torch.autograd.grad(only[rows].sin().sum(), inputs)
    theirs = torch.autograd.grad(expected[rows].sin().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("n_memory", [0, 3])
@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(window=1),
        AttentionPattern(window=4),
        AttentionPattern(window=100),
        AttentionPattern(chunk=1),
        AttentionPattern(chunk=4),  # whose bounds lie among the memory rows
        AttentionPattern(chunk=9),
        AttentionPattern(chunk=100),
    ],
)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_windows_and_chunks_count_from_the_start_of_a_document(lengths, pattern, n_memory):
    inputs = random_inputs(lengths, 4, 2, torch.float64)
    layout = layout_of(lengths, n_memory)
    expected = one_by_one(*inputs, lengths, 0.3, pattern)
    tolerance = {"rtol": 1e-11, "atol": 1e-11}
    every = packed_attention(*inputs, layout, scale=0.3, memory_only=False, pattern=pattern)
    torch.testing.assert_close(every, expected, **tolerance)
    if not n_memory:
        return
    only = packed_attention(*inputs, layout, scale=0.3, memory_only=True, pattern=pattern)
    rows = layout.memory_rows
    torch.testing.assert_close(only[rows], expected[rows], **tolerance)
    ours = torch.autograd.grad(only[rows].sin().sum(), inputs)
    theirs = torch.autograd.grad(expected[rows].sin().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# Lengths of sequences, the last of them branches: with a trunk and the rows shared with it.
BRANCHED = [
    ([9, 4], [(0, 6)]),
    ([9, 7, 3, 3, 5, 1], [(0, 8), (0, 8), (1, 2), (0, 8)]),
    ([11, 6, 17, 2, 9], [(2, 13), (0, 10)]),
]
PATTERNS = [
    FULL,
    AttentionPattern(window=1),
    AttentionPattern(window=5),
    AttentionPattern(window=14),
    AttentionPattern(chunk=1),
    AttentionPattern(chunk=4),
    AttentionPattern(chunk=12),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("lengths", "branches"), BRANCHED)
def test_branches_attend_to_what_they_share_and_to_themselves(
    lengths, branches, pattern, heads, kv_heads, dtype
):
    inputs = random_inputs(lengths, heads, kv_heads, dtype)
    ids = torch.zeros(sum(lengths), dtype=torch.long)
    rows = list(range(len(lengths)))
    described = [Branch(*branch) for branch in branches]
    batch = PackedBatch(ids, lengths, [0] * len(lengths), rows, branches=described)
    layout = PackedLayout.of(batch)
    found = packed_attention(*inputs, layout, scale=0.3, memory_only=False, pattern=pattern)

    parts = [x.split(lengths, 1) for x in inputs]
    expected = []
    for row, own in enumerate(lengths):
        trunk, shared = ([(0, 0)] * (len(lengths) - len(branches)) + branches)[row]
        whole = [torch.cat([x[trunk][:, :shared], x[row]], 1) for x in parts]
        expected.append(alone(*whole, 0.3, pattern)[-own:])
    expected = torch.cat(expected)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else ONE_BY_ONE
    torch.testing.assert_close(found, expected, **tolerance)
    ours = torch.autograd.grad(found.sin().sum(), inputs)
    theirs = torch.autograd.grad(expected.sin().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_flash_attention_refuses_branches():
    batch = PackedBatch(
        torch.zeros(12, dtype=torch.long), [7, 5], [0, 0], [0, 1], branches=[Branch(0, 3)]
    )
    backbone = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    with pytest.raises(ValueError, match="'flash_attention_2' cannot compute prompts that share"):
        packed_arguments(batch, backbone, None)
    with pytest.raises(ValueError, match="memory_only must be False for a batch with branches"):
        packed_arguments(batch, backbone, 2)


def test_a_document_that_is_not_a_number_does_not_reach_its_neighbours():
    lengths = [6, 6, 5]
    inputs = [x.detach() for x in random_inputs(lengths, 4, 2, torch.float32)]
    expected = one_by_one(*inputs, lengths, 1.0)
    for x in inputs:
        x[:, 6:12] = torch.nan
    layout = layout_of(lengths, 2)
    for memory_only in (False, True):
        packed = packed_attention(*inputs, layout, scale=1.0, memory_only=memory_only)
        assert packed[10:12].isnan().all()
        for rows in (slice(4, 6), slice(15, 17)):
            torch.testing.assert_close(packed[rows], expected[rows], rtol=1e-5, atol=1e-6)


def test_a_layout_describes_its_batch():
    inputs = [CompressorInput([1] * n, 2, 0, n - 2) for n in (3, 9, 3, 5)]
    (batch,) = pack(inputs, batch_tokens=99, device=torch.device("cpu"))
    layout = PackedLayout.of(batch, 1)
    assert layout.cu_seqlens.tolist() == [0, 9, 14, 17, 20]
    assert layout.memory_rows.tolist() == [7, 8, 12, 13, 15, 16, 18, 19]
    assert (layout.n_memory, layout.memory_only_layer) == (2, 1)
    assert PackedLayout.of(batch).memory_only_layer is None


def test_flash_attention_is_told_the_bounds():
    batch = PackedBatch(torch.zeros(12, dtype=torch.long), [7, 5], [2, 2], [1, 0])
    backbone = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    arguments = packed_arguments(batch, backbone, None)
    assert arguments["cu_seq_lens_q"].tolist() == arguments["cu_seq_lens_k"].tolist() == [0, 7, 12]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["max_length_q"] == arguments["max_length_k"] == 7


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "phi3"])
def models(request, tiny_backbone):
    """The same backbone with transformers' attention and with ours, in float64."""
    return [
        AutoModelForCausalLM.from_pretrained(
            tiny_backbone(request.param), attn_implementation=kind, dtype=torch.float64
        ).eval()
        for kind in ("sdpa", CLARA_SDPA)
    ]


def test_a_model_computes_packed_documents_as_if_alone(models):
    theirs, ours = models
    rng = random.Random(0)
    sequences = [[rng.randrange(6, 600) for _ in range(n)] for n in (23, 4, 11, 11, 7)]
    inputs = [CompressorInput(each, 3, 0, len(each) - 3) for each in sequences]
    (batch,) = pack(inputs, batch_tokens=999, device=torch.device("cpu"))
    with torch.no_grad():
        packed = ours(
            input_ids=batch.ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packed_arguments(batch, ours, None),
        ).logits[0]
        for row, part in zip(batch.rows, packed.split(batch.lengths), strict=True):
            expected = theirs(input_ids=torch.tensor([sequences[row]])).logits[0]
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-9)


def test_without_a_layout_a_model_computes_what_it_always_did(models):
    theirs, ours = models
    ids = torch.randint(6, 600, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :1] = 0
    with torch.no_grad():
        for given in (None, mask):
            expected = theirs(input_ids=ids, attention_mask=given).logits
            found = ours(input_ids=ids, attention_mask=given).logits
            assert torch.equal(found, expected)
        settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
        assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings))


def test_a_backbone_that_drops_the_layout_is_refused(tiny_backbone, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaAttention

    model = Clara.from_backbone(tiny_backbone("llama"), ClaraConfig(document_length=64))
    forward = LlamaAttention.forward

    def without_packed(self, *args, packed=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", without_packed)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot compress packed documents"):
        model.compress(["one document", "another document"])


def test_values_may_have_a_width_of_their_own():
    torch.manual_seed(0)
    query, key, value = torch.randn(4, 7, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 6)
    layout = layout_of([4, 3], 1)
    out = packed_attention(query, key, value, layout, scale=0.3, memory_only=False)
    assert out.shape == (7, 4, 6)
    alone = packed_attention(
        query[:, 4:], key[:, 4:], value[:, 4:], layout_of([3], 1), scale=0.3, memory_only=False
    )
    torch.testing.assert_close(out[4:], alone)
