"""Errors of an evaluation."""

from __future__ import annotations

from clara.errors import ClaraError


class EvaluationError(ClaraError, ValueError):
    """An evaluation cannot be run or read as asked. The message is one line."""


class UnavailableError(EvaluationError):
    """A system or ranker needs a package or a model that is not here; the message says which."""
