"""Gumbel noise that depends on nothing but (seed, row, column).

The definition, for any other implementation to reproduce:

- generator: Philox4x32-10 (Salmon et al., 2011), the one `tl.philox` computes;
- key words: (seed mod 2³², seed div 2³²), the seed an unsigned 64-bit number;
- counter words: (column, row, 0, 0), the column within the row's own candidates;
- bits: the first output word;
- u = ((bits >> 9) + ½) · 2⁻²³, an odd multiple of 2⁻²⁴: exact in float32, never 0 or 1;
- g = -log(-log u), evaluated in float64 and rounded to float32 whatever the dtype of the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product, by 16-bit halves so that int64 never overflows."""
    low = word * (factor & 0xFFFF)
    high = word * (factor >> 16) + (low >> 16)
    return high >> 16, ((high << 16) | (low & 0xFFFF)) & _WORD


def philox4x32(counter: Words, key: tuple[int | Tensor, int | Tensor], rounds: int = 10) -> Words:
    """Philox4x32. All words are int64 tensors (the key also ints) holding 32-bit numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def gumbel_noise(seed: int | Tensor, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float32 `[rows, columns]`. Entries do not depend on the sizes."""
    column = torch.arange(columns, device=device).expand(rows, columns)
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    zero = torch.zeros_like(column)
    bits = philox4x32((column, row, zero, zero), (seed & _WORD, (seed >> 32) & _WORD))[0]
    # MPS has no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    uniform = ((bits >> 9).to(dtype) + 0.5) * 2.0**-23
    return -(-uniform.log()).log().float()
