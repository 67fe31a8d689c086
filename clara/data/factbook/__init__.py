"""Documents and questions from the CIA World Factbook."""

from clara.data.factbook.answers import LONGEST_ANSWER
from clara.data.factbook.build import (
    SPLITS,
    Country,
    FactbookError,
    Field,
    build_documents,
    build_questions,
    load_factbook,
    smollm2_file,
    split_of,
    write_factbook,
)
from clara.data.factbook.evaluation import evaluation_questions

__all__ = [
    "LONGEST_ANSWER",
    "SPLITS",
    "Country",
    "FactbookError",
    "Field",
    "build_documents",
    "build_questions",
    "evaluation_questions",
    "load_factbook",
    "smollm2_file",
    "split_of",
    "write_factbook",
]
