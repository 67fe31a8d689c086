"""CLaRa: answer questions over a corpus from compressed documents."""

from clara.answering import Answer, RankedDocument, Ranking
from clara.config import ClaraConfig
from clara.data.records import Document
from clara.documents import CompressedDocuments
from clara.model import Clara

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Clara",
    "ClaraConfig",
    "CompressedDocuments",
    "Document",
    "RankedDocument",
    "Ranking",
]
