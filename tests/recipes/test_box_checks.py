"""`recipes/box_checks.py`: what no call of `recipes/box_weights.py` does, whatever it is given."""

import multiprocessing
import os
import shutil
import signal

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from clara import Clara
from clara.backbone import packaged
from clara.cli.evaluation_inputs import load_tuned


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


def test_a_folder_that_computes_something_else_is_not_kept(
    box, run, tmp_path, monkeypatch, refused
):
    copied = box.copy_adapters

    def damaged(model, target, backbone):
        copied(model, target, backbone)
        file = target / "generator" / "adapter_model.safetensors"
        weights = {k: -v if "lora_B" in k else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})

    monkeypatch.setattr(box, "copy_adapters", damaged)
    assert "generator: " in refused(run, tmp_path / "ours")
    assert list(tmp_path.iterdir()) == [tmp_path / "training-log.md"]


def test_values_that_are_not_finite_are_refused(changed, tmp_path, refused):
    run = changed()
    file = run / "model" / "query_reasoner" / "adapter_model.safetensors"
    weights = load_file(file)
    next(value for key, value in weights.items() if "lora_A" in key)[0, 0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    assert "holds values that are not finite" in refused(run, tmp_path / "ours")


@pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # the fork uses no index
def test_a_killed_call_loses_nothing(scripts, box, run, tmp_path):
    """Killed with half a new folder beside the whole old one."""
    target = tmp_path / "models" / "smollm2-135m-factbook"

    def half_made():
        with scripts.checks.making(target) as unfinished:
            (unfinished / "config.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)

    assert box.main([str(run)]) == 0
    before = (target / "README.md").read_bytes()
    killed = multiprocessing.get_context("fork").Process(target=half_made)  # imports take seconds
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
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
