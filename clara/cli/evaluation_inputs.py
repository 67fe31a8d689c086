"""What `clara evaluate` works on: questions with documents, and models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.cli import options
from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.cli.loading import load_model, open_index, other_backbone_told
from clara.cli.paths import check_backbone, check_model, expanded

if TYPE_CHECKING:
    from collections.abc import Callable

    from clara.evaluation.dataset import Dataset
    from clara.evaluation.systems.setup import TunedReader
    from clara.index import MemoryIndex
    from clara.model.clara import Clara

NEED_ADAPTERS = ("clara",)
"""Systems and rankers that are nothing without a model's adapters."""


def check_source(suite: str | None, questions: Path | None, documents: str | None) -> None:
    """Refuse what names no data, or two.

    Raises:
        CommandError: there are neither questions nor a suite, or both, or no such suite.
    """
    from clara.evaluation.suites import SUITES

    if suite is None and questions is None:
        raise CommandError(
            "give --questions FILE and --documents FILE or INDEX, or --suite factbook", BAD_USAGE
        )
    if suite is not None and (questions is not None or documents is not None):
        raise CommandError("--suite has its own --questions and --documents", BAD_USAGE)
    if suite is not None and suite not in SUITES:
        raise CommandError(f"--suite must be {', '.join(SUITES)}, got {suite!r}", BAD_USAGE)


def check_adapters(model: str | None, names: list[str], backbone: str | None) -> None:
    """Look for the model, or see that nothing needs one.

    Args:
        names: of systems and rankers.

    Raises:
        CommandError: the model is not there, or missing for one of the names.
    """
    if model is not None:
        check_model(model, backbone=backbone)
        return
    check_backbone(backbone)
    for name in names:
        if name in NEED_ADAPTERS:
            raise CommandError(
                f"{name!r} needs --model, a model with adapters; clara init makes an untrained one",
                BAD_USAGE,
            )


def index_at(documents: str | None) -> MemoryIndex | None:
    """The index that documents are read from; None for a file of documents.

    Raises:
        MemoryIndexError: it cannot be read.
    """
    if documents is None or not (expanded(documents) / "_versions").is_dir():
        return None
    return open_index(documents)


def read_data(
    suite: str | None,
    questions: Path | None,
    documents: str | None,
    index: MemoryIndex | None,
    limit: int | None,
) -> Dataset:
    """The first questions of a suite or a file, and the documents.

    Raises:
        DataError: a file cannot be read; names the line and the field.
        FactbookError: the Factbook is not installed.
    """
    from clara.evaluation.dataset import Dataset
    from clara.evaluation.layouts import read_dataset
    from clara.evaluation.suites import SUITES

    if suite is not None:
        return SUITES[suite](limit)
    given: Any = None if documents is None else expanded(documents)
    if index is not None:
        from clara.evaluation.systems.store import documents_of

        given = documents_of(index)
    dataset = read_dataset(expanded(str(questions)), given)
    return Dataset(dataset.questions[:limit], dataset.documents)


def load_any(
    model: str | None,
    backbone: str | None,
    device: str | None,
    quantization: options.Quantization | None,
) -> Clara:
    """A saved model, or a bare backbone without one: SmolLM2-135M, if no other is named."""
    if model is not None:
        return load_model(model, backbone=backbone, device=device, quantization=quantization)
    from clara.config import ClaraConfig
    from clara.evaluation.demonstration import default_backbone
    from clara.model.clara import Clara

    settings: Any = {} if quantization is None else {"quantization": quantization.value}
    with user_errors():
        return Clara.from_backbone(
            backbone or default_backbone(), ClaraConfig(**settings), device=device
        )


def load_tuned(name: str | None, model: Clara) -> TunedReader | None:
    """The model of a run of plain-text training; shares the weights that are equal to another's.

    Args:
        model: the other one.

    Raises:
        CommandError: there is no such model, or it was trained by another stage.
    """
    if name is None:
        return None
    from clara.evaluation.systems.setup import TunedReader
    from clara.training.settings import SettingsError
    from clara.training.teacher import TeacherFolder, load_reader

    try:
        place = TeacherFolder.of(name)
    except SettingsError as error:
        # The folder is read as that of a teacher, which is the same thing.
        raise CommandError(str(error).replace("teacher", "--text-model", 1)) from error
    return TunedReader(_beside(place.folder, model, load_reader), place.adapter)


def load_contrastive(name: str | None, model: Clara) -> Clara | None:
    """The model of a run of contrastive training, or in a model folder; see `load_tuned`.

    Raises:
        CommandError: there is no such model, or it lacks an adapter.
    """
    if name is None:
        return None
    from clara.model.clara import Clara
    from clara.training.folder import MODEL

    folder = expanded(name)
    if (folder / MODEL).is_dir():
        folder = folder / MODEL
    check_model(str(folder))
    return _beside(folder, model, Clara.from_pretrained)


def _beside(folder: Path, model: Clara, load: Callable[..., Clara]) -> Clara:
    """A second model, on the device and in the dtype of the first."""
    from clara.training.teacher import share_frozen_weights

    with user_errors(), other_backbone_told():
        loaded = load(folder, device=model.device, dtype=model.dtype)
    share_frozen_weights(model.backbone, loaded.backbone)
    return loaded
