"""CLaRa: answer questions over a corpus from compressed documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Clara",
    "ClaraConfig",
    "ClaraError",
    "CompressedDocuments",
    "Document",
    "RankedDocument",
    "Ranking",
]

if TYPE_CHECKING:
    from clara.config import ClaraConfig
    from clara.data.records import Document
    from clara.errors import ClaraError
    from clara.memory.documents import CompressedDocuments
    from clara.model.answers import Answer, RankedDocument, Ranking
    from clara.model.clara import Clara
else:
    # On first use: torch and transformers take seconds, which `clara --help` need not wait for.
    _MODULES = {
        "Answer": "clara.model.answers",
        "Clara": "clara.model.clara",
        "ClaraConfig": "clara.config",
        "ClaraError": "clara.errors",
        "CompressedDocuments": "clara.memory.documents",
        "Document": "clara.data.records",
        "RankedDocument": "clara.model.answers",
        "Ranking": "clara.model.answers",
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
