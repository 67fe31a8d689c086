"""`recipes/box_weights.py`: the folder of weights that comes with the project, and its card."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from clara import Clara, ClaraConfig
from clara.backbone import packaged
from clara.data.records import Document
from clara.evaluation import evaluate
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.registry import entries_of
from clara.evaluation.systems.setup import Setup

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "tests" / "data" / "reference" / "base"

ADAPTERS = ("compressor", "query_reasoner", "generator")
HOSTILE = "Who <b>built</b> | the `[dam](x)`?"


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
    assert config.rates == (1, 2, 4)  # of the 128 that the run may reach
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
    box.box(run, tmp_path / "ours")
    text = (tmp_path / "ours" / "README.md").read_text()
    metadata = huggingface_hub.ModelCard(text).data
    assert metadata.base_model == packaged.SMOLLM2
    assert metadata.license == "apache-2.0"
    assert 'from_pretrained("ours")' in text
    assert "| instruct | 2,700 | 9,000 | 4.2 |" in text
    assert "| rates that are known to be trained | 1, 2, 4 |" in text
    assert "the countries of its split `train`" in text.replace("\n", " ")
    assert "Lists of random numbers, with questions about them, were among" in text
    assert "decided which step" not in text
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


def test_results_are_those_of_the_evaluation(box, run, changed, evaluation, tmp_path, refused):
    box.box(run, tmp_path / "ours", evaluations=[evaluation])
    text = (tmp_path / "ours" / "README.md").read_text()
    assert "## Results: factbook" in text
    assert "On 3 questions over 3 documents" in text
    assert re.search(r"^\| clara@4\+gold \| .*\| 0 % \(0 to 0\)", text, re.MULTILINE)
    assert "## Answers that are wrong: factbook" in text
    assert "3 of the 3 wrong answers of clara@4+" in text
    assert "Who &lt;b&gt;built&lt;/b&gt; \\| the \\`\\[dam\\](x)\\`?" in text
    assert "made without a run" not in text
    assert "Computed in float32." in text
    # Of another model, nothing is said: of one that answers otherwise from the same memory,
    other = changed()
    file = other / "model" / "generator" / "adapter_model.safetensors"
    save_file({k: -v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    shutil.copy(file, other / "checkpoint-1200" / "generator")
    message = refused(other, tmp_path / "other", evaluations=[evaluation])
    assert "evaluation factbook: its answers are of a model with the digest" in message
    # one that ranks otherwise,
    record = json.loads((evaluation / "run.json").read_text())
    system = record["settings"]["systems"]["clara@4"]
    record["settings"]["rankers"] = {"clara": dict(system)}  # the digest of another adapter
    (evaluation / "run.json").write_text(json.dumps(record))
    message = refused(run, tmp_path / "ours", evaluations=[evaluation])
    assert "evaluation factbook: its rankings are of a model with the digest" in message
    # or one with other memory.
    record["settings"]["systems"]["clara@4"]["fingerprint"] = "ab" * 32
    (evaluation / "run.json").write_text(json.dumps(record))
    message = refused(run, tmp_path / "ours", evaluations=[evaluation])
    assert re.match("evaluation factbook: of memory with the fingerprint .*abababababab,", message)
    assert (tmp_path / "ours" / "README.md").read_text() == text


def test_what_cannot_ship_is_refused(scripts, run, write_run, tmp_path, monkeypatch, refused):
    target = tmp_path / "ours"
    checks = scripts.checks
    with monkeypatch.context() as changed:
        changed.setattr(checks, "LARGEST_ADAPTER", 10_000)
        assert "compressor/adapter_model.safetensors has" in refused(run, target)
    with monkeypatch.context() as changed:
        changed.setattr(checks, "LARGEST_FOLDER", 100_000)
        assert refused(run, target).endswith("at most 100.0 kB are accepted")
    assert list(tmp_path.glob(".*")) == []  # not even what was being made
    (tmp_path / "empty").mkdir()
    assert "--steps STAGE=STEPS says which" in refused(tmp_path / "empty", target)
    new = Clara.from_backbone(BASE, ClaraConfig(document_length=64, dtype="float32"))
    new = write_run(tmp_path / "new", new)
    assert "the adapters are untrained" in refused(new, target)
    # A backbone that only this machine has, or whose licence the card does not state.
    other = shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    whole = shutil.copytree(run, tmp_path / "local")
    local = whole / "model"
    config = ClaraConfig.load(local / "config.json")
    config.replace(backbone=str(other), backbone_digest=None).save(local / "config.json")
    only = f"must be {packaged.SMOLLM2} or the copy of it"
    assert f"backbone {other}: {only}" in refused(whole, target)
    with pytest.raises(ValueError, match=f"^backbone some/one: {only}"):
        scripts.box.portable(config.replace(backbone="some/one", backbone_digest="ab" * 32), [])
    # One that the run was not trained on, since the place of its own is another machine's.
    config.replace(backbone="/gone/x.gguf", backbone_digest="ab" * 32).save(local / "config.json")
    assert "trained on a backbone with the digest abababababab, not" in refused(whole, target)
    # Or of which nobody knows what it was.
    config.replace(backbone="/gone/x.gguf", backbone_digest=None).save(local / "config.json")
    assert "/gone/x.gguf is gone, and no digest tells" in refused(whole, target)
    assert not target.exists()


def test_a_model_answers_as_it_was_trained_to(box, scripts, run):
    config = ClaraConfig.load(run / "model" / "config.json")
    stages = scripts.box.trained_stages(run / "model", {})
    assert [each.stage for each in stages] == ["instruct"]
    made = scripts.box.portable(config, stages, 2)
    assert (made.top_k, made.compression_rate) == (1, 2)
    assert scripts.box.portable(config, stages).compression_rate == config.compression_rate
    end = stages[0]._replace(stage="end-to-end")
    assert scripts.box.portable(config, [*stages, end]).top_k == config.top_k != 1
    with pytest.raises(ValueError, match="rate is not among those that were trained"):
        scripts.box.portable(config, stages, 64)


def test_steps_are_those_of_the_run(box, changed, tmp_path, refused):
    run, target = changed(), tmp_path / "ours"
    # The run tells its own, and the log must have the line that it ended at.
    assert "at which a run of 1,200 steps and 4,000" in refused(
        run, target, steps={"instruct": 300}
    )
    (run / "log.jsonl").write_text('{"step": 1200, "positions": 4001}\n')
    assert "has no line of instruct at which a run" in refused(run, target)
    (run / "log.jsonl").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "holds no log of its steps" in refused(run, target)
    # Its stage is the last one of the model.
    message = refused(changed("first"), target, steps={"end-to-end": 300})
    assert "first is a run of instruct, which comes before" in message
    # A model alone tells nothing, so it is said, and the recipe tells the rates.
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    assert "no line of instruct with 7 steps" in refused(alone, target, steps={"instruct": 7})
    box.box(alone, target, steps={"instruct": 1_500})
    text = (target / "README.md").read_text()
    assert "| instruct | 1,500 | 5,000 | 2.5 |" in text
    assert "Factbook" not in text.split("## Training")[-1]
    # What the stage before was, nothing tells.
    assert "--steps instruct=STEPS is needed" in refused(
        changed("later", stage="end-to-end"), target
    )
    other = changed("other", train_data={"source": "data/novels.jsonl"})
    assert "train_data of the run is data/novels.jsonl" in refused(other, target)
    (other / "run.json").write_text("{")
    assert "run.json: cannot read the run's settings" in refused(other, target)


def test_the_best_step_of_a_run_is_said(scripts, changed, tmp_path, refused):
    arguments = {"load_best_model_at_end": True, "curriculum": [{"until": 500, "rates": [1]}]}
    arguments["curriculum"].append({"rates": [8]})
    run = changed(arguments=arguments, eval_data={"split": "validation"})
    target = tmp_path / "ours"
    last, best = run / "checkpoint-1200", run / "checkpoint-400"
    shutil.copytree(last, best)
    # The last step has other weights than the model.
    file = last / "generator" / "adapter_model.safetensors"
    save_file({k: -v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    found = scripts.training.trained_stages(run / "model", {})
    assert [(each.steps, each.kept, each.rates) for each in found] == [(2_700, 1_900, (1,))]
    card = scripts.card.model_card("ours", ClaraConfig(backbone=packaged.SMOLLM2), found)
    assert "The weights are those after step 1,900 of instruct." in card
    assert "countries of the split `validation` decided which step was kept" in card
    shutil.rmtree(best)
    assert "no checkpoint has the weights of its model" in refused(run, target)


def test_rates_are_those_of_phases_that_have_begun(scripts):
    phases = [{"until": 10, "rates": {1: 1}}, {"until": 20, "rates": [2, 4]}, {"rates": {64: 1}}]
    rates = scripts.training.trained_rates
    assert rates({"curriculum": phases}, 10) == (1,)
    assert rates({"curriculum": phases}, 11) == (1, 2, 4)
    assert rates({"curriculum": phases, "candidate_rates": [8]}, 21) == (1, 2, 4, 8, 64)
    assert rates({}, 5) == ()
    # A phase without rates draws all that the model trains.
    assert rates({"curriculum": [{"until": 10}, {"rates": [8]}]}, 5, (1, 4)) == (1, 4)
    assert rates({"curriculum": [{"until": 10, "rates": [2]}, {"rates": None}]}, 11) == (2,)
