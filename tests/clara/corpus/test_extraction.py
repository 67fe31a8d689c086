"""Text of pages, in this process: what is kept, what is dropped, what is refused."""

import io
import struct
import zipfile

import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsmap

from clara.corpus.extraction.docx import read_docx
from clara.corpus.extraction.html import read_html
from clara.corpus.extraction.pdf import read_pdf
from clara.corpus.extraction.text import clean
from clara.corpus.limits import Limits
from clara.data import DataError

from .made_files import archive_of, docx_of, pdf_of

PAGE = """<!doctype html><html><head><title> Ports &amp;
 bays </title><style>p {}</style></head><body>
<nav><a href=x>menu</a></nav><script>alert("&lt;")</script><noscript>no script</noscript>
<h1>The <em>ports</em></h1>
<p>One&nbsp;and
   <b>two</b>,<!-- not said --> <br> three.</p>
loose
<ul><li>first</li>
<li><p>second</p></li></ul>
<h3>Bays</h3>
<table><thead><tr><th>bay</th><th>depth</th></tr></thead>
<tbody><tr><td>A</td><td>3</td></tr></tbody></table>
<pre>  x = 1
    y  = 2</pre>
<p hidden>hidden</p><template><p>template</p></template><svg><title>drawn</title></svg>
<div>a<div>b</div>c</div></body></html>"""
SHOWN = """The ports

One and two,
three.

loose

first

second

Bays

bay\tdepth
A\t3

x = 1
    y  = 2

a

b

c"""


def html_of(content, limits=None):
    raw = content.encode() if isinstance(content, str) else content
    return read_html(io.BytesIO(raw), limits or Limits())


def test_what_a_page_shows():
    found = html_of(PAGE)
    assert found.text == SHOWN
    assert found.title == "Ports & bays"
    assert [mark.label for mark in found.marks] == ["# The ports", "### Bays"]
    assert [found.text[mark.offset :].split("\n")[0] for mark in found.marks] == [
        "The ports",
        "Bays",
    ]


def test_signs_that_link_to_a_heading_are_left_out():
    page = "<h2>Ports<a href='#ports'> ¶</a></h2><p><a href='#x'>Berths</a> <a href='/n'>#</a> 1"
    found = html_of(page)
    assert (found.text, found.marks[0].label) == ("Ports\n\nBerths # 1", "## Ports")


def test_items_and_rows_stand_on_lines_of_their_own():
    assert html_of("<p>a<ul><li>b<li>c</ul>d").text == "a\n\nb\nc\n\nd"
    assert html_of("<table><tr><td>a<td>b<tr><td>c</table>").text == "a\tb\nc"


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("<h2>First</h2><h1>Second</h1>", "First"),
        ("<p>text", None),
        ("<title> </title><p>text", None),
        ("<svg><title>drawn</title></svg><p>text", None),
    ],
)
def test_the_title_of_a_page(content, title):
    assert html_of(content).title == title


@pytest.mark.parametrize(
    "content",
    [
        "<p>shown<script>alert(1)<p>no</script>",
        "<p>shown<style><p>no</style>",
        "<p>shown<!--><p no>-->",
        "<p>shown<iframe src=javascript:alert(1)><p>no</iframe>",
        "<p onclick=alert(1)>shown</p><",
        "<p>sho<b>wn</p></b></div></table>",
        "<p>&#115;&#x68;own&#0;</p>"[:25],
        "<p>shown\x08\x1b</p>",
    ],
)
def test_hostile_markup(content):
    assert "no" not in html_of(content).text
    assert "alert" not in html_of(content).text
    assert not set(html_of(content).text) & {"\x08", "\x1b", "\0"}
    assert html_of(content).text.replace("\ufffd", "").startswith("shown")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<p>Z\xc3\xbcrich", "Zürich"),
        (b"\xef\xbb\xbf<meta charset=latin1><p>Z\xc3\xbcrich", "Zürich"),
        (b"<meta charset='iso-8859-1'><p>Z\xfcrich \x80", "Zürich €"),
        (b'<meta http-equiv=a content="text/html; charset=shift_jis"><p>\x83A', "ア"),
        (b"<?xml version='1.0' encoding='windows-1251'?><p>\xcc", "М"),
    ],
)
def test_encodings(content, text):
    assert html_of(content).text == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<p>Z\xfcrich", "^is not valid UTF-8: byte 0xfc at offset 4$"),
        (b"<p>Z\0rich", "^holds a NUL byte at offset 4"),
        ("<p>Zürich".encode("utf-16"), "^is text in UTF-16"),
        (b"<meta charset=utf-7><p>x", "^names the encoding 'utf-7', which is not read"),
        (b"<meta charset=zlib><p>x", "^names the encoding 'zlib', which is not read"),
        (
            b"<meta charset=euc-jp><p>\xff",
            "^is not in the encoding euc-jp that it names: byte 0xff",
        ),
        (b"<title>only</title><script>code</script>", "^holds no text$"),
        (b"", "^holds no text$"),
        (b"<p>" + b"x" * 101, "^the text is longer than 0.0001 MB, the limit document_mb$"),
    ],
)
def test_bad_pages(content, message):
    with pytest.raises(DataError, match=message):
        html_of(content, Limits(document_mb=0.0001))


def pdf(content, limits=None):
    return read_pdf(io.BytesIO(content), limits or Limits())


def test_pages_of_a_pdf_file():
    found = pdf(pdf_of(["The first page", "", "The third page"], title="Report \\(2\\)"))
    assert found.text == "The first page\n\nThe third page"
    assert [tuple(mark) for mark in found.marks] == [(0, "page 1"), (16, "page 3")]
    assert found.title == "Report (2)"
    assert pdf(b"a line before\n" + pdf_of(["text"])).title is None


def encrypted(password):
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_of(["secret"])))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_encrypted_pdf_files():
    assert pdf(encrypted("")).text == "secret"
    with pytest.raises(DataError, match=r"^is encrypted; remove its password first$"):
        pdf(encrypted("password"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^is not a PDF file$"),
        (b"<html>", "^is not a PDF file$"),
        (b"%PDF-1.4 and no more", "^is damaged: the file cannot be read: "),
        (pdf_of(["", ""]), "^holds no text; its pages may be scanned pictures$"),
        (pdf_of(["x" * 60, "y" * 60]), "^the text is longer than 0.0001 MB"),
        (pdf_of(["a", "(b"]), "^is damaged: page 2 cannot be read: "),
        (
            pdf_of(["a", "b"]).replace(b"6 0 R]", b"9 0 R]"),
            "^is damaged: of 2 pages that it says it has, 1 can be found$",
        ),
    ],
)
def test_bad_pdf_files(content, message):
    with pytest.raises(DataError, match=message):
        pdf(content, Limits(document_mb=0.0001))


def word(content, limits=None):
    return read_docx(io.BytesIO(content), limits or Limits())


def test_a_word_document():
    found = word(docx_of())
    blocks = ["Manual", "Start", "Press the \tbutton.", "part\tnumber\nbolt\t7\nall of them"]
    assert found.text == "\n\n".join([*blocks, "Stop", "Pull it."])
    assert found.title == "Manual"
    assert [mark.label for mark in found.marks] == ["# Manual", "# Start", "## Stop"]
    assert found.text[found.marks[2].offset :].startswith("Stop")


def test_tables_within_tables_and_merged_columns():
    document = docx.Document()
    table = document.add_table(2, 2)
    table.cell(0, 0).merge(table.cell(1, 0)).text = "tall"
    table.cell(0, 1).text = "b"
    inner = table.cell(1, 1).add_table(1, 2)
    inner.cell(0, 0).text, inner.cell(0, 1).text = "in", "ner"
    document.core_properties.title = " Named\n"
    file = io.BytesIO()
    document.save(file)
    found = word(file.getvalue())
    assert (found.text, found.title) == ("tall\tb\nin ner", "Named")


def lying_archive():
    """A document that says that its text is shorter than it is."""
    files = {}
    with zipfile.ZipFile(io.BytesIO(docx_of())) as archive:
        for entry in archive.infolist():
            files[entry.filename] = archive.read(entry)
    true = len(files["word/document.xml"]) + 5_000_000
    files["word/document.xml"] += b" " * 5_000_000
    content = archive_of(files)
    assert content.count(struct.pack("<I", true)) == 2
    return content.replace(struct.pack("<I", true), struct.pack("<I", 500))


def with_broken_stream():
    """A document whose text cannot be unpacked."""
    content = bytearray(docx_of())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo("word/document.xml")
    begin = entry.header_offset + 30 + len(entry.filename) + len(entry.extra)
    content[begin : begin + 40] = b"\xff" * 40
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^is not a Word document"),
        (b"PK\x03\x04 and no more", "^is not a Word document"),
        (docx_of()[:-30], "^is not a Word document .* or is damaged$"),
        (archive_of({"a.txt": b"x"}), "^is damaged: "),
        (with_broken_stream(), "^is damaged: "),
        (archive_of({"a.txt": b"x" * 2_000_000}), "^expands to 2 MB, the limit expanded_mb is 1$"),
        (archive_of({f"{n}": b"" for n in range(10_001)}), "^holds 10,001 files"),
        (lying_archive(), "^is damaged: "),
    ],
)
def test_bad_word_documents(content, message):
    with pytest.raises(DataError, match=message):
        word(content, Limits(expanded_mb=1))


def test_an_empty_word_document():
    file = io.BytesIO()
    docx.Document().save(file)
    with pytest.raises(DataError, match=r"^holds no text$"):
        word(file.getvalue())
    with pytest.raises(DataError, match=r"^the text is longer than 2e-05 MB"):
        word(docx_of(), Limits(document_mb=0.00002))


def test_entities_of_xml_are_not_expanded():
    files = {}
    with zipfile.ZipFile(io.BytesIO(docx_of())) as archive:
        for entry in archive.infolist():
            files[entry.filename] = archive.read(entry)
    entities = b'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd"><!ENTITY z "laugh">]>'
    text = files["word/document.xml"].replace(b"Pull it.", b"&f;&z;")
    begin = text.index(b"<w:document")
    files["word/document.xml"] = text[:begin] + entities + text[begin:]
    found = word(archive_of(files))
    assert "root:" not in found.text
    assert "laugh" not in found.text


def test_characters_that_no_text_has():
    assert clean("a\0b\x1bc\ud83d\ude00d\ud83de\tf\n") == "abc😀d\ufffde\tf\n"


def test_controls_and_tracked_insertions_are_read():
    document = docx.Document()
    document.add_paragraph("The harbour ")
    around = {name: f'<w:{name} xmlns:w="{nsmap["w"]}"' for name in ("sdt", "ins", "del")}
    run = "<w:r><w:t>{}</w:t></w:r>"
    insertion = f'{around["ins"]} w:id="1">{run.format("is open")}</w:ins>'
    deletion = f'{around["del"]} w:id="2"><w:r><w:delText>is shut</w:delText></w:r></w:del>'
    for xml in (insertion, deletion):
        document.paragraphs[0]._p.append(parse_xml(xml))
    inner = f"<w:sdt><w:sdtContent><w:p>{run.format('Ask.')}</w:p></w:sdtContent></w:sdt>"
    row = f"<w:tr><w:tc><w:p>{run.format('cell')}</w:p></w:tc></w:tr>"
    grid = "<w:tblGrid><w:gridCol/></w:tblGrid>"
    table = f"<w:tbl>{grid}<w:sdt><w:sdtContent>{row}</w:sdtContent></w:sdt></w:tbl>"
    control = f"{around['sdt']}><w:sdtContent>{inner}{table}</w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(control))
    document.element.body.insert(2, parse_xml(f"{around['sdt']}/>"))
    file = io.BytesIO()
    document.save(file)
    assert word(file.getvalue()).text == "The harbour is open\n\nAsk.\n\ncell"
