import pytest

from clara.data.records import Document

from .server import Server

FACTS = [
    ("capital", "Arvia", "Brenn"),
    ("river", "Arvia", "Corlo"),
    ("motto", "Arvia", "Unity"),
    ("anthem", "Arvia", "Dawn"),
]


@pytest.fixture
def server():
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
