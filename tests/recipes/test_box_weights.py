"""`recipes/box_weights.py`: the folder of weights that comes with the project, and its card."""

import importlib
import json
import re
import shutil
import signal
import subprocess
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
    monkeypatch.setattr(sys.modules["box_training"], "LOG", log)
    monkeypatch.setattr(scripts_beside, "MODELS", tmp_path / "models")
    monkeypatch.setattr("clara.files.smollm2.installed_copy", lambda: BASE)
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
    return written(folder, model)


def written(folder, model, step=1_200, positions=4_000, **record):
    """A run of so many steps, which began at the snapshot of step 1,500."""
    phases = [{"until": 1_000, "rates": [1, 2], "numbers": 0.1}, {"until": 1_200, "rates": {4: 1}}]
    phases += [{"rates": [64]}]
    folder.mkdir(parents=True)
    lines = [{"step": 10, "loss": 1.0}, {"step": step, "positions": positions}]
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    data = {"source": "data/factbook/documents.train.jsonl"}
    record = {"stage": "instruct", "train_data": data, "arguments": {"curriculum": phases}} | record
    (folder / "run.json").write_text(json.dumps(record))
    model.save_pretrained(folder / "model")
    shutil.copytree(folder / "model" / "generator", folder / f"checkpoint-{step}" / "generator")
    return folder


@pytest.fixture
def changed(run, tmp_path):
    """A function that copies the run, and changes an entry of its record."""

    def copied(name="changed", **changes):
        folder = shutil.copytree(run, tmp_path / name)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | changes))
        return folder

    return copied


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


def test_results_are_those_of_the_evaluation(box, run, changed, evaluation, tmp_path):
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
    message = refused_with(box, other, tmp_path / "other", evaluations=[evaluation])
    assert "evaluation factbook: its answers are of a model with the digest" in message
    # one that ranks otherwise,
    record = json.loads((evaluation / "run.json").read_text())
    system = record["settings"]["systems"]["clara@4"]
    record["settings"]["rankers"] = {"clara": dict(system)}  # the digest of another adapter
    (evaluation / "run.json").write_text(json.dumps(record))
    message = refused_with(box, run, tmp_path / "ours", evaluations=[evaluation])
    assert "evaluation factbook: its rankings are of a model with the digest" in message
    # or one with other memory.
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
    checks = sys.modules["box_checks"]
    with monkeypatch.context() as changed:
        changed.setattr(checks, "LARGEST_ADAPTER", 10_000)
        assert "compressor/adapter_model.safetensors has" in refused(box, run, target)
    with monkeypatch.context() as changed:
        changed.setattr(checks, "LARGEST_FOLDER", 100_000)
        assert refused(box, run, target).endswith("at most 100.0 kB are accepted")
    assert list(tmp_path.glob(".*")) == []  # not even what was being made
    (tmp_path / "empty").mkdir()
    assert "--steps STAGE=STEPS says which" in refused(box, tmp_path / "empty", target)
    new = Clara.from_backbone(BASE, ClaraConfig(document_length=64, dtype="float32"))
    new = written(tmp_path / "new", new)
    assert "the adapters are untrained" in refused(box, new, target)
    # A backbone with a path that nobody else has.
    other = shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    whole = shutil.copytree(run, tmp_path / "local")
    local = whole / "model"
    config = ClaraConfig.load(local / "config.json")
    config.replace(backbone=str(other), backbone_digest=None).save(local / "config.json")
    assert "is a path on this machine" in refused(box, whole, target)
    # One that the run was not trained on, since the place of its own is another machine's.
    config.replace(backbone="/gone/x.gguf", backbone_digest="ab" * 32).save(local / "config.json")
    assert "trained on a backbone with the digest abababababab, not" in refused(box, whole, target)
    # Or of which nobody knows what it was.
    config.replace(backbone="/gone/x.gguf", backbone_digest=None).save(local / "config.json")
    assert "/gone/x.gguf is gone, and no digest tells" in refused(box, whole, target)
    assert not target.exists()


def test_steps_are_those_of_the_run(box, changed, tmp_path):
    run, target = changed(), tmp_path / "ours"
    # The run tells its own, and the log must have the line that it ended at.
    assert "at which a run of 1,200 steps and 4,000" in refused_with(
        box, run, target, steps={"instruct": 300}
    )
    (run / "log.jsonl").write_text('{"step": 1200, "positions": 4001}\n')
    assert "has no line of instruct at which a run" in refused(box, run, target)
    (run / "log.jsonl").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "holds no log of its steps" in refused(box, run, target)
    # A model alone tells nothing, so it is said, and the recipe tells the rates.
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    assert "no line of instruct with 7 steps" in refused_with(
        box, alone, target, steps={"instruct": 7}
    )
    box.box(alone, target, steps={"instruct": 1_500})
    text = (target / "README.md").read_text()
    assert "| instruct | 1,500 | 5,000 | 2.5 |" in text
    assert "Factbook" not in text.split("## Training")[-1]
    # What the stage before was, nothing tells.
    assert "--steps instruct=STEPS is needed" in refused(
        box, changed("later", stage="end-to-end"), target
    )
    other = changed("other", train_data={"source": "data/novels.jsonl"})
    assert "train_data of the run is data/novels.jsonl" in refused(box, other, target)
    (other / "run.json").write_text("{")
    assert "run.json: cannot read the run's settings" in refused(box, other, target)


def test_the_best_step_of_a_run_is_said(box, changed, tmp_path):
    arguments = {"load_best_model_at_end": True, "curriculum": [{"until": 500, "rates": [1]}]}
    arguments["curriculum"].append({"rates": [8]})
    run = changed(arguments=arguments, eval_data={"split": "validation"})
    target = tmp_path / "ours"
    last, best = run / "checkpoint-1200", run / "checkpoint-400"
    shutil.copytree(last, best)
    # The last step has other weights than the model.
    file = last / "generator" / "adapter_model.safetensors"
    save_file({k: -v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    found = sys.modules["box_training"].trained_stages(run / "model", {})
    assert [(each.steps, each.kept, each.rates) for each in found] == [(2_700, 1_900, (1,))]
    card = sys.modules["model_card"].model_card("ours", ClaraConfig(backbone="a/b"), found)
    assert "The weights are those after step 1,900 of instruct." in card
    assert "countries of the split `validation` decided which step was kept" in card
    shutil.rmtree(best)
    assert "no checkpoint has the weights of its model" in refused(box, run, target)


def refused_with(box, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        box.box(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", [".", "..", "../x", "/x", "a/b", "a\n# b", '"', ".hidden", "x" * 97]
)
def test_names_that_are_paths_are_refused(box, run, tmp_path, capsys, name):
    other = tmp_path / "models" / "other"
    other.mkdir(parents=True)
    assert box.main([str(run), "--name", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --name must be")
    assert error.count("\n") == 1
    assert other.is_dir()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["other"]


def test_what_was_not_made_here_is_not_replaced(box, run, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()

    def kept(place):
        assert box.main([str(run), "--name", place.name]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {place}: ")
        assert error.count("\n") == 1
        return error

    (models / "file").write_text("x")
    assert "is a link or a file" in kept(models / "file")
    (models / "link").symlink_to(run)
    assert "is a link or a file" in kept(models / "link")
    shutil.copytree(run / "model", models / "another")
    assert "was not made by this command" in kept(models / "another")
    assert (models / "another" / "compressor").is_dir()
    assert box.main([str(run), "--name", "ours"]) == 0
    capsys.readouterr()
    (models / "ours" / "evaluation.json").write_text("{}")
    assert "holds 'evaluation.json', which would be lost" in kept(models / "ours")
    assert (models / "ours" / "evaluation.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generator/adapter_config.json", b"{", "adapter_config.json: "),
        ("compressor/adapter_config.json", None, "adapter_config.json"),
        ("connectors.safetensors", None, "connectors.safetensors"),
        ("compressor/adapter_model.safetensors", b"x" * 100, "adapter_model.safetensors"),
    ],
)
def test_damaged_models_are_refused_in_a_line(
    box, changed, tmp_path, capsys, file, content, message
):
    run = changed()
    (run / "model" / file).unlink()
    if content is not None:
        (run / "model" / file).write_bytes(content)
    assert box.main([str(run)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert (error[:7], error.count("\n")) == ("error: ", 1)
    assert not list((tmp_path / "models").glob("*"))


def test_a_folder_that_computes_something_else_is_not_kept(box, run, tmp_path, monkeypatch):
    copied = box._copy

    def damaged(folder, target, config):
        copied(folder, target, config)
        file = target / "generator" / "adapter_model.safetensors"
        weights = {k: -v if "lora_B" in k else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(box, "_copy", damaged)
    assert "generator: " in refused(box, run, tmp_path / "ours")
    assert list(tmp_path.iterdir()) == [tmp_path / "training-log.md"]


def test_values_that_are_not_finite_are_refused(box, changed, tmp_path):
    run = changed()
    file = run / "model" / "query_reasoner" / "adapter_model.safetensors"
    weights = load_file(file)
    next(value for key, value in weights.items() if "lora_A" in key)[0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    assert "holds values that are not finite" in refused(box, run, tmp_path / "ours")


def test_a_killed_call_loses_nothing(box, run, tmp_path):
    """Killed with half a new folder beside the whole old one."""
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import box_checks
        with box_checks.making(Path(sys.argv[2])) as unfinished:
            (unfinished / "config.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    target = tmp_path / "models" / "smollm2-135m-factbook"
    assert box.main([str(run)]) == 0
    before = (target / "README.md").read_bytes()
    command = [sys.executable, "-c", script, str(ROOT / "recipes"), str(target)]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    assert (target / "README.md").read_bytes() == before
    unfinished = target.with_name(f".{target.name}.unfinished")
    assert unfinished.is_dir()
    assert box.main([str(run)]) == 0
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_reader_of_text_is_its_generator_alone(box, run, changed, tmp_path, capsys):
    text = changed("text")
    with pytest.raises(
        ValueError, match="run of the stage text is needed, this is one of instruct"
    ):
        box.box_reader(text, tmp_path / "ours")
    (text / "run.json").write_text('{"stage": "text"}')
    (text / "log.jsonl").write_text('{"step": 9999, "positions": 1}\n')
    (text / "checkpoint-1200").rename(text / "checkpoint-9999")
    assert box.main([str(text), "--text", "--steps", "text=7"]) == 1
    assert "training-log.md has no line of text with 7 steps at which" in capsys.readouterr().err
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
    rates = sys.modules["box_training"].trained_rates
    assert rates({"curriculum": phases}, 10) == (1,)
    assert rates({"curriculum": phases}, 11) == (1, 2, 4)
    assert rates({"curriculum": phases, "candidate_rates": [8]}, 21) == (1, 2, 4, 8, 64)
    assert rates({}, 5) == ()
