"""Corpora and questions on disk."""

from clara.data.lines import DataError
from clara.data.records import (
    Document,
    Question,
    read_documents,
    read_questions,
    write_jsonl,
)

__all__ = [
    "DataError",
    "Document",
    "Question",
    "read_documents",
    "read_questions",
    "write_jsonl",
]
