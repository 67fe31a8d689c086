"""Text of PDF files, with pypdf."""

from __future__ import annotations

from typing import Any, BinaryIO

from clara.corpus.documents import Extracted
from clara.corpus.extraction.text import Growing
from clara.corpus.limits import Limits
from clara.data.values import DataError
from clara.errors import reason

# What pypdf raises beside its own errors.
_OF_DAMAGE = (AssertionError, AttributeError, LookupError, OSError, TypeError, ValueError)
_HEAD = 1024  # bytes in which the first line of a PDF file stands


def read_pdf(file: BinaryIO, limits: Limits) -> Extracted:
    """The text of all pages, each of which begins with a mark such as "page 3".

    Raises:
        DataError: it is no PDF file, is encrypted, damaged or too long, or no page has text.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    if b"%PDF-" not in file.read(_HEAD):
        raise DataError("is not a PDF file")
    file.seek(0)
    place = "the file"
    try:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("is encrypted; remove its password first")
        tree: Any = reader.root_object["/Pages"]
        said = tree.get("/Count")
        if isinstance(said, int) and said > len(reader.pages):
            raise DataError(
                f"is damaged: of {said} pages that it says it has, {len(reader.pages)} can be found"
            )
        growing = Growing(limits)
        for number, page in enumerate(reader.pages, 1):
            place = f"page {number}"
            growing.add(page.extract_text(), mark=place)
        place = "the title"
        information = reader.metadata
        title = None if information is None else information.title
    except DataError:
        raise
    except (PyPdfError, *_OF_DAMAGE) as error:
        raise DataError(f"is damaged: {place} cannot be read: {reason(error)}") from error
    except ImportError as error:  # some ways to encrypt and compress need packages of their own
        raise DataError(f"{place} cannot be read: {reason(error)}") from error
    return growing.done(title, "holds no text; its pages may be scanned pictures")
