"""CLaRa: answer questions over a corpus from compressed documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clara.lazy import on_first_use

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
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "Answer": "clara.model.answers",
            "Clara": "clara.model.clara",
            "ClaraConfig": "clara.config",
            "ClaraError": "clara.errors",
            "CompressedDocuments": "clara.memory.documents",
            "Document": "clara.data.records",
            "RankedDocument": "clara.model.answers",
            "Ranking": "clara.model.answers",
        },
    )
