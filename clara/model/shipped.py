"""Models that come with this project, by name: in the installed package, or in a checkout."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"
"""The file that every model folder has."""

FACTBOOK = "smollm2-135m-factbook"
"""SmolLM2-135M, trained on the CIA World Factbook. What commands take where none is named."""

NAMES = (FACTBOOK,)
"""The models that come with the project once they are trained."""

_PACKAGE = Path(__file__).resolve().parents[1]


def folders() -> list[Path]:
    """The folders that models are looked for in: that of the package, then that of a checkout."""
    found = [_PACKAGE / "weights" / "models"]
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        found.append(_PACKAGE.parent / "models")
    return found


def find(name: str) -> Path | None:
    """The folder of a model that comes with this project, or that lies in `models/` of a checkout.

    Args:
        name: of the folder, without slashes.
    """
    if not is_name(name):
        return None
    places = [folder / name for folder in folders()]
    return next((place for place in places if (place / CONFIG).is_file()), None)


def is_name(name: str) -> bool:
    """Whether something can be the name of a model, and is no path."""
    return name not in ("", ".", "..") and not name.startswith("~") and not set(name) & set("/\\")


def missing(name: str) -> str:
    """That there is no such model, as a message says it: what was looked for, and where."""
    message = f"model folder {name!r} does not exist"
    if not is_name(name):
        return message
    places = " or ".join(str(folder) for folder in folders())
    return f"{message}, and neither does a model of that name in {places}"
