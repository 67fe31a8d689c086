"""The packages that reporters need, checked before anything is loaded."""

import pytest

from clara.training.arguments import ClaraTrainingArguments
from clara.training.settings import SettingsError, check_reporters


@pytest.mark.parametrize(
    ("report_to", "package"),
    [
        ("wandb", "wandb"),
        (["none", "trackio"], "trackio"),
        ("tensorboard", "tensorboard"),
        ("comet_ml", "comet-ml"),
        ("dagshub", "dagshub"),
    ],
)
def test_a_reporter_that_is_not_installed(monkeypatch, report_to, package):
    monkeypatch.setattr("clara.training.reporters.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=f"needs the package {package}, .*pip install"):
        check_reporters(report_to)


def test_reporters_that_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clara.training.reporters.find_spec",
        lambda name: object() if name == "tensorboardX" else None,
    )
    for report_to in (None, "none", "all", [], "tensorboard", ["tensorboard"]):
        check_reporters(report_to)
    with pytest.raises(SettingsError, match=r"report_to must be one of none, all, .*'paper'"):
        ClaraTrainingArguments(output_dir=str(tmp_path), report_to="paper")
