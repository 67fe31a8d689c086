"""What tests of several readers use."""

import os

import pytest

from clara.corpus.extraction.process import Extractor
from clara.corpus.limits import Limits


@pytest.fixture
def opened(tmp_path):
    """A descriptor of a file with some content."""

    def open_file(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return os.open(path, os.O_RDONLY)

    return open_file


@pytest.fixture(scope="module")
def extractor():
    with Extractor(Limits(seconds=20)) as made:
        yield made
