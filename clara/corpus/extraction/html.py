"""Text of HTML pages, with selectolax."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from clara.corpus.documents import Extracted
from clara.corpus.extraction.text import Growing, heading_mark
from clara.corpus.limits import Limits
from clara.corpus.readers.plain import byte_flaw
from clara.data.values import DataError, shown

# What is not read: code, styles, what frames and programs show, menus.
_DROPPED = re.compile(
    "head|script|style|nav|template|noscript|iframe|object|embed|svg|math|canvas|audio|video|"
    "select|datalist|button"
)
_BLOCKS = re.compile(
    "address|article|aside|blockquote|body|caption|center|dd|details|dialog|dir|div|dl|dt|"
    "fieldset|figcaption|figure|footer|form|h[1-6]|header|hgroup|hr|html|legend|li|listing|main|"
    "menu|ol|p|plaintext|pre|search|section|summary|table|tbody|tfoot|thead|tr|ul|xmp"
)
# No empty line stands before and behind them.
_TIGHT = frozenset({"li", "dt", "dd", "tr", "thead", "tbody", "tfoot", "summary", "figcaption"})
_CELLS = frozenset({"td", "th"})
_KEPT_SPACE = frozenset({"pre", "listing", "xmp", "plaintext", "textarea"})
_HEADING = re.compile(r"h([1-6])")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{1,40})["']""")
# Encodings that browsers know, and the wider ones that they take in their place.
_WIDER = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}
_BROWSERS = re.compile(
    r"utf-8|cp125\d|cp866|cp874|koi8-[ru]|mac-roman|mac-cyrillic|iso8859-\d+|gb18030|big5|"
    r"euc_jp|iso2022_jp|shift_jis|euc_kr"
)


def read_html(file: BinaryIO, limits: Limits) -> Extracted:
    """The text that a page shows; headings are marks, the title is the page's own or a heading.

    Raises:
        DataError: it holds no text, is too long, or is not in the encoding that it names.
    """
    from selectolax.lexbor import LexborHTMLParser

    parser = LexborHTMLParser(decoded(file.read()))
    growing = Growing(limits)
    first_heading = None
    root = parser.root
    for tag, text, between in _blocks(root):
        heading = _HEADING.fullmatch(tag)
        mark = heading_mark(int(heading[1]), text) if heading else None
        growing.add(text, mark=mark, between=between)
        if heading and first_heading is None:
            first_heading = text
    title = parser.css_first("head > title")
    named = None if title is None else title.text(deep=False)
    return growing.done((named or "").strip() or first_heading, "holds no text")


def decoded(raw: bytes) -> str:
    """A page's text, in the encoding that it names or in UTF-8.

    Raises:
        DataError: the encoding is unknown, or the bytes are none of it.
    """
    text = raw.removeprefix(codecs.BOM_UTF8)
    named = None
    if len(text) == len(raw):
        found = _CHARSET.search(raw[:2048]) or _XML_CHARSET.match(raw[:2048])
        named = found[1].decode("ascii", "replace") if found else None
    encoding = "utf-8" if named is None else _codec(named)
    if encoding == "utf-8":
        if flaw := byte_flaw(text, len(raw) - len(text)):
            raise DataError(flaw)
        return text.decode("utf-8")
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not in the encoding {named} that it names: byte 0x{text[error.start]:02x} at "
            f"offset {error.start}"
        ) from error


def _codec(named: str) -> str:
    try:
        name = codecs.lookup(named).name
    except LookupError:
        name = ""
    name = _WIDER.get(name, name)
    if not _BROWSERS.fullmatch(name):
        raise DataError(
            f"names the encoding {shown(named)}, which is not read; convert it to UTF-8"
        )
    return name


def _blocks(root: Any) -> Iterator[tuple[str, str, str]]:
    """Tag, text and separator of every block, in the order of the page.

    The tree is walked without recursion: a page may nest as deeply as it likes.
    """
    pieces: list[str] = []
    tag, between = "", ""
    for event, node in _events(root):
        name = node.tag
        if event == "text":
            pieces.append(_shown_text(node))
        elif name == "br":
            pieces.append("\n" if event == "begin" else "")
        elif name in _CELLS:
            pieces.append("\t" if event == "end" else "")
        elif _BLOCKS.fullmatch(name):
            text = _joined(pieces)
            if text.strip():
                yield tag, text, between
                between = ""
            pieces = []
            tag = name if event == "begin" else ""  # behind the end is text of the block around
            # The widest of all that lie between two texts.
            between = max(between, "\n" if name in _TIGHT else "\n\n")
    yield tag, _joined(pieces), between


def _events(root: Any) -> Iterator[tuple[str, Any]]:
    """Begin and end of elements, and texts, of all that is shown."""
    node = root
    while node is not None:
        child = None
        if node.is_text_node:
            yield "text", node
        elif node.is_element_node and not _is_dropped(node):
            yield "begin", node
            child = node.first_child
            if child is None:
                yield "end", node
        if child is not None:
            node = child
            continue
        while node is not None and node.next is None:
            node = node.parent
            if node is not None and node.is_element_node:
                yield "end", node
        node = None if node is None else node.next


def _is_dropped(node: Any) -> bool:
    if _DROPPED.fullmatch(node.tag) or "hidden" in node.attributes:
        return True
    # The sign behind a heading that links to it.
    links = node.tag == "a" and (node.attributes.get("href") or "").startswith("#")
    return links and node.text().strip() in ("#", "¶", "§")


def _shown_text(node: Any) -> str:
    """A text as a browser shows it: runs of white space are a space, but where they are kept."""
    text: str = node.text_content or ""
    above = node.parent
    for _ in range(4):  # what keeps space may hold marked-up code
        if above is None:
            break
        if above.tag in _KEPT_SPACE:
            return text.replace(" ", "\xa0").replace("\t", "\xa0" * 4)
        above = above.parent
    return re.sub(r"[ \t\r\n\f]+", " ", text)


def _joined(pieces: list[str]) -> str:
    """The text of a block, no space at the ends of its lines."""
    lines = "".join(pieces).split("\n")
    return "\n".join(re.sub(r" {2,}", " ", line).strip(" \t") for line in lines).replace(
        "\xa0", " "
    )
