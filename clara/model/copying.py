"""Copies of a model: deep ones that share nothing, shallow ones that share the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

from clara.backbone.merging import MergedGenerator
from clara.model.prompt_prefix import PromptPrefixes

if TYPE_CHECKING:
    from clara.model.modules import ClaraCore

Model = TypeVar("Model", bound="ClaraCore")

_DERIVED = ("prompt_prefixes", "_merged", "_fingerprint", "_trained")
"""What is made of the weights when it is needed, and tells by their place in memory whether they
have changed."""


def deep_copy(model: Model, memo: dict[int, Any]) -> Model:
    """A model that shares nothing with the first; with a merged generator if that has one."""
    made = model.__class__.__new__(model.__class__)
    memo[id(model)] = made
    with model.adapters.lock:
        own = {name: value for name, value in vars(model).items() if name not in _DERIVED}
        vars(made).update(copy.deepcopy(own, memo))
        _forget(made)
        merged = model._merged
        if merged is not None and merged.is_current(model.adapters):
            backbone = copy.deepcopy(merged.backbone, memo)
            made._merged = MergedGenerator.around(backbone, made.adapters)
    return made


def shallow_copy(model: Model) -> Model:
    """Another object around the same modules, adapters and tokenizer."""
    made = model.__class__.__new__(model.__class__)
    vars(made).update(vars(model))
    for name in ("_parameters", "_buffers", "_modules"):
        vars(made)[name] = copy.copy(vars(model)[name])
    _forget(made)
    return made


def _forget(model: ClaraCore) -> None:
    model.prompt_prefixes = PromptPrefixes()
    model._merged = model._fingerprint = model._trained = None
