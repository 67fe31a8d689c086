"""The kernel that adds Gumbel noise to scores, as `noise.py` defines it."""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import question_tile


@triton.jit
def _gumbel(p_seed, question, columns):
    """Standard Gumbel noise of a question's candidates, as `noise.py` defines it."""
    columns = columns.to(tl.uint32)
    zero = columns * 0
    bits, _, _, _ = tl.philox(tl.load(p_seed), columns, zero + question.to(tl.uint32), zero, zero)
    uniform = ((bits >> 9).to(tl.float64) + 0.5) * 1.1920928955078125e-07  # 2⁻²³
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit(do_not_specialize=["questions", "rows", "count"])
def noisy(
    p_scores,
    p_offsets,  # None if all questions have `count` candidates
    p_temperature,
    p_seed,
    p_out,
    questions,
    rows,
    count,
    BN: tl.constexpr,
):
    """z of BN candidates."""
    question, i_n, row, end = question_tile(tl.program_id(0), p_offsets, questions, rows, count, BN)
    o_n = tl.arange(0, BN)  # [BN]
    m_n = row + o_n < end
    scores = tl.load(p_scores + row + o_n, mask=m_n, other=0.0)
    temperature = tl.load(p_temperature) + tl.zeros_like(scores)
    noise = _gumbel(p_seed, question, i_n * BN + o_n)
    tl.store(p_out + row + o_n, tl.math.div_rn(scores, temperature) + noise, mask=m_n)
