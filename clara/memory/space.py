"""Whether memory belongs to a model: compared here for documents, indexes and commands alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clara.model.modules import ClaraCore


class Indexed(Protocol):
    """An index, as far as it is compared."""

    @property
    def path(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def check_readable(model: ClaraCore, fingerprint: str, what: str, remedy: str) -> None:
    """Refuse memory that another model wrote.

    Memory that an earlier release wrote with this model is accepted, see
    `ClaraCore.has_fingerprint`.

    Args:
        what: the subject and verb of the message, such as "the index was written".
        remedy: what to do about it.

    Raises:
        ValueError: it is of another model.
    """
    if not model.has_fingerprint(fingerprint):
        raise ValueError(
            f"{what} by another model ({fingerprint[:12]}, this one is "
            f"{model.fingerprint[:12]}); {remedy}"
        )


def check_addable(
    model: ClaraCore, index: Indexed, remedy: str, *, model_name: str = "MODEL"
) -> None:
    """Refuse to add this model's memory to an index of another one.

    An index with a fingerprint of an earlier release can be read. Nothing is added to it: that
    fingerprint covers a sample of the weights, and two models may share it.

    Args:
        remedy: what to do if the index is of another model.
        model_name: how the command that upgrades the index names the model.

    Raises:
        ValueError: it is of another model, or has a fingerprint of an earlier release.
    """
    check_readable(model, index.fingerprint, f"{index.path}: was written", remedy)
    if index.fingerprint != model.fingerprint:
        raise ValueError(
            f"{index.path}: has a fingerprint of an earlier release and can only be read; to add "
            f"documents, run 'clara index upgrade --model {model_name} {index.path}' first"
        )
