"""Documents from files of many kinds: tables, text, and pages that a child process reads."""

from clara.corpus.documents import CorpusDocument, Failure, digest_of
from clara.corpus.fields import FieldNames
from clara.corpus.limits import Limits
from clara.corpus.listing import Listing, list_sources
from clara.corpus.reading import CorpusError, Reading
from clara.corpus.writing import write_corpus
from clara.data.marks import Mark, place_of

__all__ = [
    "CorpusDocument",
    "CorpusError",
    "Failure",
    "FieldNames",
    "Limits",
    "Listing",
    "Mark",
    "Reading",
    "digest_of",
    "list_sources",
    "place_of",
    "write_corpus",
]
