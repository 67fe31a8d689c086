"""A server of ours that writes questions, documents for it, and a run with both."""

import json

import pytest

from clara.data.records import Document
from clara.synthesis.document import Limits
from clara.synthesis.generators import Sampling
from clara.synthesis.prompts import SynthesisPrompts
from clara.synthesis.run import SynthesisSettings, synthesize
from clara.synthesis.server import OpenAIGenerator

from .server import Server

FACTS = [
    ("capital", "Arvia", "Brenn"),
    ("river", "Arvia", "Corlo"),
    ("motto", "Arvia", "Unity"),
    ("anthem", "Arvia", "Dawn"),
]


@pytest.fixture
def server(monkeypatch):
    """Requests that fail are sent to it again after some hundredths of a second."""
    monkeypatch.setattr("clara.synthesis.server.FIRST_PAUSE", 0.02)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def documents():
    """Twelve documents of one to four facts."""
    made = []
    for row in range(12):
        facts = [f"The {x} of {y}{row} is {z}{row}." for x, y, z in FACTS[: 1 + row % 4]]
        made.append(Document(id=f"d{row}", text=" ".join(facts)))
    return made


@pytest.fixture
def run(server, tmp_path, documents):
    """A function that synthesises from documents into `tmp_path / name`."""

    def go(name="out.jsonl", only=None, *, concurrency=4, limits=(10, 10), prices=(), **sampling):
        sampling = Sampling(**{"timeout": 5.0, "retries": 2, **sampling})
        generator = OpenAIGenerator("m", server.url, sampling, concurrency)
        settings = SynthesisSettings(SynthesisPrompts(), Limits(*limits), 0, *prices)
        path = tmp_path / name
        report = synthesize(documents if only is None else only, path, generator, settings)
        return report, [json.loads(line) for line in path.read_text().splitlines()]

    return go


def by_kind(records, document):
    return {r["kind"]: r for r in records if r["document_id"] == document}
