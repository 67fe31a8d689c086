"""An export that many tests look at."""

import shutil

import pytest

from clara.integrations.export import export_merged

from .models import SPANS, new_model


@pytest.fixture(scope="module")
def model(tiny_backbone):
    return new_model(tiny_backbone("llama"), SPANS)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "out"
    export_merged(model, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(written, tmp_path / "out")
