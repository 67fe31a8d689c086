"""An extension of mkdocstrings: `Example:` in a docstring is rendered as code.

The parser knows the section `Examples:` alone. It would take `Example:` for a note and every `>>>`
of it for a quotation.
"""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Reads `Example:` as `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
