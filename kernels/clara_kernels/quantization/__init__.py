"""Memory vectors in 8 or 4 bits, with scales."""

from .op import dequantize_memory, quantize_memory

__all__ = ["dequantize_memory", "quantize_memory"]
