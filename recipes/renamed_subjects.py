"""Questions and candidates in which countries have other names: none is to be learnt by heart.

    python recipes/renamed_subjects.py TARGET [--examples data/factbook/ranking.train.jsonl]

A query reasoner that is trained on some 200 countries knows those: on held-out ones it finds the
right entry far less often than the right label. Here most questions are on a subject whose name is
drawn from thousands, the names in the training passages. The passages of that subject bear the new
name, too, and so do half of the others: else a strange name would tell which passage is asked for.
Names of countries that are held out are never drawn. A row has eight of the candidates, as each
renamed passage is a new one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clara.data.examples import RankingExample, contrastive_example, open_examples
from clara.data.factbook.build import load_factbook, split_of
from clara.data.records import write_jsonl
from clara.errors import ClaraError
from clara.terminal.printing import say

DATA = Path("data") / "factbook"
ROWS = 24_000
CANDIDATES = 8
CHANGED, CHANGED_ANSWER = 0.5, 0.6
"""How often another subject gets a new name, and how often the one that is asked about."""
LEAST = CANDIDATES  # names, so that all subjects of a row can have different ones
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-zé]{2,}(?: [A-Z][a-zé]{2,})?")
"""One or two capitalised words inside a sentence or list."""


class RenamingError(ClaraError, ValueError):
    """There is nothing to rename, or no name to give."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Give the subjects of questions other names.")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument(
        "--examples", type=Path, default=DATA / "ranking.train.jsonl", help="default: %(default)s"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        print(json.dumps(write_renamed(given.target, given.examples, given.rows)))
    except (ClaraError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


def write_renamed(target: Path, source: Path, count: int = ROWS) -> dict[str, int]:
    """Write so many questions with candidates.

    Args:
        source: questions with candidates, as for the end-to-end stage.

    Returns:
        The numbers of "names" that are drawn from, and of "rows".

    Raises:
        RenamingError: `target` exists, or the source has too few names or none to replace.
        DataError: see `open_examples`.
    """
    if target.exists():
        raise RenamingError(f"{target}: exists; name a new file")
    examples = open_examples(str(source), "train", contrastive_example)[:]
    held_out = [c.name for c in load_factbook() if split_of(c.code) != "train"]
    names = names_in((text for each in examples for text in each.documents), held_out)
    write_jsonl(target, list(islice(renamed_rows(examples, names), count)))
    return {"names": len(names), "rows": count}


def names_in(texts: Iterable[str], held_out: Iterable[str]) -> list[str]:
    """Names in passages, without those that share a word with a name that is held out.

    Raises:
        RenamingError: there are too few.
    """
    kept_out = set().union(*(words(name) for name in held_out))
    found = {name for text in set(texts) for name in NAME.findall(text)}
    names = sorted(name for name in found if not words(name) & kept_out)
    if len(names) < LEAST:
        raise RenamingError(f"the passages hold {len(names)} names, at least {LEAST} are needed")
    return names


def words(name: str) -> set[str]:
    """The words of a name that are capitalised, in small letters."""
    return {word.strip(",").lower() for word in name.split() if word[0].isupper()}


def subject(document: str) -> str:
    """What a document is about: the words before the first colon of its first line."""
    return document.split("\n", 1)[0].split(":", 1)[0]


def renamed_rows(
    examples: Sequence[RankingExample], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows without end: the examples are gone through repeatedly, with other names each time.

    Raises:
        RenamingError: no question names its subject.
    """
    drawn = random.Random(0)
    usable = [example for example in examples if names_its_subject(example)]
    if not usable:
        raise RenamingError("no question names the subject of the passage that answers it")
    while True:
        drawn.shuffle(usable)
        for example in usable:
            yield renamed(example, names, drawn)


def names_its_subject(example: RankingExample) -> bool:
    """Whether the name in front of the passage that answers is in the question, too."""
    answers = [example.documents[at] for at in example.positives]
    return bool(answers) and pattern(subject(answers[0])).search(example.question) is not None


def renamed(example: RankingExample, names: Sequence[str], drawn: random.Random) -> dict[str, Any]:
    """The example with fewer candidates and other names; some keep their own."""
    answer = example.documents[example.positives[0]]
    own, positives = subject(answer), set(example.positives)
    others = [text for at, text in enumerate(example.documents) if at not in positives]
    chosen = drawn.sample(others, min(CANDIDATES - 1, len(others)))
    subjects = dict.fromkeys(subject(text) for text in chosen if subject(text) != own)
    changed = [each for each in subjects if drawn.random() < CHANGED]
    if drawn.random() < CHANGED_ANSWER:
        changed.append(own)
    new = dict(zip(changed, drawn.sample(names, len(changed)), strict=True))

    def rename(text: str, old: str) -> str:
        return pattern(old).sub(lambda found: new[old], text) if old in new else text

    place = drawn.randrange(len(chosen) + 1)
    documents = [rename(text, subject(text)) for text in chosen]
    documents.insert(place, rename(answer, own))
    return {"question": rename(example.question, own), "docs": documents, "pos_index": [place]}


def pattern(name: str) -> re.Pattern[str]:
    """Finds a name as a whole word, its article left out."""
    return re.compile(rf"\b{re.escape(re.sub('^The ', '', name))}\b")


if __name__ == "__main__":
    sys.exit(main())
