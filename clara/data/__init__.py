"""Corpora and questions on disk."""

from clara.data.records import (
    Document,
    Question,
    read_documents,
    read_questions,
    write_jsonl,
)
from clara.data.values import DataError

__all__ = [
    "DataError",
    "Document",
    "Question",
    "read_documents",
    "read_questions",
    "write_jsonl",
]
