"""Comparisons of memory tokens with plain text, and with what else people would use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clara.lazy import on_first_use

__all__ = [
    "Answered",
    "Dataset",
    "EvaluatedQuestion",
    "Evaluation",
    "EvaluationError",
    "evaluate",
]

if TYPE_CHECKING:
    from clara.evaluation.dataset import Dataset, EvaluatedQuestion
    from clara.evaluation.errors import EvaluationError
    from clara.evaluation.run import Evaluation, evaluate
    from clara.evaluation.systems.protocol import Answered
else:
    # On first use: a run needs torch, and what only looks at a run does not.
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Answered": "clara.evaluation.systems.protocol",
            "Dataset": "clara.evaluation.dataset",
            "EvaluatedQuestion": "clara.evaluation.dataset",
            "Evaluation": "clara.evaluation.run",
            "EvaluationError": "clara.evaluation.errors",
            "evaluate": "clara.evaluation.run",
        },
    )
