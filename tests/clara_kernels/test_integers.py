"""Whatever can be an index is taken for an int in all public functions, and bools never are."""

import numpy as np
import pytest
import torch

from clara_kernels import (
    Corpus,
    MeanPooled,
    RandomProjection,
    TwoStageSearch,
    cosine_rerank,
    cosine_topk,
    dequantize_memory,
    memory_alignment_loss,
    memory_attention,
    merge_topk,
    quantize_memory,
    rank_and_select,
    select_topk,
    sparsemax,
    streamed_topk,
)

ROWS = torch.randn(8, 6)
CORPUS = Corpus(ROWS)
BOUNDS = torch.tensor([0, 4, 8], dtype=torch.int32)
MEMORY = torch.randn(2, 4, 6)
SCORES = torch.rand(2, 4)
HEADS = torch.randn(8, 1, 6)
CODES, SCALES = quantize_memory(ROWS, 4)


def gumbel(seed):
    options = {"temperature": 1.0, "noise": "gumbel", "seed": seed}
    return select_topk(SCORES, MEMORY, 2, **options)[0]


CALLS = {
    "cosine_topk k": (lambda n: cosine_topk(ROWS, ROWS, n)[1], 2),
    "cosine_rerank k": (lambda n: cosine_rerank(ROWS[:2], ROWS, n, offsets=BOUNDS)[1], 2),
    "streamed_topk k": (lambda n: streamed_topk(ROWS, CORPUS, n)[1], 2),
    "streamed_topk chunk_bytes": (lambda n: streamed_topk(ROWS, CORPUS, 2, chunk_bytes=n)[1], 50),
    "merge_topk k": (lambda n: merge_topk([SCORES], [torch.arange(8).view(2, 4)], n)[1], 3),
    "Corpus.search k": (lambda n: CORPUS.search(ROWS, n)[1], 2),
    "select_topk k": (lambda n: select_topk(SCORES, MEMORY, n, temperature=1.0)[1], 2),
    "select_topk seed": (gumbel, 7),
    "rank_and_select k": (lambda n: rank_and_select(ROWS[:2], MEMORY, n, temperature=1.0)[1], 2),
    "memory_attention n_memory": (lambda n: memory_attention(HEADS, HEADS, HEADS, BOUNDS, n), 2),
    "memory_attention window": (
        lambda n: memory_attention(HEADS, HEADS, HEADS, BOUNDS, 1, window=n),
        2,
    ),
    "memory_alignment_loss n_memory": (lambda n: memory_alignment_loss(ROWS, BOUNDS, n), 2),
    "quantize_memory bits": (lambda n: quantize_memory(ROWS, n)[0], 4),
    "dequantize_memory width": (lambda n: dequantize_memory(CODES, SCALES, width=n), 6),
    "sparsemax dim": (lambda n: sparsemax(SCORES, n), 0),
    "MeanPooled memory_tokens": (lambda n: MeanPooled(CORPUS, n).codes.rows, 2),
    "RandomProjection width": (lambda n: RandomProjection(CORPUS, n).codes.rows, 4),
    "RandomProjection seed": (lambda n: RandomProjection(CORPUS, 4, seed=n).codes.rows, 3),
    "candidates count": (lambda n: MeanPooled(CORPUS, 2).candidates(ROWS, n), 3),
    "TwoStageSearch k": (
        lambda n: TwoStageSearch(MeanPooled(CORPUS, 2), CORPUS).search(ROWS, n)[1],
        2,
    ),
    "TwoStageSearch oversampling": (
        lambda n: TwoStageSearch(MeanPooled(CORPUS, 2), CORPUS, oversampling=n).search(ROWS, 2)[1],
        3,
    ),
}


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
@pytest.mark.parametrize("name", CALLS)
def test_an_index_is_an_int(name, kind):
    call, number = CALLS[name]
    if kind is torch.tensor and name.endswith(("seed", "n_memory", "oversampling")):
        pytest.skip("tensors have a meaning of their own there")
    assert torch.equal(call(kind(number)), call(number))


@pytest.mark.parametrize("wrong", [True, np.bool_(True), 1.0, np.float64(1), "1"])
@pytest.mark.parametrize("name", CALLS)
def test_a_bool_or_another_type_is_not(name, wrong):
    if name == "TwoStageSearch oversampling" and isinstance(wrong, float):
        return  # a number that need not be whole
    call, _ = CALLS[name]
    argument = name.split()[-1]
    with pytest.raises((TypeError, ValueError), match=f"{argument} must be ") as caught:
        call(wrong)
    assert "\n" not in str(caught.value)


def test_files_are_mapped_with_numpy_integers(tmp_path):
    file = tmp_path / "rows.bin"
    file.write_bytes(bytes(8) + ROWS.numpy().tobytes())
    made = Corpus.from_file(file, torch.float32, np.int64(6), offset=np.int32(8), count=np.int64(5))
    assert torch.equal(made.rows, ROWS[:5])
