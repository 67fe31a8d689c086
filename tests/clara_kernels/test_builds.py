"""What launchers pick is what is compiled ahead of time, no more and no less."""

from importlib import import_module
from itertools import product

import pytest
import torch
from comparison import built, launches

from clara_kernels.inspect import SHARED_LIMITS
from clara_kernels.select_topk.options import Options

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# One architecture is enough for a quick look; all of them take minutes to compile for.
ARCHITECTURES = pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=[pytest.mark.slow] * (each != 90)) for each in SHARED_LIMITS],
)


def kernels(operator):
    return import_module(f"clara_kernels.{operator}.triton")


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def int32(*shape):
    return empty(*shape, dtype=torch.int32)


@ARCHITECTURES
def test_sparsemax(architecture):
    module = kernels("sparsemax")
    with launches("sparsemax", architecture) as launched:
        for dtype, columns in product(FLOATS, [2**i + j for i in range(18) for j in (0, 3)]):
            x = empty(2, columns, dtype=dtype)
            _, bounds = module.forward(x)
            module.backward(x, x, bounds)
    assert launched == built("sparsemax", architecture)


@ARCHITECTURES
def test_memory_attention(architecture):
    module = kernels("memory_attention")
    with launches("memory_attention", architecture) as launched:
        for dtype, (head_dim, group) in product(FLOATS, module._HEADS):
            for documents, length, m in product(
                (1, 300), (20, 3000), (1, 2, 4, 8, 16, 32, 64, 128)
            ):
                k = empty(documents * length, 2, head_dim, dtype=dtype)
                for memory_only, counts in product((False, True), (int32(), int32(documents))):
                    rows = documents * (min(m, length) if memory_only else length)
                    q = empty(rows, 2 * group, head_dim, dtype=dtype)
                    listed = (head_dim, group) in module._WINDOWED_HEADS
                    listed &= dtype in module._WINDOWED_DTYPES
                    windows = (0, 5, 2500) if listed else (0,)
                    for window in windows:
                        arguments = (int32(documents + 1), counts, memory_only, 0.1, window)
                        out, lse = module.forward(q, k, k, *arguments)
                        module.backward(out, q, k, k, out, lse, *arguments)
    assert launched == built("memory_attention", architecture)


@ARCHITECTURES
def test_cosine_scores(architecture):
    module = kernels("cosine_scores")
    sizes = product((1, 8, 64, 600), (0, 1, 3, 20, 300), (1, 33, 64, 1040, 32_768), FLOATS, FLOATS)
    with launches("cosine_scores", architecture) as launched:
        for (batch, count, width, dtype, other), ragged in product(sizes, (False, True)):
            shape = (batch * count, width) if ragged else (batch, count, width)
            offsets = int32(batch + 1) if ragged else None
            inputs = (empty(batch, width, dtype=other), empty(*shape, dtype=dtype), offsets)
            outputs = module.forward(*inputs)
            for needs in ((True, False), (False, True), (True, True)):
                module.backward(outputs[0], *inputs, *outputs, *needs)
    assert launched == built("cosine_scores", architecture)


@ARCHITECTURES
def test_memory_alignment_loss(architecture):
    module = kernels("memory_alignment_loss")
    sizes = ((3, 1), (70, 1), (70_000, 2), (150_000, 2), (600_000, 2), (9000, 600))
    with launches("memory_alignment_loss", architecture) as launched:
        for dtype, width, (rows, documents) in product(FLOATS, (1, 16, 100, 576), sizes):
            offsets = int32(documents + 1)
            for counts in (int32(), int32(documents)):
                hidden = empty(rows, width, dtype=dtype)
                _, difference = module.forward(hidden, offsets, counts, True)
                module.backward(empty(), difference, offsets, counts, rows, dtype, True)
    assert launched == built("memory_alignment_loss", architecture)


@ARCHITECTURES
def test_select_topk(architecture):
    module = kernels("select_topk")
    sizes = product(FLOATS, (1, 3, 700), (0, 1, 20, 300, 3000), (1, 5, 40), (0, 7, 64, 32_768))
    kinds = product((False, True), (None, empty(dtype=torch.int64)), (False, True))
    with launches("select_topk", architecture) as launched:
        for (dtype, batch, count, k, width), (ragged, seed, sparse) in product(sizes, list(kinds)):
            shape, offsets = (batch, count), None
            if ragged:
                shape, offsets = (batch * count,), int32(batch + 1)
            scores, memory = empty(*shape), empty(batch * count, width, dtype=dtype)
            options = Options(empty(), seed, sparse, False)
            selected, indices = module.forward(scores, memory, offsets, k, options)
            rest = (scores, indices, offsets, options)
            module.backward(selected, scores, memory, *rest[1:], True, True)
            module.probabilities_backward(module.probabilities(*rest), *rest)
    assert launched == built("select_topk", architecture)


@ARCHITECTURES
def test_quantization(architecture):
    module = kernels("quantization")
    widths = [2**n + more for n in range(5, 17) for more in (0, 1)]
    with launches("quantization", architecture) as launched:
        for width, bits, dtype in product(widths, (8, 4), FLOATS):
            codes, scales = module.quantize(empty(40_000, width, dtype=dtype), bits)
            for output in (dtype, torch.float64):
                module.dequantize(codes, scales, width, output)
    assert launched == built("quantization", architecture)
