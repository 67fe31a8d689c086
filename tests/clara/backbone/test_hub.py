"""Models on the hub: what is downloaded, what the cache gives, and why a model is not there."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from clara import Clara, ClaraConfig
from clara.backbone import hub
from clara.backbone.loading import BackboneError, backbone_digest, load_backbone, resolve_backbone
from clara.model import checkpoint
from clara.weights.reference import ConversionError, convert_reference

from .hub_server import serving, within

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
)
TEXTS = ["The river runs north."]
NAME = "someone/model"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub that serves nothing yet, an empty cache, and a process that has asked nobody."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        path = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + path)
        yield served


def forget(monkeypatch):
    """What a new process would not know."""
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setattr(hub, "_silent", {})


@pytest.fixture
def patient(monkeypatch):
    """Waiting times that a test can afford."""
    monkeypatch.setattr(hub, "FIRST_ANSWER", 0.5)
    monkeypatch.setattr(hub, "UPDATE_ANSWER", 0.5)


def refused(call, kind=ValueError):
    """The one line that a call fails with."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is downloaded


def test_a_backbone_is_downloaded_without_what_is_not_read(server, tmp_path, tiny_backbone):
    folder = shutil.copytree(tiny_backbone("llama"), tmp_path / "served")
    for extra in ("pytorch_model.bin", "model.gguf", "original/x.json", "consolidated.safetensors"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"x" * 10)
    server.models[NAME] = folder
    model = Clara.from_backbone(NAME, CONFIG)
    assert model.config.backbone == NAME
    plain = Clara.from_backbone(tiny_backbone("llama"), CONFIG)
    assert model.fingerprint == plain.fingerprint
    assert torch.equal(model.compress(TEXTS).memory, plain.compress(TEXTS).memory)
    got = {request.rpartition("/")[2] for request in server.requests if "resolve" in request}
    assert "model.safetensors" in got
    assert not {"pytorch_model.bin", "model.gguf", "x.json", "consolidated.safetensors"} & got
    model.save_pretrained(tmp_path / "saved")
    written = b"".join(f.read_bytes() for f in (tmp_path / "saved").rglob("*") if f.is_file())
    assert str(tmp_path).encode() not in written
    assert NAME in (tmp_path / "saved" / "README.md").read_text()


def test_shards_are_downloaded(server, tmp_path, tiny_backbone):
    folder = shutil.copytree(tiny_backbone("llama"), tmp_path / "served")
    (folder / "model.safetensors").unlink()
    plain = AutoModelForCausalLM.from_pretrained(tiny_backbone("llama"), dtype=torch.float32)
    plain.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model-99999-of-00003.safetensors").write_bytes(b"unused")
    server.models[NAME] = folder
    loaded, _ = load_backbone(NAME, device=torch.device("cpu"), dtype=torch.float32)
    own = plain.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    assert backbone_digest(NAME) == backbone_digest(str(tiny_backbone("llama")))
    assert not any("99999" in request for request in server.requests)
    assert loaded.config._name_or_path == NAME


def test_a_model_is_downloaded(server, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "served")
    (tmp_path / "served" / "training.pt").write_bytes(b"\x80")
    server.models[NAME] = tmp_path / "served"
    loaded = Clara.from_pretrained(NAME)
    assert loaded.fingerprint == tiny_model.fingerprint
    assert not any("training.pt" in request for request in server.requests if "resolve" in request)


def test_a_model_that_holds_its_backbone_is_downloaded(server, tiny_backbone, tmp_path):
    model = Clara.from_backbone(tiny_backbone("llama"), CONFIG)
    model.owns_backbone = True
    model.save_pretrained(tmp_path / "served")
    server.models[NAME] = tmp_path / "served"
    loaded = Clara.from_pretrained(NAME)
    assert loaded.owns_backbone
    assert torch.equal(loaded.compress(TEXTS).memory, model.compress(TEXTS).memory)


@pytest.mark.parametrize("place", ["", "/compression-16"])
def test_a_reference_checkpoint_is_converted_from_the_hub(server, tmp_path, place):
    served = tmp_path / "served"
    shutil.copytree(REFERENCE / "checkpoint", f"{served}{place}")
    (served / "other.pth").write_bytes(b"")
    server.models[NAME] = served
    convert_reference(NAME + place, tmp_path / "converted", backbone=REFERENCE / "base")
    convert_reference(REFERENCE / "checkpoint", tmp_path / "plain", backbone=REFERENCE / "base")
    converted, plain = (Clara.from_pretrained(tmp_path / n) for n in ("converted", "plain"))
    assert converted.fingerprint == plain.fingerprint
    assert not any("other.pth" in request for request in server.requests if "resolve" in request)
    server.failure = 500
    convert_reference(NAME + place, tmp_path / "again", backbone=REFERENCE / "base")


def test_what_is_tried_is_said(server, tiny_backbone, caplog):
    server.models[NAME] = tiny_backbone("llama")
    with caplog.at_level(logging.INFO, "clara.backbone.hub"):
        resolve_backbone(NAME)
    first, second = caplog.messages
    assert first == f"looking for {NAME} on the hub ({server.endpoint})"
    assert second.startswith(f"downloading {NAME} from the hub (0.")
    caplog.clear()
    resolve_backbone(NAME)
    assert not caplog.messages


# What is on the hub and cannot be used


def test_models_of_other_kinds(server, tmp_path, tiny_backbone):
    served = tmp_path / "served"
    shutil.copytree(REFERENCE / "checkpoint", served / "compression-4")
    server.models[NAME] = served
    message = refused(lambda: convert_reference(NAME, tmp_path / "x"), ConversionError)
    assert "'someone/model' on the hub is not a reference checkpoint" in message
    assert "has such checkpoints in 'someone/model/compression-4'" in message
    message = refused(lambda: Clara.from_pretrained(NAME))
    assert message.startswith("model 'someone/model' on the hub is not a CLaRa model: it holds a")
    assert "clara convert" in message
    assert "holds no config.json" in refused(lambda: Clara.from_backbone(NAME), BackboneError)
    server.models[NAME] = tiny_backbone("llama")
    assert "is not a CLaRa model" in refused(lambda: Clara.from_pretrained(NAME))
    assert "it has none" in refused(lambda: convert_reference(NAME, tmp_path / "x"))


def test_a_backbone_of_pickles_alone(server, tmp_path, tiny_backbone):
    folder = shutil.copytree(tiny_backbone("llama"), tmp_path / "served")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    server.models[NAME] = folder
    message = refused(lambda: Clara.from_backbone(NAME), BackboneError)
    assert "holds no weights as safetensors" in message


# Why a model does not come

CALLS = {
    "backbone": lambda target: Clara.from_backbone(NAME),
    "model": lambda target: Clara.from_pretrained(NAME),
    "checkpoint": lambda target: convert_reference(NAME, target / "converted"),
}
CAUSES = [
    (None, None, "there is no such model on the hub"),
    (404, "RepoNotFound", "there is no such model on the hub"),
    (401, "RepoNotFound", "there is no such model on the hub, or it is private: log in with"),
    (401, None, "it is private: log in with 'hf auth login'"),
    (403, "GatedRepo", "gated: accept its terms there and log in with 'hf auth login'"),
    (403, None, "refuses access (403): log in"),
    (500, None, "the hub answered with an error (500)"),
    (503, None, "the hub answered with an error (503)"),
    (429, None, "the hub answered with an error (429)"),
]


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(("status", "code", "cause"), CAUSES)
def test_the_cause_is_named(server, tmp_path, kind, status, code, cause):
    server.failure, server.error_code = status, code
    message = refused(lambda: CALLS[kind](tmp_path))
    assert message.startswith(f"{kind} 'someone/model' is not a local folder, and ")
    assert cause in message
    assert len(server.requests) == 1


HANGING = 60  # seconds, of which nobody waits for half


def unreachable(server, monkeypatch, way):
    if way == "hang":
        server.failure = "hang"
    elif way == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    elif way == "not a hub":
        server._info = lambda name: "a page to log in to the hotel's network"
        server.models[NAME] = Path()
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")

        def look_up(*arguments, **settings):
            if way == "slow name":
                time.sleep(HANGING)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)


WAYS = ["hang", "refused", "no name", "slow name"]


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("way", [*WAYS, "not a hub"])
def test_a_hub_that_cannot_be_reached(server, monkeypatch, patient, tmp_path, kind, way):
    unreachable(server, monkeypatch, way)
    with within(HANGING / 2):
        message = refused(lambda: CALLS[kind](tmp_path))
    absent = f"{kind} 'someone/model' is not a local folder"
    assert message.startswith(f"{absent}, and the hub cannot be")
    assert constants.ENDPOINT in message
    asked = []  # it is not asked again so soon
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: asked.append(1))
    refused(lambda: CALLS[kind](tmp_path))
    assert not asked


def test_a_network_that_is_gone_is_noticed_within_ten_seconds():
    assert hub.FIRST_ANSWER <= 6
    assert hub.UPDATE_ANSWER <= 3


def test_offline_mode_asks_nobody(server, monkeypatch, tiny_backbone):
    server.models[NAME] = tiny_backbone("llama")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(lambda: Clara.from_backbone(NAME), BackboneError)
    assert "not in the hub's cache on this machine (HF_HUB_OFFLINE is set)" in message
    assert not server.requests


@pytest.mark.parametrize("name", ["a b/c", "--x/y", "some..one/model", "x/y.git"])
def test_names_that_the_hub_cannot_have(server, name):
    assert "a model on the hub cannot have this name" in refused(
        lambda: Clara.from_pretrained(name)
    )
    assert not server.requests


# What the cache gives


@pytest.fixture
def cached(server, tiny_model, tiny_backbone, tmp_path, monkeypatch):
    """A model and its backbone in the cache, and a process that does not know of it yet."""
    server.models["someone/base"] = tiny_backbone("llama")
    served = tmp_path / "served"
    tiny_model.save_pretrained(served)
    config = json.loads((served / "config.json").read_text())
    (served / "config.json").write_text(json.dumps({**config, "backbone": "someone/base"}))
    server.models[NAME] = served
    Clara.from_pretrained(NAME)
    forget(monkeypatch)
    server.requests.clear()
    return tiny_model


@pytest.mark.parametrize("way", WAYS)
def test_a_cached_model_loads_without_network(cached, server, monkeypatch, patient, way):
    unreachable(server, monkeypatch, way)
    with within(HANGING / 2):
        loaded = Clara.from_pretrained(NAME)
    assert loaded.config.backbone == "someone/base"
    assert torch.equal(loaded.compress(TEXTS).memory, cached.compress(TEXTS).memory)
    assert len(server.requests) <= 1


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_cached_model_loads_though_the_hub_refuses(cached, server, status):
    server.failure = status
    assert Clara.from_pretrained(NAME).fingerprint == cached.fingerprint


def test_a_cached_model_loads_in_offline_mode(cached, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Clara.from_pretrained(NAME).fingerprint == cached.fingerprint
    assert not server.requests


def test_a_cached_model_costs_one_question(cached, server):
    Clara.from_pretrained(NAME)
    Clara.from_pretrained(NAME)
    assert server.requests == [f"GET /api/models/{NAME}", "GET /api/models/someone/base"]


def test_a_newer_revision_is_downloaded_by_the_next_process(cached, server, monkeypatch):
    before = Clara.from_pretrained(NAME).fingerprint
    with torch.no_grad():
        changed = Clara.from_pretrained(NAME)
        changed.memory_tokens.memory.add_(1)
    changed.save_pretrained(server.models[NAME])
    assert Clara.from_pretrained(NAME).fingerprint == before
    forget(monkeypatch)
    assert Clara.from_pretrained(NAME).fingerprint == changed.fingerprint != before


def test_a_download_that_broke_off_is_completed(cached, server, monkeypatch, tmp_path):
    folder = checkpoint.locate(NAME)
    forget(monkeypatch)
    (folder / "generator" / "adapter_model.safetensors").unlink()
    assert Clara.from_pretrained(NAME).fingerprint == cached.fingerprint
    forget(monkeypatch)
    (folder / "generator" / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the hub's cache" in refused(lambda: Clara.from_pretrained(NAME))


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer*.json"])
def test_a_backbone_that_is_here_in_part_is_completed(server, monkeypatch, tiny_backbone, lacking):
    server.models[NAME] = tiny_backbone("llama")
    folder = Path(resolve_backbone(NAME))
    expected = backbone_digest(NAME)
    forget(monkeypatch)
    for file in folder.glob(lacking):
        file.unlink()
    assert backbone_digest(NAME) == expected
    assert {file.name for file in folder.iterdir()} >= {"config.json", "tokenizer.json"}


# Commands


CLI = "from clara.cli.app import main; main()"


def command(*arguments, endpoint, folder):
    """Run `clara` with an empty cache of the hub."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
    }
    return subprocess.run(
        [sys.executable, "-c", CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env={**environment, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")},
    )


def test_a_command_says_what_it_tries_and_why_it_fails(server, tmp_path):
    result = command("init", NAME, "target", endpoint=server.endpoint, folder=tmp_path)
    assert result.returncode == 1
    looking, error = result.stderr.splitlines()
    assert looking == f"looking for {NAME} on the hub ({server.endpoint})"
    assert error == (
        f"error: backbone '{NAME}' is not a local folder, and there is no such model on the hub"
    )
    assert not (tmp_path / "target").exists()
