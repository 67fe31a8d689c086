"""Comparisons of memory tokens with plain text, and with what else people would use."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    _MODULES = {
        "Answered": "clara.evaluation.systems.protocol",
        "Dataset": "clara.evaluation.dataset",
        "EvaluatedQuestion": "clara.evaluation.dataset",
        "Evaluation": "clara.evaluation.run",
        "EvaluationError": "clara.evaluation.errors",
        "evaluate": "clara.evaluation.run",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
