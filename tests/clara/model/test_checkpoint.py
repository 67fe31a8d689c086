import json
import re
import shutil
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from clara import Clara, ClaraConfig
from clara.config import PromptTemplate

from ..random_adapters import draw_adapters

CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32", top_k=2
)
ADAPTERS = ("compressor", "query_reasoner", "generator")
TEXTS = ["The river runs north.", "Grain is traded for salt.", "Nobody knows it."]
QUESTIONS = ["Where is the river?", "Who trades salt?"]


@pytest.fixture(scope="module")
def model(tiny_backbone):
    model = Clara.from_backbone(tiny_backbone("llama"), CONFIG)
    return draw_adapters(model, seed=7)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


# What is written


def test_files(saved):
    names = {str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file()}
    expected = {"config.json", "memory_tokens.safetensors", "README.md", "tokenizer.json"}
    for name in ADAPTERS:
        expected |= {f"{name}/adapter_config.json", f"{name}/adapter_model.safetensors"}
    assert names == expected | {"tokenizer_config.json", "chat_template.jinja"}


def test_only_our_own_rows_and_adapters_are_written(saved):
    rows = load_file(saved / "memory_tokens.safetensors")
    assert {name: list(value.shape) for name, value in rows.items()} == {
        "memory": [4, 48],
        "encode": [1, 48],
        "separator": [1, 48],
    }
    for name in ADAPTERS:
        state = load_file(saved / name / "adapter_model.safetensors")
        assert all(".lora_A." in key or ".lora_B." in key for key in state)


def test_no_file_is_a_pickle(saved):
    for file in saved.rglob("*"):
        if file.is_file():
            start = file.read_bytes()[:2]
            assert start != b"PK", file
            assert not start.startswith(b"\x80"), file


def test_peft_reads_the_adapters(saved, model):
    backbone = AutoModelForCausalLM.from_pretrained(model.config.backbone, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(backbone, saved / "generator")
    parameters = dict(loaded.named_parameters())
    for name, value in model.adapters.state("generator").items():
        theirs = parameters["base_model.model." + name.replace(".weight", ".default.weight")]
        assert torch.equal(theirs, value)


def test_transformers_reads_the_tokenizer(saved, model):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.get_vocab() == model.tokenizer.tokenizer.get_vocab()


def test_model_card(saved, model):
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "16x" in card
    metadata = huggingface_hub.ModelCard(card).data
    # A path on this machine is no model that the hub knows.
    assert metadata.base_model is None
    assert str(Path(model.config.backbone).parent) not in card


def test_saving_does_not_change_the_model(model, saved, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "again")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for file in saved.rglob("*"):
        if file.is_file():
            again = tmp_path / "again" / file.relative_to(saved)
            assert again.read_bytes() == file.read_bytes(), file


# What is read back


@pytest.mark.slow
def test_a_new_process_computes_the_same(model, saved, warm, tmp_path):
    script = """
import sys, torch
from safetensors.torch import save_file
from clara import Clara
folder, target, *rest = sys.argv[1:]
torch.set_num_threads(int(rest[0]))
model = Clara.from_pretrained(folder)
texts, questions = eval(rest[1]), eval(rest[2])
compressed = model.compress(texts)
save_file({"memory": compressed.memory, "queries": model.encode_queries(questions)}, target)
model.save_pretrained(target + "-again")
answers = model.answer(questions, compressed, max_new_tokens=12)
print(repr((model.fingerprint, [(a.text, [d.id for d in a.documents]) for a in answers])))
"""
    target = tmp_path / "computed.safetensors"
    arguments = [saved, target, torch.get_num_threads(), TEXTS, QUESTIONS]
    result = subprocess.run(
        [warm().python, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for file in saved.rglob("*.*"):
        again = tmp_path / "computed.safetensors-again" / file.relative_to(saved)
        assert again.read_bytes() == file.read_bytes(), file
    computed = load_file(target)
    compressed = model.compress(TEXTS)
    assert torch.equal(computed["memory"], compressed.memory)
    assert torch.equal(computed["queries"], model.encode_queries(QUESTIONS))
    answers = model.answer(QUESTIONS, compressed, max_new_tokens=12)
    expected = (model.fingerprint, [(a.text, [d.id for d in a.documents]) for a in answers])
    assert result.stdout.strip().splitlines()[-1] == repr(expected)


def test_everything_comes_back(model, saved):
    loaded = Clara.from_pretrained(saved)
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    own = model.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(module.training for module in loaded.modules())


def test_prompt_and_switches_come_back(tiny_backbone, tmp_path):
    prompt = PromptTemplate(system="", user="{memory} Frage: {question} ü")
    config = CONFIG.replace(prompt=prompt, separator=False, distinct_memory_tokens=False)
    model = Clara.from_backbone(tiny_backbone("llama"), config)
    model.save_pretrained(tmp_path / "model")
    loaded = Clara.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.memory_tokens.memory.shape == (1, 48)
    assert loaded.prompt_tokens("ü", 2) == model.prompt_tokens("ü", 2)


def test_merged_generator_at_load_time(model, saved):
    memory = model.compress(TEXTS).memory[None]
    merged = Clara.from_pretrained(saved, merge_generator=True)
    assert merged._merged is not None
    expected = model.generate(QUESTIONS[:1], memory, max_new_tokens=12)
    assert merged.generate(QUESTIONS[:1], memory, max_new_tokens=12) == expected
    assert torch.equal(merged.compress(TEXTS).memory, memory[0])


def test_fingerprints(model, saved):
    loaded = Clara.from_pretrained(saved)
    low = Clara.from_pretrained(saved, dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    assert low.fingerprint == loaded.fingerprint == model.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", loaded.fingerprint)
    with torch.no_grad():
        next(iter(loaded.adapters.parameters("generator").values())).add_(1)
        next(iter(loaded.adapters.parameters("query_reasoner").values())).add_(1)
        loaded.memory_tokens.separator.add_(1)
    assert loaded.fingerprint == model.fingerprint
    for change in (
        next(iter(loaded.adapters.parameters("compressor").values())),
        loaded.memory_tokens.memory,
        loaded.memory_tokens.encode,
    ):
        before = loaded.fingerprint
        with torch.no_grad():
            change[-1, -1] += 0.5
        assert loaded.fingerprint != before


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ("model.norm.weight", True),
        ("model.layers.0.mlp.up_proj.weight", True),
        ("model.embed_tokens.weight", True),
        ("lm_head.weight", False),  # memory does not depend on it
    ],
)
def test_fingerprint_knows_the_backbone(saved, tmp_path, tiny_backbone, changed, seen):
    other = shutil.copytree(tiny_backbone("llama"), tmp_path / "backbone")
    weights = load_file(other / "model.safetensors")
    weights[changed][-1] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    changed_model = Clara.from_pretrained(saved, backbone=other)
    assert changed_model.has_fingerprint(Clara.from_pretrained(saved).fingerprint) is not seen


def test_bfloat16_memory_is_close(model, saved):
    low = Clara.from_pretrained(saved, dtype="bfloat16").compress(TEXTS).memory
    assert low.dtype == torch.bfloat16
    exact = model.compress(TEXTS).memory
    cosine = torch.nn.functional.cosine_similarity(low.float().flatten(1), exact.flatten(1))
    assert cosine.min() > 0.99


# Settings at load time


@pytest.mark.parametrize(
    "settings",
    [
        {"compression_rate": 4},
        {"document_length": 128},
        {"lora_rank": 8},
        {"lora_alpha": 16},
        {"separator": False},
        {"distinct_memory_tokens": False},
        {"prompt": PromptTemplate(system="Other.", user="{memory}{question}")},
    ],
)
def test_contradictions_are_refused(saved, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name}=.* contradicts the checkpoint .*{name}="):
        Clara.from_pretrained(saved, **settings)


@pytest.mark.parametrize("settings", [{"compresion_rate": 16}, {"quantisation": None}])
def test_unknown_settings_are_refused(saved, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"unknown setting '{name}'"):
        Clara.from_pretrained(saved, **settings)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"dtype": "int8"}, {"quantization": "q4"}])
def test_bad_values_are_refused(saved, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        Clara.from_pretrained(saved, **settings)


def test_run_settings_are_accepted(saved):
    model = Clara.from_pretrained(
        saved,
        top_k=3,
        dtype="bfloat16",
        overflow="error",
        temperature=0.5,
        mask="reference",
        compression_rate=16,
        lora_rank=4,
        device="cpu",
    )
    assert model.config.top_k == 3
    assert model.dtype == torch.bfloat16
    assert model.rank(QUESTIONS, TEXTS).indices.shape == (2, 3)
    with pytest.raises(ValueError, match="the limit is 64"):
        model.compress(["word " * 200])


# Damage


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("damage", ["folder", "weights", "truncated", "empty"])
def test_a_damaged_adapter_is_named(folder, name, damage):
    weights = folder / name / "adapter_model.safetensors"
    if damage == "folder":
        shutil.rmtree(folder / name)
    elif damage == "weights":
        weights.unlink()
    else:
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(ValueError, match=name) as caught:
        Clara.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_with_other_keys_or_shapes(folder):
    file = folder / "generator" / "adapter_model.safetensors"
    state = load_file(file)
    first = next(iter(state))
    save_file({k: v for k, v in state.items() if k != first}, file)
    with pytest.raises(ValueError, match="adapter 'generator' does not fit the backbone: it lacks"):
        Clara.from_pretrained(folder)
    save_file({**state, "extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="has the unknown key 'extra'"):
        Clara.from_pretrained(folder)
    save_file({**state, first: torch.zeros(8, 8)}, file)
    with pytest.raises(ValueError, match=r"is \[8, 8\], expected"):
        Clara.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated", "renamed", "shape"])
def test_damaged_memory_tokens(folder, damage):
    file = folder / "memory_tokens.safetensors"
    rows = load_file(file)
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "renamed":
        save_file({"memory": rows["memory"]}, file)
    else:
        save_file({**rows, "memory": rows["memory"][:2].contiguous()}, file)
    with pytest.raises(ValueError, match=r"memory_tokens\.safetensors"):
        Clara.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "llama"}', "not a CLaRa configuration"),
        ("{", "cannot read the configuration"),
        ("[]", "not a JSON object"),
        ('{"clara_format": 2}', "clara_format 2 is not supported"),
        ('{"clara_format": 1, "surprise": 1}', "unknown setting 'surprise'"),
        ('{"clara_format": 1, "compression_rate": "x"}', "compression_rate"),
        ('{"clara_format": 1}', "names no backbone"),
    ],
)
def test_a_config_of_another_kind(folder, content, message):
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Clara.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_folders_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "nowhere", "./nowhere", "nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="does not exist"):
            Clara.from_pretrained(name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"does not exist|not a CLaRa model"):
        Clara.from_pretrained(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"not a CLaRa model: it holds no config\.json"):
        Clara.from_pretrained(tmp_path / "empty")


def test_a_bare_backbone_is_no_model(tiny_backbone):
    with pytest.raises(ValueError, match="not a CLaRa configuration"):
        Clara.from_pretrained(tiny_backbone("llama"))


# Another place for the backbone


def test_backbone_may_have_moved(model, folder, tmp_path):
    moved = shutil.copytree(model.config.backbone, tmp_path / "moved")
    config = json.loads((folder / "config.json").read_text())
    config["backbone"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gone' does not exist"):
        Clara.from_pretrained(folder)
    loaded = Clara.from_pretrained(folder, backbone=moved)
    assert torch.equal(loaded.compress(TEXTS).memory, model.compress(TEXTS).memory)
    assert loaded.config.backbone == str(moved)


def test_a_relative_backbone_is_found_from_anywhere(model, tmp_path, monkeypatch):
    shutil.copytree(model.config.backbone, tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    Clara.from_backbone("backbone", CONFIG).save_pretrained("model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Clara.from_pretrained("../model").compress(TEXTS).memory.isfinite().all()


def test_a_backbone_of_another_size_is_refused(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    other = tmp_path / "wide"
    small = LlamaConfig.from_pretrained(config["backbone"])
    small.update({"hidden_size": 64, "head_dim": 16})
    AutoModelForCausalLM.from_config(small).save_pretrained(other)
    AutoTokenizer.from_pretrained(config["backbone"]).save_pretrained(other)
    with pytest.raises(ValueError, match="adapter 'compressor' does not fit the backbone"):
        Clara.from_pretrained(saved, backbone=other)


# The hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's calls, recorded; what is uploaded is kept."""
    calls = []

    def create_repo(self, repo_id, **keywords):
        calls.append(("create", repo_id, self.token, keywords))

    def upload_folder(self, *, repo_id, folder_path, **keywords):
        shutil.copytree(folder_path, tmp_path / "uploaded")
        calls.append(("upload", repo_id, self.token, keywords))
        return f"https://hub.example/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return calls


def test_push_to_hub(model, hub, tmp_path):
    address = model.push_to_hub("someone/model", private=True, token="secret")
    assert address == "https://hub.example/someone/model/commit/1"
    assert [call[:3] for call in hub] == [
        ("create", "someone/model", "secret"),
        ("upload", "someone/model", "secret"),
    ]
    assert hub[0][3]["private"] is True
    assert hub[0][3]["exist_ok"] is True
    loaded = Clara.from_pretrained(tmp_path / "uploaded")
    assert torch.equal(loaded.compress(TEXTS).memory, model.compress(TEXTS).memory)
    written = b"".join(f.read_bytes() for f in (tmp_path / "uploaded").rglob("*") if f.is_file())
    assert b"secret" not in written
