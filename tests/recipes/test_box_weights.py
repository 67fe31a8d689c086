"""`recipes/box_weights.py`: the folder of weights that comes with the project, and its card."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from clara import Clara, ClaraConfig
from clara.backbone import packaged
from clara.cli.evaluation_inputs import load_tuned
from clara.data.records import Document
from clara.evaluation import evaluate
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.registry import entries_of
from clara.evaluation.systems.setup import Setup

from ..clara.random_adapters import draw_adapters

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "tests" / "data" / "reference" / "base"
ADAPTERS = ("compressor", "query_reasoner", "generator")
HOSTILE = "Who <b>built</b> | the `[dam](x)`?"
LOG = """# Training log

| ended | stage | steps | positions | hours | right |
|---|---|---:|---:|---:|---|
| today | instruct | 300 | 1,000 | 0.50 | 0.1 |
| today | instruct | 1,500 | 5,000 | 2.50 | 0.2 |
| today | text | 9,999 | 1 | 9.00 | |
| today | instruct | 2,700 | 9,000 | 4.25 | 0.3 |
"""


@pytest.fixture(scope="module")
def scripts_beside():
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        yield importlib.import_module("box_weights")
    finally:
        sys.path.remove(str(ROOT / "recipes"))


@pytest.fixture
def box(scripts_beside, tmp_path, monkeypatch):
    """The script, in a checkout of its own, where the tiny backbone is the copy in a package."""
    log = tmp_path / "training-log.md"
    log.write_text(LOG)
    weights = sys.modules["train_weights"]
    monkeypatch.setattr(weights, "LOG", log)
    monkeypatch.setattr(scripts_beside, "LOG", log)
    monkeypatch.setattr(scripts_beside, "MODELS", tmp_path / "models")
    monkeypatch.setattr("clara.data.factbook.smollm2_file", lambda: BASE)
    card = sys.modules["model_card"]
    monkeypatch.setattr(card, "sha256_of", lambda file: "5a" * 32)
    return scripts_beside


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, with a model in float32 whose three adapters differ."""
    folder = tmp_path_factory.mktemp("run") / "instruct"
    config = ClaraConfig(
        memory_form="spans", compression_rate=4, document_length=64, lora_rank=4, dtype="bfloat16"
    )
    model = draw_adapters(Clara.from_backbone(BASE, config.replace(dtype="float32")), seed=1)
    torch.manual_seed(0)
    for parameter in model.connectors.parameters():
        if parameter.ndim:
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.config = model.config.replace(dtype="bfloat16")
    model.save_pretrained(folder / "model")
    return folder


def refused(box, *arguments):
    with pytest.raises(ValueError) as caught:
        box.box(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_folder_loads_back_rounded(box, run, tmp_path, capsys):
    assert box.main([str(run)]) == 0
    made = tmp_path / "models" / "smollm2-135m-factbook"
    assert capsys.readouterr().out == f"{made}: {box.size(box.check_sizes(made))}\n"
    original = Clara.from_pretrained(run / "model", dtype="float32")
    loaded = Clara.from_pretrained(made, dtype="float32")
    assert loaded.fingerprint == original.fingerprint
    for name in ADAPTERS:
        stored = load_file(made / name / "adapter_model.safetensors")
        assert {value.dtype for value in stored.values()} == {torch.bfloat16}
        for key, value in original.adapters.state(name).items():
            assert torch.equal(loaded.adapters.state(name)[key], value.bfloat16().float())
    scale = load_file(run / "model" / "connectors.safetensors")["compressor.scale"]
    assert load_file(made / "connectors.safetensors")["compressor.scale"] == scale
    config = ClaraConfig.load(made / "config.json")
    assert (config.backbone, config.dtype) == (packaged.SMOLLM2, "auto")
    assert config.backbone_digest == original.backbone_digest
    assert config.rates == (1, 2, 4, 8, 16)  # of the 128 that the run may reach
    for file in made.rglob("*"):
        assert file.is_dir() or file.stat().st_mode & 0o044
        if file.suffix in (".json", ".md"):
            assert str(ROOT) not in file.read_text()
    # What was being replaced when the machine stopped is put back, and replaced by the next call.
    aside = made.with_name(f".{made.name}.old")
    made.rename(aside)
    assert box.main([str(run)]) == 0
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_the_card_says_what_is_known_and_nothing_else(box, run, tmp_path):
    box.box(run, tmp_path / "ours", steps={"instruct": 1_500})
    text = (tmp_path / "ours" / "README.md").read_text()
    metadata = huggingface_hub.ModelCard(text).data
    assert metadata.base_model == packaged.SMOLLM2
    assert metadata.license == "apache-2.0"
    assert 'from_pretrained("ours")' in text
    assert "| instruct | 1,500 | 5,000 | 2.5 |" in text
    assert "| rates that were trained | 1, 2, 4, 8 |" in text
    digest = ClaraConfig.load(tmp_path / "ours" / "config.json").backbone_digest
    assert f"`{digest}`" in text
    assert "5a" * 32 in text
    assert "## Results" not in text
    assert "made without a run of `clara evaluate`" in text


@pytest.fixture
def evaluation(box, run, tmp_path):
    """A run of `clara evaluate` with the new folder, and the folder."""
    box.box(run, tmp_path / "ours")
    setup = Setup(Clara.from_pretrained(tmp_path / "ours", dtype="float32"), max_new_tokens=4)
    documents = [Document(f"d{n}", f"Country {n} has {n * 7} rivers.", None) for n in range(3)]
    asked = [
        EvaluatedQuestion(f"q{n}", HOSTILE if n else "Rivers?", (f"{n * 7}",), (f"d{n}",))
        for n in range(3)
    ]
    entries = entries_of(setup, ["clara", "text"], ["random"], asked)
    evaluate(entries, asked, documents, output=tmp_path / "factbook")
    return tmp_path / "factbook"


def test_results_are_those_of_the_evaluation(box, run, evaluation, tmp_path):
    box.box(run, tmp_path / "ours", evaluations=[evaluation])
    text = (tmp_path / "ours" / "README.md").read_text()
    assert "## Results: factbook" in text
    assert "On 3 questions over 3 documents" in text
    assert re.search(r"^\| clara@4\+gold \| .*\| 0 % \(0 to 0\)", text, re.MULTILINE)
    assert "## Answers that are wrong: factbook" in text
    assert "3 of the 3 wrong answers of clara@4+" in text
    assert "Who &lt;b&gt;built&lt;/b&gt; \\| the \\`\\[dam\\](x)\\`?" in text
    assert "made without a run" not in text
    # Of another model, nothing is said.
    record = json.loads((evaluation / "run.json").read_text())
    record["settings"]["systems"]["clara@4"]["fingerprint"] = "ab" * 32
    (evaluation / "run.json").write_text(json.dumps(record))
    before = text
    with pytest.raises(
        ValueError, match=r"evaluation factbook: of memory with the fingerprint .*abab"
    ):
        box.box(run, tmp_path / "ours", evaluations=[evaluation])
    assert (tmp_path / "ours" / "README.md").read_text() == before


def test_what_cannot_ship_is_refused(box, run, tmp_path, monkeypatch):
    target = tmp_path / "ours"
    monkeypatch.setattr(box, "LARGEST_ADAPTER", 10_000)
    assert "compressor/adapter_model.safetensors has" in refused(box, run, target)
    monkeypatch.undo()
    monkeypatch.setattr("clara.data.factbook.smollm2_file", lambda: BASE)
    with pytest.raises(ValueError, match=r"training-log.md has no line of instruct with 7 steps$"):
        box.box(run, target, steps={"instruct": 7})
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(box, tmp_path / "empty", target)
    new = Clara.from_backbone(BASE, ClaraConfig(document_length=64, dtype="float32"))
    new.save_pretrained(tmp_path / "new")
    assert "the adapters are untrained" in refused(box, tmp_path / "new", target)
    # A backbone with a path that nobody else has.
    other = shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    local = shutil.copytree(run / "model", tmp_path / "local")
    config = ClaraConfig.load(local / "config.json")
    config.replace(backbone=str(other), backbone_digest=None).save(local / "config.json")
    assert "is a path on this machine" in refused(box, local, target)
    # One that the run was not trained on, since the place of its own is another machine's.
    config.replace(backbone="/gone/x.gguf", backbone_digest="ab" * 32).save(local / "config.json")
    assert "trained on a backbone with the digest abababababab, not" in refused(box, local, target)
    assert not target.exists()


def test_a_folder_that_computes_something_else_is_not_kept(box, run, tmp_path, monkeypatch):
    copied = box._copy

    def damaged(folder, target, config):
        copied(folder, target, config)
        file = target / "generator" / "adapter_model.safetensors"
        weights = {k: -v if "lora_B" in k else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(box, "_copy", damaged)
    assert "the rounded model" in refused(box, run, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_reader_of_text_is_its_generator_alone(box, run, tmp_path, capsys):
    text = shutil.copytree(run, tmp_path / "text")
    with pytest.raises(ValueError, match="run of the stage text is needed, this is one of None"):
        box.box_reader(text, tmp_path / "ours")
    (text / "run.json").write_text('{"stage": "text"}')
    assert box.main([str(text), "--text", "--steps", "text=7"]) == 1
    assert "training-log.md has no line of text with 7 steps" in capsys.readouterr().err
    assert box.main([str(text), "--text"]) == 0
    made = tmp_path / "models" / "smollm2-135m-text"
    names = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()}
    assert names == {
        *("config.json", "README.md", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "generator/adapter_config.json"),
        "generator/adapter_model.safetensors",
    }
    card = (made / "README.md").read_text()
    assert "| text | 9,999 | 1 | 9.0 |" in card
    assert huggingface_hub.ModelCard(card).data.base_model == packaged.SMOLLM2
    # clara evaluate answers from text with it.
    model = Clara.from_pretrained(run / "model", dtype="float32")
    reader = load_tuned(str(made), model)
    assert reader.adapter == "generator"
    for key, value in model.adapters.state("generator").items():
        assert torch.equal(reader.model.adapters.state("generator")[key], value.bfloat16().float())
    # It has no memory, so nothing else takes it.
    with pytest.raises(ValueError, match="adapter 'compressor' is missing"):
        Clara.from_pretrained(made)


def test_rates_are_those_of_phases_that_have_begun(box):
    phases = [{"until": 10, "rates": {1: 1}}, {"until": 20, "rates": [2, 4]}, {"rates": {64: 1}}]
    rates = box.trained_rates
    assert rates({"curriculum": phases}, 10) == (1,)
    assert rates({"curriculum": phases}, 11) == (1, 2, 4)
    assert rates({"curriculum": phases, "candidate_rates": [8]}, 21) == (1, 2, 4, 8, 64)
    assert rates({}, 5) == ()
