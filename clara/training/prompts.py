"""The tasks of compression pretraining, which the generator gets in place of a question."""

from __future__ import annotations

from clara.config import PromptTemplate
from clara.data.examples import PretrainingExample

TASK_PROMPT = PromptTemplate(system="", user="Background:\n{memory}\n\n{question}")
"""For a task in place of a question; the task is all the instruction there is."""

PAIRS_TASK = "Write the questions that the background answers, each followed by its answer."
PARAPHRASE_TASK = "Say what the background says in other words."
RECONSTRUCTION_TASK = "Repeat the background word for word."


def pretraining_task(example: PretrainingExample) -> tuple[str, str]:
    """The task and its target: all pairs in order, or the paraphrase."""
    if example.task == "paraphrase":
        return (example.questions or (PARAPHRASE_TASK,))[0], example.answers[0]
    pairs = zip(example.questions, example.answers, strict=True)
    return PAIRS_TASK, "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)
