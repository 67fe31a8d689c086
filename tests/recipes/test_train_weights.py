"""`recipes/train_weights.py`: units of a run, their log, snapshots and stop rules."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from clara import Clara, ClaraConfig
from clara.model.checkpoint import read_config
from clara.training.folder import describe
from clara.training.reading import read_settings
from clara.training.trainer import ClaraTrainer

ROOT = Path(__file__).resolve().parents[2]
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BACKBONE = ROOT / "tests" / "data" / "reference" / "base"


@pytest.fixture
def weights(write_facts, tmp_path, monkeypatch):
    """The script, on a tiny backbone and few facts."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    spec = importlib.util.spec_from_file_location(
        "train_weights", ROOT / "recipes" / "train_weights.py"
    )
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_weights", script)  # where dataclasses look
    spec.loader.exec_module(script)
    data = write_facts(tmp_path / "facts.jsonl", 12)
    recipe = yaml.safe_load((ROOT / "recipes" / "smollm2-135m" / "spans.yaml").read_text())
    # The published settings, but for their size.
    recipe["instruct"] |= {
        "train_data": data,
        "eval_data": data,
        "output_dir": str(tmp_path / "runs" / "instruct"),
        "max_steps": 3,
        "eval_steps": 1,
        "save_steps": 1,
        "evaluate_answers": 2,
        "bf16": False,
    }
    recipe["text"] |= {
        "train_data": data,
        "eval_data": data,
        "output_dir": str(tmp_path / "runs" / "text"),
        "max_steps": 1,
        "bf16": False,
    }
    ranking = {
        "train_data": write_ranking(tmp_path / "ranking.jsonl"),
        "eval_data": str(tmp_path / "ranking.jsonl"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "bf16": False,
    }
    for stage in ("contrastive", "end-to-end"):
        recipe[stage] |= {**ranking, "output_dir": str(tmp_path / "runs" / stage)}
    recipe["contrastive"] |= {
        "train_data": str(tmp_path / "ranking.renamed.jsonl"),
        "candidate_index": str(tmp_path / "runs" / "vectors"),
    }
    renaming = importlib.import_module("renamed_subjects")
    few = partial(renaming.write_renamed, count=20)
    monkeypatch.setattr(renaming, "write_renamed", few)
    recipe["contrastive"]["model"] = str(tmp_path / "runs" / "query-start")
    recipe["end-to-end"]["model"] = str(tmp_path / "runs" / "contrastive" / "model")
    recipe |= {"lora_rank": 4, "dtype": "float32", "warmup_steps": 0}
    (tmp_path / "spans.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(script, "RECIPE", tmp_path / "spans.yaml")
    monkeypatch.setattr(script, "SNAPSHOT", tmp_path / "snapshots" / "tiny")
    log = tmp_path / "training-log.md"
    log.write_text((ROOT / "docs" / "training-log.md").read_text())
    monkeypatch.setattr(script, "LOG", log)
    monkeypatch.setattr(script, "smollm2_file", lambda: BACKBONE)
    return script


def write_ranking(file):
    """Write questions on twelve countries, each with the passages of three."""
    towns = (
        "Towns: only Ashby, Birchall, Corby, Dunoon, Eccles, Frome, Glossop and Hawick, near York"
    )
    documents = [f"Country {n}: Geography\nCoastline: {n * 7} km" for n in range(1, 13)]
    documents[0] += f"\n{towns}"
    rows = (
        {
            "question": f"Coastline of Country {at + 1}?",
            "docs": [documents[at - 1], documents[at], documents[at - 5]],
            "pos_index": [1],
            "answer": f"{at * 7 + 7} km",
        }
        for at in range(12)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_unit_a_snapshot_and_a_new_clone(weights, tmp_path):
    before = weights.LOG.read_text().splitlines()
    assert weights.unit("instruct", 5) == "all steps are done"
    run = tmp_path / "runs" / "instruct"
    assert describe(run)["steps"] == 3
    *kept, line = weights.LOG.read_text().splitlines()
    assert kept == before
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == len(before[-1].strip("|").split("|"))
    assert (cells[1], cells[2], cells[-1]) == ("instruct", "3", "all steps are done")
    assert all(" / " in cell for cell in cells[5:9])
    made = weights.SNAPSHOT
    assert sorted(path.name for path in made.iterdir()) == [
        *("compressor", "config.json", "connectors.safetensors", "generator"),
        "memory_tokens.safetensors",
    ]
    assert set(load_file(made / "connectors.safetensors")) == {
        "compressor.scale",
        "compressor.up",
    }
    trained = Clara.from_pretrained(run / "model")
    weights.restore(made, tmp_path / "restored")
    for path in made.rglob("*.json"):  # which are committed
        assert HUB_ID in path.read_text()
        assert str(BACKBONE) not in path.read_text()
    restored = Clara.from_pretrained(tmp_path / "restored", backbone=BACKBONE)
    texts = ["Country 3: Geography\nCoastline: 21 km"]
    found, expected = restored.compress(texts).memory, trained.compress(texts).memory
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert restored.fingerprint == trained.fingerprint
    for adapter in ("compressor", "generator"):
        for name, value in trained.adapters.state(adapter).items():
            rounded = value.to(torch.bfloat16).float()
            assert torch.equal(restored.adapters.state(adapter)[name].float(), rounded)
    # A clone has the snapshot and the log alone: steps and hours are those of the log.
    run.rename(tmp_path / "gone")
    log = weights.LOG.read_text()
    weights.LOG.write_text(
        log.replace(f"| {cells[4]} |", "| 1.5 |") + "| edited by | instruct | hand | | |\n"
    )
    assert weights.unit("instruct", 5) == weights.USED_UP
    assert weights.unit("instruct", 5, {"max_steps": 5}) == "all steps are done"
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["path"] == str(run.with_name("snapshot"))
    assert not any(phase.get("averages_only") for phase in record["arguments"]["curriculum"])
    assert describe(run)["steps"] == 2
    taken = weights.logged("instruct")
    assert taken.steps == 5
    assert taken.hours >= 1.5
    assert taken.positions > int(cells[3].replace(",", ""))
    assert weights.unit("instruct", 5, {"max_steps": 6}) == "all steps are done"
    assert weights.logged("instruct").steps == 6
    weights.LOG.write_text(log)
    # A snapshot that was being replaced comes back.
    weights.SNAPSHOT.rename(weights.SNAPSHOT.with_name(".tiny.old"))
    assert weights.unit("instruct", 5, {"max_steps": 6}) == weights.USED_UP
    assert weights.SNAPSHOT.is_dir()
    # The text baseline does not: its generator is to read text.
    weights.unit("text", 5)
    assert json.loads((tmp_path / "runs" / "text" / "run.json").read_text())["model"] is None


def test_ranking_is_learnt_before_answers_are_chosen_by_it(weights, tmp_path, capsys):
    runs = tmp_path / "runs"
    with pytest.raises(weights.SnapshotError, match="no model of the stage instruct, which comes"):
        weights.unit("contrastive", 5)
    assert weights.STAGES.index("contrastive") + 1 == weights.STAGES.index("end-to-end")
    weights.unit("instruct", 5)
    assert weights.unit("contrastive", 5) == "all steps are done"
    said = capsys.readouterr().err
    assert '"query start"' in said
    assert '"vectors"' in said
    assert weights.unit("end-to-end", 5) == "all steps are done"

    folders = (runs / "query-start", runs / "contrastive" / "model", runs / "end-to-end" / "model")
    fitted, ranked, ended = (Clara.from_pretrained(folder) for folder in folders)
    connectors = [each.connectors.of("query_reasoner").up for each in (fitted, ranked, ended)]
    assert connectors[0].any()
    for earlier, later, step in zip(connectors, connectors[1:], (1e-3, 4e-4), strict=False):
        # Each stage goes on from the one before: two steps of Adam change little.
        assert 0 < (later - earlier).abs().max() <= step * 1.01
    # Documents have the same memory throughout.
    assert fitted.fingerprint == ranked.fingerprint == ended.fingerprint
    assert (weights.SNAPSHOT / "query_reasoner").is_dir()
    # What was made for the stage is not made again.
    (runs / "contrastive").rename(tmp_path / "gone")
    before = (runs / "query-start" / "connectors.safetensors").stat().st_mtime_ns
    weights.unit("contrastive", 5)
    assert (runs / "query-start" / "connectors.safetensors").stat().st_mtime_ns == before
    # Unless the compressor was trained since.
    (runs / "contrastive").rename(tmp_path / "gone too")
    file = runs / "instruct" / "model" / "connectors.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(file).items()}, file)
    with pytest.raises(weights.SnapshotError, match="query-start: makes other memory than"):
        weights.unit("contrastive", 5)


def test_the_committed_snapshot_is_where_the_recipe_can_go_on(tmp_path, weights):
    snapshot = ROOT / "snapshots" / "smollm2-135m"
    if not snapshot.is_dir():  # it goes when the weights ship
        return
    recipe = ROOT / "recipes" / "smollm2-135m" / "spans.yaml"
    settings = read_settings(recipe, "instruct", {})
    weights.restore(snapshot, tmp_path / "start", settings.config)
    config = read_config(tmp_path / "start", settings.config)  # raises where they disagree
    assert config.span_slope == settings.config.get("span_slope", 0.0)


def test_a_recipe_may_change_the_slope_of_a_snapshot(weights, tmp_path):
    weights.unit("instruct", 5)
    run = tmp_path / "runs" / "instruct"
    run.rename(tmp_path / "gone")
    changes = {"max_steps": 4, "span_slope": 0.3}
    assert weights.unit("instruct", 5, changes) == "all steps are done"
    assert ClaraConfig.load(run / "model" / "config.json").span_slope == 0.3
    assert ClaraConfig.load(weights.SNAPSHOT / "config.json").span_slope == 0.3


def test_a_snapshot_has_the_query_reasoner_once_it_is_trained(weights, tmp_path):
    weights.unit("instruct", 5)
    model, made = tmp_path / "runs" / "instruct" / "model", tmp_path / "made"

    def change(adapter):
        file = model / adapter / "adapter_model.safetensors"
        values = load_file(file)
        name = next(name for name in values if ".lora_B." in name)
        save_file({**values, name: torch.randn_like(values[name])}, file)

    change("compressor")
    weights.snapshot(model, made)
    assert not (made / "query_reasoner").exists()
    weights.restore(made, tmp_path / "restored")
    found = weights._weights(tmp_path / "restored", "query_reasoner")
    assert not any(value.any() for name, value in found.items() if ".lora_B." in name)
    assert not weights.trained_reasoner(tmp_path / "restored")
    change("query_reasoner")
    weights.snapshot(model, made)
    assert (made / "query_reasoner" / "adapter_model.safetensors").is_file()


def test_an_interrupted_snapshot_is_named(weights, tmp_path, capsys):
    weights.unit("instruct", 5)
    (weights.SNAPSHOT / "generator" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not a whole snapshot, adapter_model\.safetensors is"):
        weights.restore(weights.SNAPSHOT, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    (tmp_path / "runs" / "instruct").rename(tmp_path / "gone")
    assert weights.main(["--stage", "instruct"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "not a whole snapshot, adapter_model.safetensors is missing" in said


@pytest.mark.parametrize("kept", [0, 100, 1000])
def test_a_snapshot_whose_file_was_cut_off_is_named(weights, tmp_path, kept, capsys):
    made, start = tmp_path / "snapshots" / "tiny", tmp_path / "runs" / "snapshot"
    for name in ("compressor", "generator"):
        (made / name).mkdir(parents=True)
        save_file({"rows": torch.ones(500)}, made / name / "adapter_model.safetensors")
    for name in ("memory_tokens.safetensors", "connectors.safetensors"):
        save_file({"rows": torch.ones(500)}, made / name)
    ClaraConfig().save(made / "config.json")
    start.mkdir(parents=True)
    (start / "earlier").write_text("stays")
    cut = made / "compressor" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:kept])
    assert weights.main(["--stage", "instruct"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "compressor/adapter_model.safetensors: damaged, not a whole snapshot" in said
    (made / "config.json").write_text((made / "config.json").read_text()[: kept // 10])
    assert weights.main(["--stage", "instruct"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "config.json: cannot read the configuration" in said
    assert (start / "earlier").read_text() == "stays"


def test_a_bug_keeps_its_traceback(weights, monkeypatch):
    """A line of a message would not say where hours of training have ended."""

    def broken(stage, minutes):
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(weights, "unit", broken)
    with pytest.raises(ValueError, match="not enough values"):
        weights.main(["--stage", "instruct"])


def test_the_curriculum_goes_on_where_the_snapshot_was_made(weights, tmp_path):
    phases = [
        {"until": 60, "averages_only": True},
        {"until": 300, "reconstruction": [0.6, 0.2]},
        {"until": 1200, "reconstruction": [0.3, 0.1]},
        {"reconstruction": 0.1},
    ]
    settings = weights.read_settings(
        weights.RECIPE, "instruct", {"curriculum": phases, "max_steps": 2000}
    )

    def rest(steps):
        return weights.at_snapshot(settings, tmp_path, steps).arguments

    assert rest(0)["curriculum"] == phases[1:]
    later = rest(180)
    assert later["max_steps"] == 1820
    assert later["curriculum"] == [
        {"until": 120, "reconstruction": [pytest.approx(0.4), 0.2]},
        {"until": 1020, "reconstruction": [0.3, 0.1]},
        {"reconstruction": 0.1},
    ]
    assert rest(1200)["curriculum"] == [{"reconstruction": 0.1}]


def test_the_log_may_have_several_lines_of_the_same_steps(weights):
    cells = [
        ("ended", "stage", "steps", "positions", "hours"),
        ("a day", "instruct", "5,410", "9,095,145", "14.90"),
        ("a day", "text", "9", "99", "0.5"),
        ("a day", "instruct", "5,410", "9,441,791", "15.21"),
        ("a day", "instruct", "by hand", "9", "15.3"),
    ]
    weights.LOG.write_text("".join(f"| {' | '.join(line)} |\n" for line in cells))
    lines = [(14.90, 5_410, 9_095_145), (15.21, 5_410, 9_441_791)]
    assert weights.log_lines("instruct") == lines
    assert weights.logged("instruct") == lines[-1]
    assert weights.logged("end-to-end") == (0.0, 0, 0)


def evaluated(criterion, right, other, hours):
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(log_history=[{"hours": hours}])
    metrics = {"eval_exact_match@4": right, "eval_exact_match_other@4": other}
    criterion.on_evaluate(None, state, control, metrics=metrics)
    return control.should_training_stop


def test_stop_rules(weights):
    learnt = weights.Criterion(reach=0.95, below=0.3)
    assert not evaluated(learnt, 0.94, 0.1, 0.1)
    assert not evaluated(learnt, 0.97, 0.3, 0.1)
    assert evaluated(learnt, 0.97, 0.2, 0.1)
    assert learnt.reason.startswith("criterion met")
    unused = weights.Criterion(gap_after=2)
    assert not evaluated(unused, 0.1, 0.1, 1.9)
    assert not evaluated(unused, 0.35, 0.2, 2.5)
    assert evaluated(unused, 0.25, 0.2, 2.5)
    assert unused.reason.startswith("stop rule")


@pytest.mark.parametrize("minutes", ["0", "-1", "101"])
def test_a_unit_is_of_some_minutes(weights, minutes, capsys):
    with pytest.raises(SystemExit):
        weights.main(["--minutes", minutes])
    assert "--minutes must be above 0 and at most 100" in capsys.readouterr().err


def test_a_used_up_budget_is_said(weights, tmp_path):
    assert weights.unit("instruct", 5, {"max_hours": 1e-9}) == "budget of 1e-09 hours"
    log = tmp_path / "runs" / "instruct" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 1, "hours": 1.0}) + "\n")
    assert weights.unit("instruct", 5, {"max_hours": 0.5}) == weights.USED_UP


def test_a_stage_killed_in_its_last_evaluation_is_finished_by_the_next_unit(
    weights, tmp_path, monkeypatch
):
    evaluate, calls = ClaraTrainer.evaluation_loop, []

    def killed(self, *arguments, **settings):
        calls.append(self.state.global_step)
        if calls == [1, 2, 3]:
            raise KeyboardInterrupt
        return evaluate(self, *arguments, **settings)

    monkeypatch.setattr(ClaraTrainer, "evaluation_loop", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.unit("instruct", 5)
    folder = tmp_path / "runs" / "instruct"
    assert describe(folder)["steps"] == 3
    assert not describe(folder)["finished"]
    assert weights.unit("instruct", 5) == "all steps are done"
    assert calls == [1, 2, 3, 3]
    assert describe(folder)["finished"]
    assert weights.SNAPSHOT.is_dir()
    assert weights.logged("instruct").steps == 3
    assert weights.unit("instruct", 5) == weights.USED_UP
