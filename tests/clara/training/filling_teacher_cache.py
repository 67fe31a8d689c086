"""Fills a teacher's cache until it is killed; says the number of each answer that it has added.

What is kept of an answer is drawn from its number, so that a reader knows what it should be.
"""

import sys

import numpy as np

from clara.training.teacher_cache import TeacherCache

TOP = 3
MADE_OF = {
    "train_data": {"examples": 24, "digest": "d1"},
    "teacher": "t1",
    "prompt": {"system": "Say it.", "user": "{memory} {question}"},
    "distillation_top": TOP,
}


def key(number):
    return number.to_bytes(16, "little")


def drawn(number):
    generator = np.random.default_rng(number)
    count = int(generator.integers(1, 9))
    tokens = generator.integers(0, 70_000, count)
    ids = generator.integers(0, 70_000, (count, TOP))
    return tokens.tolist(), ids, -generator.random((count, TOP + 1))


if __name__ == "__main__":
    cache = TeacherCache(sys.argv[1], MADE_OF)
    for new in range(len(cache), 10**6):
        cache.add(key(new), *drawn(new))
        print(new, flush=True)
