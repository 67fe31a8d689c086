import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import clara
from clara.config import ClaraConfig
from clara.errors import ClaraError, reason

OF_CONTROL_FLOW = {
    "clara.backbone.decoder_layout.Undecodable",
    "clara.backbone.hub._Unavailable",
    "clara.synthesis.document.CallFailedError",
    "clara.synthesis.document.LeftOutError",
    "clara.synthesis.generators.RequestFailedError",
    "clara.synthesis.server._PassingError",
}
"""What the module that raises it, or the one above, always catches: nothing for a user to fix."""


def error_classes():
    """Every class of errors that a module of the package defines."""
    for module in pkgutil.walk_packages(clara.__path__, "clara."):
        members = vars(importlib.import_module(module.name)).values()
        for kind in members:
            of_errors = inspect.isclass(kind) and issubclass(kind, Exception)
            if of_errors and kind.__module__ == module.name:
                yield kind


def test_every_error_of_the_package_has_one_base():
    kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in error_classes()}
    assert {"clara.backbone.files.BackboneError", "clara.index.errors.MemoryIndexError"} <= set(
        kinds
    )
    others = {name for name, kind in kinds.items() if not issubclass(kind, ClaraError)}
    assert others == OF_CONTROL_FLOW


@pytest.mark.parametrize(
    "name",
    [
        "backbone.attention_patterns.UnsupportedAttentionError",
        "backbone.files.BackboneError",
        "backbone.hub.HubError",
        "data.factbook.FactbookError",
        "errors.SavedModelError",
        "data.values.DataError",
        "index.errors.DuplicateIdError",
        "index.errors.MemoryIndexError",
        "reports.results.ResultsError",
        "synthesis.replies.UnreadableReplyError",
        "training.folder.RunError",
        "training.settings.SettingsError",
        "training.state.CheckpointError",
        "training.trainer.TrainingError",
        "weights.reference.ConversionError",
    ],
)
def test_errors_stay_value_errors(name):
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(f"clara.{module}"), kind), ValueError)


def test_a_folder_without_a_model_is_no_bare_value_error(tmp_path):
    (tmp_path / "config.json").write_text('{"clara_format": 9}')
    for load in (clara.Clara.from_pretrained, lambda path: ClaraConfig.load(path / "config.json")):
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(ClaraError):
                load(path)


def test_the_base_costs_no_import():
    code = "import sys, clara.errors; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "options", "expected"),
    [
        (ValueError("a\n  b\tc "), {}, "a b c"),
        (KeyError(), {}, "KeyError"),
        (ValueError(" \n "), {}, "ValueError"),
        (ValueError("\nfirst  line\nsecond"), {"first_line": True}, "first line"),
        (ValueError("abcdef"), {"longest": 6}, "abcdef"),
        (ValueError("abcdefg"), {"longest": 6}, "abcde…"),
        (ValueError("x" * 500), {"longest": None}, "x" * 500),
        (ValueError("x" * 500), {}, "x" * 199 + "…"),
    ],
)
def test_the_reason_is_one_line(error, options, expected):
    assert reason(error, **options) == expected
