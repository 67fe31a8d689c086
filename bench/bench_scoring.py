"""Benchmarks of exact search on a GPU: `python bench/bench_scoring.py`.

As bench_operators.py, which see: the same options, checks, timing and results, in scoring.json.
"""

from __future__ import annotations

import sys

from bench_operators import main
from operators import SCORING_LIMITS

if __name__ == "__main__":
    sys.exit(main(limits=SCORING_LIMITS, file="scoring.json", script=__file__))
