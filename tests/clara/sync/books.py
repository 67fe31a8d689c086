"""Sources of builds, and what builds make of them."""

import json

from clara.index import MemoryIndex

GUIDE = "# Guide\n\nThe harbour is open all year.\n\n## Prices\n\nA night costs thirty florins.\n"


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def opened(tmp_path):
    return MemoryIndex.open(tmp_path / "index")


def counts(built):
    return built.added, built.replaced, built.unchanged, built.deleted, built.failed
