"""Which package each reporter of `report_to` needs."""

from __future__ import annotations

from importlib.util import find_spec

_MODULES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
_PACKAGES = {"azureml": "azureml-mlflow", "comet_ml": "comet-ml"}
"""Names to install modules by, where they differ."""


def missing_package(reporter: str) -> str | None:
    """The package to install before a run can report to `reporter`.

    None if nothing is missing, and for names not listed here: "none", "all", and reporters of
    other versions of transformers.
    """
    modules = _MODULES.get(reporter, ())
    found = [find_spec(module) is not None for module in modules]
    if all(found) or (reporter == "tensorboard" and any(found)):  # either module writes its files
        return None
    missing = modules[found.index(False)]
    return _PACKAGES.get(missing, missing)
