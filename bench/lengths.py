"""How long documents are: the lengths that passages have in the method's training data."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

# Median and spread of a log-normal whose mean, once cut to 8 … 256 tokens, is the 96 tokens that
# passages have there on average.
_MEDIAN, _SIGMA = 82.0, 0.6
SHORTEST, LONGEST = 8, 256


def document_lengths(count: int) -> list[int]:
    """Document lengths in tokens: quantiles of the distribution above, in random order."""
    logarithm = NormalDist(math.log(_MEDIAN), _SIGMA)
    drawn = [round(math.exp(logarithm.inv_cdf((i + 0.5) / count))) for i in range(count)]
    lengths = [min(LONGEST, max(SHORTEST, length)) for length in drawn]
    random.Random(0).shuffle(lengths)
    return lengths
