"""Evaluates a small model, and pauses after each batch so that it can be killed in between.

Arguments: folder of the model, folder of the run, seconds of a pause.
"""

import sys
import time

import torch

from clara import Clara
from clara.data.records import Document
from clara.evaluation import EvaluatedQuestion, evaluate
from clara.evaluation.folder import Lines
from clara.evaluation.registry import entries_of
from clara.evaluation.systems.setup import Setup


def main(model, output, pause):
    torch.set_num_threads(1)
    add = Lines.add

    def slow(self, lines):
        add(self, lines)
        time.sleep(pause)

    Lines.add = slow
    documents = [Document(f"d{n}", f"Country {n} has {7 * n} rivers.") for n in range(40)]
    questions = [
        EvaluatedQuestion(
            f"q{n}",
            f"How many rivers does country {n} have?",
            (str(7 * n),),
            (f"d{n}",),
            tuple(f"d{(n + step) % 40}" for step in range(3)),
        )
        for n in range(40)
    ]
    setup = Setup(Clara.from_pretrained(model), max_new_tokens=4)
    entries = entries_of(setup, ["clara", "text", "closed-book"], ["random"], questions)
    evaluate(entries, questions, documents, top_k=2, output=output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
