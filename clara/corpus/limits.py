"""Limits on what one file or record may cost to read."""

from __future__ import annotations

from dataclasses import dataclass, fields

from clara.data.values import DataError
from clara.errors.checks import as_number

MB = 1_000_000
_MOST = 100_000  # of each limit: what 100 GB or a day exceeds is no limit


class ExpandsError(DataError):
    """The rows of a table are larger than its file may expand to."""


@dataclass(frozen=True)
class Limits:
    """The most that reading one file or record may take. A message names the limit that it met.

    Attributes:
        document_mb: of a line of JSON lines, a record of a table, a text file, and of the text
            that is extracted from a page; in megabytes of UTF-8.
        seconds: of processor time for extracting one file, or the next few hundred rows of a
            Parquet file or data set; by the clock three times as long.
        memory_mb: address space of the process that extracts, Python's own included.
        expanded_mb: of the files in a DOCX archive, unpacked, and of the rows of a Parquet file
            or data set, which may always have a hundred times the size of the file.

    Raises:
        DataError: a limit is not positive, or above 100,000.
    """

    document_mb: float = 16.0
    seconds: float = 60.0
    memory_mb: float = 1500.0
    expanded_mb: float = 256.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = as_number(getattr(self, each.name), f"limits.{each.name}")
            if value <= 0:
                raise DataError(f"limits.{each.name} must be above 0, got {value}")
            if value > _MOST:
                raise DataError(f"limits.{each.name} must be at most {_MOST:,}, got {value}")

    @property
    def document_bytes(self) -> int:
        return int(self.document_mb * MB)

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_mb * MB)

    @property
    def expanded_bytes(self) -> int:
        return int(self.expanded_mb * MB)

    def too_long(self, what: str) -> str:
        """The message about a document over the limit."""
        return f"{what} is longer than {self.document_mb:g} MB, the limit document_mb"
