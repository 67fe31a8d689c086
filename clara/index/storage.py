"""How an index stores the values of memory vectors: as floating-point numbers, or quantized.

Codes and scales are those of `clara_kernels.quantize_memory`: in 8 bits a memory vector has one
scale, in 4 bits every 64 of its values have one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clara_kernels import dequantize_memory, quantize_memory
from clara_kernels.quantization.reference import group_count

_SCALE_BYTES = 4  # float32


@dataclass(frozen=True)
class Storage:
    """One way to store memory vectors.

    Attributes:
        name: what users call it.
        dtype: of values that are stored as they are; None for codes.
        bits: of a value.
        mean_dtype: of the mean of a document's memory vectors, if it is stored beside them. Codes
            would change which documents are found, so the mean of quantized memory is bfloat16.
    """

    name: str
    dtype: torch.dtype | None
    bits: int
    mean_dtype: torch.dtype

    def vector_bytes(self, hidden_size: int) -> int:
        """Bytes of a memory vector without its scales; with 4 bits an odd H ends in half a byte."""
        return -(-hidden_size * self.bits // 8)

    def vector_scales(self, hidden_size: int) -> int:
        """Scales of a memory vector."""
        if self.dtype is not None:
            return 0
        return 1 if self.bits == 8 else group_count(hidden_size)

    def scale_bytes(self, hidden_size: int) -> int:
        """Bytes of the scales of a memory vector."""
        return self.vector_scales(hidden_size) * _SCALE_BYTES

    def pack(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values to store.

        Args:
            vectors: `[S, H]` on the CPU, floating point.

        Returns:
            uint8 `[S, vector_bytes]`, and float32 `[S, vector_scales]` or None.
        """
        if self.dtype is not None:
            return vectors.to(self.dtype).contiguous().view(torch.uint8), None
        codes, scales = quantize_memory(vectors, self.bits)
        count, hidden_size = vectors.shape
        return codes.view(torch.uint8), scales.view(count, self.vector_scales(hidden_size))

    def unpack(
        self, stored: Tensor, scales: Tensor | None, hidden_size: int, dtype: torch.dtype
    ) -> Tensor:
        """Vectors `[S, H]` in `dtype` from what `pack` gave; perhaps over the same memory."""
        if self.dtype is not None or scales is None:
            return stored.view(self.dtype or dtype).to(dtype)
        if self.bits == 8:
            return dequantize_memory(stored.view(torch.int8), scales[:, 0], dtype=dtype)
        return dequantize_memory(stored, scales, width=hidden_size, dtype=dtype)


STORAGES = {
    each.name: each
    for each in (
        Storage("float32", torch.float32, 32, torch.float32),
        Storage("float16", torch.float16, 16, torch.float16),
        Storage("bfloat16", torch.bfloat16, 16, torch.bfloat16),
        Storage("int8", None, 8, torch.bfloat16),
        Storage("int4", None, 4, torch.bfloat16),
    )
}
