"""Definitions and prose, from files like those of the packages, and from those where they are."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from clara.data import read_documents
from clara.data.definitions import DefinitionsError, Entry, read_wordnet, write_definitions
from clara.data.definitions.asking import pairs_of
from clara.data.definitions.build import RECONSTRUCTION, without_shared
from clara.data.definitions.passages import Piece, in_passages
from clara.data.definitions.prose import prose_folder, read_prose
from clara.data.definitions.wordnet import FOLDER
from clara.data.examples import ExampleFile, document_questions, pretraining_example
from clara.data.factbook.passages import estimated_tokens
from clara.training.prompts import RECONSTRUCTION_TASK

SPLITS = ("train", "validation", "test")
LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"
BURP = (
    "00005041 29 v 04 burp 0 bubble 0 belch 0 eruct 0 001 @ 00105333 v 0000 02 + 02 00 + 08 00 | "
    'expel gas from the stomach; "In China it is polite to burp at the table"  \n'
)
AFRAID = "00073465 00 a 01 afraid(p) 0 001 ! 00073761 a 0101 | filled with fear or apprehension  \n"
WRITTEN = {"docs", "documents", "reconstruction", "questions"}


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def noun(number):
    """A line of a noun that is like no other: an animal, or from 200 on a food."""
    subject = "05" if number < 200 else "13"
    gloss = f'creature number {number} of the {number * 7} hills; "we saw beast{number} once"'
    return f"{number:08} {subject} n 02 beast{number} 0 big_beast{number} 0 000 | {gloss}  \n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders like those of the two packages."""
    wordnet = tmp_path_factory.mktemp("wordnet")
    (wordnet / "data.noun").write_text(LICENCE + "".join(map(noun, range(1, 400))))
    (wordnet / "data.verb").write_text(LICENCE + BURP)
    (wordnet / "data.adj").write_text(LICENCE + AFRAID)
    (wordnet / "data.adv").write_text(LICENCE)
    prose = tmp_path_factory.mktemp("prose")
    (prose / "tutorial").mkdir()
    for number in range(30):
        (prose / "tutorial" / f"part{number}.rst.txt").write_text(
            f".. _part{number}:\n\n*******\nPart {number}\n*******\n\n"
            f"The class :class:`~part{number}.Thing` is what *part* {number} of the ``tutorial`` "
            "tells about,\nand `a link <https://example.org>`_ leads on to more.\n\n"
            "This sentence is in every part, so it may be in one split of the data only.\n\n"
            "* A list of points is no prose, however long it may be and whatever it says here.\n\n"
            "A program follows what ends like this, which would be half of a thing to say::\n\n"
            "    >>> print(1)\n"
        )
    return wordnet, prose


@pytest.fixture(scope="module")
def folder(sources, tmp_path_factory):
    written = tmp_path_factory.mktemp("definitions") / "new"
    wordnet, prose = sources
    counts = write_definitions(written, wordnet=wordnet, prose=prose)
    assert sorted(counts) == sorted(path.name for path in written.iterdir())
    assert {name: len(rows(written / name)) for name in counts} == counts
    return written


def test_entries(sources):
    entries = {entry.id: entry for entry in read_wordnet(sources[0])}
    burp = entries["v00005041"]
    assert burp.part == "verb"
    assert burp.subject == "body"
    assert burp.words == ("burp", "bubble", "belch", "eruct")
    assert burp.definition == "expel gas from the stomach"
    assert burp.examples == ("In China it is polite to burp at the table",)
    assert burp.line == (
        "burp, bubble, belch, eruct (verb): expel gas from the stomach; "
        '"In China it is polite to burp at the table"'
    )
    afraid = entries["a00073465"]
    assert afraid.words == ("afraid",)
    assert (afraid.subject, afraid.examples) == ("", ())
    assert entries["n00000007"].words == ("beast7", "big beast7")


def test_questions_have_one_answer_in_all_of_wordnet():
    def entry(name, words, gloss):
        return Entry(name, "noun", "", words, gloss)

    first = entry("n1", ("bank",), 'a slope; "they sat on the bank"')
    second = entry("n2", ("bank", "depository"), "a house for money")
    third = entry("n3", ("slope side",), "a slope")
    words = Counter({"bank": 2, "depository": 1, "slope side": 1})
    definitions = Counter({"a slope": 2, "a house for money": 1})
    pairs = list(pairs_of([first, second, third], words, definitions))
    assert not [pair for pair in pairs if pair.entry == "n1"]
    named = {(pair.kind, pair.answer) for pair in pairs if pair.entry == "n2"}
    assert named == {
        ("define", "a house for money"),
        ("synonym", "bank"),
        ("name", "bank"),
    }
    assert all('"bank"' not in pair.question for pair in pairs)
    assert {pair.kind for pair in pairs if pair.entry == "n3"} == {"define"}


def test_records_are_read_by_the_training_stages(folder):
    for split in SPLITS:
        for example in ExampleFile(folder / f"documents.{split}.jsonl", document_questions):
            (text,) = example.documents
            assert all(answer in text for answer in example.answers)
            assert len(set(example.questions)) == len(example.questions)
        repeated = list(ExampleFile(folder / f"reconstruction.{split}.jsonl", pretraining_example))
        for example in repeated:
            assert example.task == "paraphrase"
            assert example.questions == (RECONSTRUCTION,)
            assert example.answers == example.documents
        kinds = {example.documents[0].startswith("Dictionary: ") for example in repeated}
        assert kinds == {True, False}
    assert RECONSTRUCTION == RECONSTRUCTION_TASK


def test_splits_share_no_text(folder):
    owner = {}
    for split in SPLITS:
        for record in rows(folder / f"reconstruction.{split}.jsonl"):
            _, *lines = record["docs"][0].split("\n")
            for line in lines:
                assert owner.setdefault(line, split) == split
    assert sum("This sentence is in every part" in line for line in owner) == 1
    assert set(owner.values()) == set(SPLITS)


def test_a_definition_in_two_splits_stays_in_the_last():
    pieces = [Piece(f"{s}", s, "T", f"{s}: the same", "the same") for s in SPLITS]
    other = Piece("x", "train", "T", "x: other", "other")
    parted = without_shared([*pieces, other])
    assert parted == {"train": [other], "validation": [], "test": [pieces[2]]}


def test_questions_with_candidates(folder):
    texts = {document.id: document.text for document in read_documents(folder / "docs.jsonl")}
    for split in SPLITS[1:]:
        lines = rows(folder / f"questions.{split}.jsonl")
        assert lines
        passages = {r["docs"][0] for r in rows(folder / f"documents.{split}.jsonl")}
        for line in lines:
            (gold,) = line["positives"]
            assert gold in line["candidates"]
            assert line["golden_answers"][0] in texts[gold]
            assert {texts[name] for name in line["candidates"]} <= passages


def test_prose_is_plain(sources):
    texts = read_prose(sources[1])
    assert len(texts) == 30
    part = next(text for text in texts if text.name == "tutorial/part3")
    assert part.title == "Part 3"
    assert part.paragraphs == (
        "The class part3.Thing is what part 3 of the tutorial tells about, and a link leads on to "
        "more.",
        "This sentence is in every part, so it may be in one split of the data only.",
    )


def test_passages_are_short():
    pieces = [Piece(f"p{i}", "train", "Title", f"{i} " + "word " * i, f"{i}") for i in range(1, 30)]
    pages = list(in_passages(pieces, 24))
    assert max(estimated_tokens(page.document.text) for page in pages) <= 24
    kept = [piece for page in pages for piece in page.pieces]
    assert kept == pieces[: len(kept)]
    assert len(pages[0].pieces) > 1
    assert pages[0].document.id == "p1"


def test_two_processes_write_the_same_bytes(sources, folder, tmp_path):
    code = (
        "import sys; from clara.data.definitions import write_definitions as write; "
        "write(sys.argv[1], wordnet=sys.argv[2], prose=sys.argv[3])"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than here
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there"), *map(str, sources)],
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        check=True,
    )
    for path in folder.iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes(), path.name


def test_mistakes(sources, tmp_path, monkeypatch):
    wordnet, prose = sources
    with pytest.raises(DefinitionsError, match="package wordnet-base: apt-get install wordnet"):
        read_wordnet(tmp_path)
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_bytes((wordnet / f"data.{name}").read_bytes())
    (tmp_path / "data.verb").write_text(f"{LICENCE}no entry at all\n")
    with pytest.raises(DefinitionsError, match=r"data\.verb:2: not an entry of WordNet"):
        read_wordnet(tmp_path)
    with pytest.raises(DefinitionsError, match=r"holds no texts such as tutorial/classes\.rst"):
        read_prose(tmp_path)
    monkeypatch.setattr("clara.data.definitions.prose.PLACES", f"{tmp_path}/python3.*/sources")
    with pytest.raises(DefinitionsError, match=r"package python3\.11-doc: .*--no-prose"):
        prose_folder()
    for version in (9, 11):
        (tmp_path / f"python3.{version}" / "sources").mkdir(parents=True)
    assert prose_folder() == tmp_path / "python3.11" / "sources"
    with pytest.raises(DefinitionsError, match="max_tokens = 3 leaves no room"):
        write_definitions(tmp_path / "new", wordnet=wordnet, prose=prose, max_tokens=3)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the package wordnet-base")
def test_the_installed_wordnet(tmp_path):
    counts = write_definitions(tmp_path / "all", with_prose=False)
    assert counts["documents.train.jsonl"] > 35_000
    assert counts["questions.test.jsonl"] == counts["questions.validation.jsonl"] == 1_000
    owner = {}
    for split in SPLITS:
        for record in rows(tmp_path / "all" / f"reconstruction.{split}.jsonl"):
            for line in record["docs"][0].split("\n")[1:]:
                gloss = re.sub(r"^.*?\((?:noun|verb|adjective|adverb)\): ", "", line)
                assert owner.setdefault(gloss, split) == split
    assert {path.name.split(".")[0] for path in Path(tmp_path / "all").iterdir()} == WRITTEN
