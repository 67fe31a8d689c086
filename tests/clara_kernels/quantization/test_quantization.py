import math
import struct

import pytest
import torch
from comparison import IMPLEMENTATIONS, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_kernels import dequantize_memory, quantize_memory
from clara_kernels.dispatch import cpu_tensors_use
from clara_kernels.quantization import cpu, reference

LARGEST = {8: 127, 4: 7}
BITS = pytest.mark.parametrize("bits", [8, 4])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def rounded(value):
    """A Python float as the nearest float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


def by_hand(row, bits):
    """Codes and scales of one row, value by value: the definition, in exact arithmetic."""
    row, codes, scales = row.double().tolist(), [], []
    step = len(row) if bits == 8 else 64
    for start in range(0, len(row), step):
        group = row[start : start + step]
        scale = rounded(max(map(abs, group)) / LARGEST[bits])
        scales.append(scale)
        codes += [round(rounded(value / scale)) if scale else 0 for value in group]
    return codes, scales


def unpacked(codes, width):
    """The values of packed bytes, by the documented layout."""
    halves = [half for byte in codes.tolist() for half in (byte & 15, byte >> 4)]
    assert all(half == 0 for half in halves[width:])
    return [half - 16 if half > 7 else half for half in halves[:width]]


def per_value(scales, width, bits):
    return scales[..., None] if bits == 8 else scales.repeat_interleave(64, -1)[..., :width]


def both(memory, bits, **options):
    codes, scales = quantize_memory(memory, bits)
    return codes, scales, dequantize_memory(codes, scales, width=memory.shape[-1], **options)


@IMPLEMENTATIONS
@BITS
@DTYPES
@pytest.mark.parametrize("width", [1, 63, 64, 65, 96, 250])
def test_codes_and_scales_follow_the_definition(implementation, bits, dtype, width):
    memory = (torch.randn(3, width) * torch.tensor([[1e-3], [1.0], [300.0]])).to(dtype)
    with cpu_tensors_use(implementation):
        codes, scales = quantize_memory(memory, bits)
    for row, row_codes, row_scales in zip(memory, codes, scales.view(3, -1), strict=True):
        expected_codes, expected_scales = by_hand(row, bits)
        assert row_scales.tolist() == expected_scales
        found = row_codes.tolist() if bits == 8 else unpacked(row_codes, width)
        assert found == expected_codes


@pytest.mark.parametrize("implementation", ["cpu", "triton"])
@BITS
@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 300),
    exponent=st.integers(-149, 120),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_same_bits_from_all_implementations(
    implementation, bits, rows, width, exponent, dtype, seed
):
    if implementation == "triton" and dtype == torch.bfloat16:
        exponent = max(exponent, -90)  # Triton's interpreter misreads subnormal bfloat16
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(rows, width, generator=generator)
    memory = (memory * torch.rand(rows, 1, generator=generator) * 2.0**exponent).to(dtype)
    with cpu_tensors_use("reference"):
        codes, scales, values = both(memory, bits)
    with cpu_tensors_use(implementation):
        other = both(memory, bits)
    assert torch.equal(other[0], codes)
    assert torch.equal(other[1].view(torch.int32), scales.view(torch.int32))
    assert torch.equal(other[2].view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("implementation", ["cpu", "triton"])
@pytest.mark.parametrize(("bits", "width"), [(8, 16385), (8, 20000), (4, 9001), (8, 5000)])
def test_same_bits_on_long_rows(implementation, bits, width):
    memory = torch.randn(30 if implementation == "cpu" else 1, width)
    with cpu_tensors_use("reference"):
        expected = both(memory, bits, dtype=torch.float16)
    with cpu_tensors_use(implementation):
        found = both(memory, bits, dtype=torch.float16)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@IMPLEMENTATIONS
def test_ties_go_to_the_even_code(implementation):
    memory = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    with cpu_tensors_use(implementation):
        codes, scales = quantize_memory(memory)
        assert scales.tolist() == [1.0]
        assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
        packed, _ = quantize_memory(memory / 127 * 7, 4)
    assert unpacked(packed[0], 8)[0] == 7


@IMPLEMENTATIONS
def test_low_half_of_a_byte_comes_first(implementation):
    memory = torch.tensor([[7.0, -7.0, -1.0, 3.0, 2.0]])
    with cpu_tensors_use(implementation):
        codes, scales = quantize_memory(memory, 4)
        assert scales.tolist() == [[1.0]]
        assert codes.tolist() == [[0x97, 0x3F, 0x02]]
        assert dequantize_memory(codes, scales, width=5).tolist() == memory.tolist()
        padded = dequantize_memory(codes, scales)
    assert padded.tolist() == [[*memory[0].tolist(), 0.0]]


@IMPLEMENTATIONS
@BITS
@DTYPES
@pytest.mark.parametrize("exponent", [-149, -146, -140, -133, -127, -120, -24, 0, 15, 127])
def test_error_is_at_most_half_a_scale(implementation, bits, dtype, exponent):
    # From the smallest subnormal numbers to the largest finite ones.
    if implementation == "triton" and dtype == torch.bfloat16:
        exponent = max(exponent, -90)  # Triton's interpreter misreads subnormal bfloat16
    memory = torch.rand(4, 100, dtype=torch.float64) * 2 - 1
    memory[2:, 0], memory[3] = 1.0, memory[3].sign()
    limit = torch.finfo(dtype).max
    memory = (memory * 2.0 * 2.0**exponent).clamp(-limit, limit).to(dtype)
    with cpu_tensors_use(implementation):
        _, scales, values = both(memory, bits)
    assert values.isfinite().all()
    error = (memory.double() - values.double()).abs()
    allowed = per_value(scales, 100, bits).double() / 2 * (1 + 2**-15)
    assert (error <= allowed).all(), (error - allowed).max()
    assert (scales <= memory.abs().amax().float() / LARGEST[bits] + 2**-126).all()


@IMPLEMENTATIONS
@BITS
def test_zeros_have_scale_zero(implementation, bits):
    memory = torch.randn(3, 130)
    memory[1] = 0
    memory[2, 64:128] = -0.0
    with cpu_tensors_use(implementation):
        codes, scales, values = both(memory, bits)
    assert scales[1].eq(0).all()
    assert codes[1].eq(0).all()
    assert values[1].eq(0).all()
    if bits == 4:
        assert scales[2].eq(0).tolist() == [False, True, False]
        assert codes[2, 32:64].eq(0).all()


@IMPLEMENTATIONS
@BITS
@DTYPES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_back_as_nan(implementation, bits, dtype, bad):
    memory = torch.randn(3, 130).to(dtype)
    memory[1, 70] = bad
    with cpu_tensors_use(implementation):
        codes, scales, values = both(memory, bits)
        clean = both(memory[[0, 2]], bits)
    touched = torch.zeros(3, 130, dtype=torch.bool)
    touched[1, slice(None) if bits == 8 else slice(64, 128)] = True
    assert torch.equal(values.isnan(), touched)
    assert torch.equal(scales.isnan(), touched[:, ::64] if bits == 4 else touched[:, 0])
    packed = codes if bits == 8 else codes.repeat_interleave(2, 1)
    assert packed[touched].eq(0).all()
    assert torch.equal(codes[[0, 2]], clean[0])
    assert torch.equal(values[[0, 2]], clean[2])


@BITS
def test_float64_is_rounded_as_float64(bits):
    memory = torch.randn(5, 70, dtype=torch.float64)
    _, scales, values = both(memory, bits, dtype=torch.float64)
    error = (memory - values).abs()
    assert (error <= per_value(scales, 70, bits).double() / 2 * (1 + 2**-15)).all()
    beyond = torch.tensor([[1e300, 1.0]], dtype=torch.float64)
    assert quantize_memory(beyond, bits)[1].isnan().all()
    # The float32 nearest to this lies on a tie.
    close = torch.tensor([[LARGEST[bits], 0.5 + 1e-12]], dtype=torch.float64)
    assert both(close, bits)[2][0, 1] == 1.0
    assert both(close.float(), bits)[2][0, 1] == 0.0


@IMPLEMENTATIONS
@BITS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_output_dtype_is_one_rounding_of_float32(implementation, bits, dtype):
    codes, scales = quantize_memory(torch.randn(2, 100), bits)
    expected = dequantize_memory(codes, scales).to(dtype)
    with cpu_tensors_use(implementation):
        found = dequantize_memory(codes, scales, dtype=dtype)
    assert found.dtype == dtype
    if implementation == "triton" and dtype == torch.bfloat16:
        # Triton's interpreter cuts float32 off where a GPU rounds it.
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    else:
        assert torch.equal(found, expected)


@IMPLEMENTATIONS
@BITS
@pytest.mark.parametrize("width", [96, 33, 20000])
def test_every_element_is_written(implementation, bits, width):
    memory = torch.randn(2, width)
    expected = both(memory, bits)
    with cpu_tensors_use(implementation), poisoned("quantization"):
        found = both(memory, bits)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@IMPLEMENTATIONS
@BITS
def test_layouts(implementation, bits):
    memory = torch.randn(2, 3, 5, 70)
    with cpu_tensors_use(implementation):
        codes, scales, values = both(memory, bits)
        assert codes.shape == (2, 3, 5, 70 if bits == 8 else 35)
        assert scales.shape == ((2, 3, 5) if bits == 8 else (2, 3, 5, 2))
        one_codes, one_scales = quantize_memory(memory[1, 2, 3], bits)
        assert torch.equal(one_codes, codes[1, 2, 3])
        assert torch.equal(one_scales, scales[1, 2, 3])
        assert torch.equal(dequantize_memory(one_codes, one_scales), values[1, 2, 3])

        strided = torch.randn(3, 5, 2, 70).transpose(0, 2).to(memory)[..., ::2]
        expected = both(strided.contiguous(), bits)
        for one, other in zip(both(strided, bits), expected, strict=True):
            assert torch.equal(one, other)
        apart = [torch.stack([each, each], -1)[..., 0] for each in (codes, scales)]
        assert torch.equal(dequantize_memory(*apart), values)


@IMPLEMENTATIONS
@BITS
def test_empty(implementation, bits):
    with cpu_tensors_use(implementation):
        codes, scales, values = both(torch.empty(0, 4, 70), bits, dtype=torch.float16)
    assert codes.shape == (0, 4, 70 if bits == 8 else 35)
    assert scales.shape == ((0, 4) if bits == 8 else (0, 4, 2))
    assert values.shape == (0, 4, 70)
    assert values.dtype == torch.float16


@BITS
def test_slices_of_many_rows_are_put_together(bits, monkeypatch):
    monkeypatch.setattr(cpu, "_SLICE_VALUES", 1000)
    memory = torch.randn(37, 90)
    codes, scales = cpu.quantize(memory, bits)
    expected_codes, expected_scales = reference.quantize(memory, bits)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(
        cpu.dequantize(codes, scales, 90, torch.float16),
        reference.dequantize(codes, scales, 90, torch.float16),
    )


@BITS
def test_no_gradient_comes_back(bits):
    memory = torch.randn(2, 64, requires_grad=True)
    codes, scales, values = both(memory, bits)
    assert not scales.requires_grad
    assert not dequantize_memory(codes, scales.clone().requires_grad_()).requires_grad
    assert not values.requires_grad


@BITS
def test_under_autocast(bits):
    memory = torch.randn(3, 70)
    expected = both(memory, bits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both(memory, bits)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@BITS
def test_opcheck(bits):
    memory = torch.randn(3, 70)
    codes, scales = quantize_memory(memory, bits)
    torch.library.opcheck(torch.ops.clara.quantize_memory.default, (memory, bits))
    arguments = (codes, scales, 70, torch.bfloat16)
    torch.library.opcheck(torch.ops.clara.dequantize_memory.default, arguments)


@BITS
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(bits, backend):
    def roundtrip(memory):
        codes, scales = quantize_memory(memory, bits)
        return codes, scales, dequantize_memory(codes, scales, width=memory.shape[-1])

    torch._dynamo.reset()
    compiled = torch.compile(roundtrip, fullgraph=True, backend=backend, dynamic=True)
    for rows, width in ((3, 70), (4, 81), (9, 200)):
        memory = torch.randn(rows, width)
        with torch.compiler.set_stance("fail_on_recompile" if rows > 4 else "default"):
            found = compiled(memory)
        for one, other in zip(found, roundtrip(memory), strict=True):
            assert torch.equal(one, other)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"memory must be a torch\.Tensor, got list"):
        quantize_memory([1.0])
    with pytest.raises(TypeError, match=r"memory must be floating point, got torch\.int8"):
        quantize_memory(torch.zeros(2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"memory must have shape \[\.\.\., H\] .*, got \[3, 0\]"):
        quantize_memory(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"memory must have shape .*, got \[\]"):
        quantize_memory(torch.tensor(1.0))
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 2"):
        quantize_memory(torch.zeros(3), 2)

    codes, scales = quantize_memory(torch.zeros(2, 65), 4)
    with pytest.raises(TypeError, match=r"codes must be int8 .* or uint8 .*, got torch\.int32"):
        dequantize_memory(codes.int(), scales)
    with pytest.raises(TypeError, match=r"scales must be float32, got torch\.float64"):
        dequantize_memory(codes, scales.double())
    with pytest.raises(TypeError, match=r"dtype must be one of .*, got torch\.int8"):
        dequantize_memory(codes, scales, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"scales must have shape \[2, 2\], got \[2, 3\]"):
        dequantize_memory(codes, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"scales must have shape \[2\], got \[2, 2\]"):
        dequantize_memory(codes.view(torch.int8), scales)
    with pytest.raises(ValueError, match=r"codes must have shape .*, got \[2, 0\]"):
        dequantize_memory(codes[:, :0], scales)
    with pytest.raises(ValueError, match=r"width must be 65 or 66 for codes .*, got 64"):
        dequantize_memory(codes, scales, width=64)
    with pytest.raises(ValueError, match=r"width must be 33 for codes .*, got 34"):
        dequantize_memory(codes.view(torch.int8), torch.zeros(2), width=34)
    with pytest.raises(TypeError, match="width must be an int or None, got float"):
        dequantize_memory(codes, scales, width=65.0)
    with pytest.raises(ValueError, match=r"scales must be on the device of codes \(cpu\)"):
        dequantize_memory(codes, scales.to("meta"))


@pytest.mark.gpu
@BITS
@DTYPES
@pytest.mark.parametrize("width", [64, 100, 576, 2048, 4096, 8192, 33000])
def test_gpu_gives_the_bits_of_the_cpu(bits, dtype, width):
    memory = (torch.randn(301, width) * torch.rand(301, 1) * 2.0**-10).to(dtype)
    memory[0], memory[1, -1], memory[2] = 0, math.nan, memory[2] * 2.0**-130
    expected = both(memory, bits, dtype=dtype)
    found = both(memory.cuda(), bits, dtype=dtype)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu().nan_to_num(9), other.nan_to_num(9))
        assert torch.equal(one.cpu().isnan(), other.isnan())


@pytest.mark.gpu
@BITS
def test_gpu_graph_and_side_stream(bits):
    memory = torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16)
    both(memory, bits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(memory, bits)
    memory.normal_()
    graph.replay()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = both(memory, bits)
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))
