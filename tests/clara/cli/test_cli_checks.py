"""Mistakes in options, paths and YAML are found before anything is imported that takes seconds."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

HEAVY = ("torch", "transformers", "lance", "pyarrow", "numpy", "peft", "matplotlib", "openai")
PROGRAM = """
import json, sys, time
from typer.testing import CliRunner
from clara.cli.app import app
for arguments in json.loads(sys.stdin.read()):
    begin = time.process_time()
    result = CliRunner().invoke(app, arguments)
    loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
    seconds = time.process_time() - begin
    print(json.dumps([result.exit_code, result.stderr, loaded, seconds]), flush=True)
    if loaded:
        break
begin = time.process_time()
import torch
print(time.process_time() - begin)
"""


@pytest.fixture(scope="module")
def named(tmp_path_factory, backbone, model, index, write_corpus):
    """What commands are given, by the names that CASES has for it."""
    folder = tmp_path_factory.mktemp("checks")
    (folder / "file").write_text("text")
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("text")
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("a: [")
    settings = {"backbone": backbone, "train_data": str(folder / "data.jsonl")}
    settings["output_dir"] = str(folder / "run")
    (folder / "data.jsonl").write_text("{}\n")
    for name, changes in {
        "good": {},
        "no-data": {"train_data": "missing.jsonl"},
        "no-backbone": {"backbone": "/no/such"},
        "no-model": {"model": "/no/such"},
        "no-clara": {"model": str(folder / "empty")},
        "folder": {"train_data": str(folder / "empty")},
        "blocked": {"output_dir": str(folder / "file" / "run")},
        "unknown": {"learning_rat": 1},
        "word": {"learning_rate": "fast"},
        "rate": {"compression_rate": 7},
        "taken": {"output_dir": str(folder / "taken")},
    }.items():
        (folder / f"{name}.yaml").write_text(json.dumps({**settings, **changes}))
    shutil.copytree(model, folder / "moved")
    saved = json.loads((folder / "moved" / "config.json").read_text())
    (folder / "moved" / "config.json").write_text(json.dumps({**saved, "backbone": "/no/such"}))
    (folder / "taken" / "checkpoint-3").mkdir(parents=True)
    known = {"MODEL": model, "INDEX": index, "BACKBONE": backbone, "DOCS": write_corpus(count=2)}
    return {**known, "AT": str(folder)}


ASK = "ask --model MODEL --index INDEX"
COMPRESS = "compress --model MODEL --corpus DOCS --output AT/new"
SYNTHESIZE = "synthesize --corpus DOCS --output AT/o --generator openai:m"
CASES = [
    ("ask --model AT/none --index INDEX q", "model folder .*none' does not exist"),
    ("ask --model nowhere --index INDEX q", "model folder 'nowhere' does not exist"),
    ("ask --model AT/full --index INDEX q", "is not a CLaRa model: it holds no config.json"),
    ("ask --model BACKBONE --index INDEX q", "not a CLaRa configuration"),
    ("ask --model MODEL --index AT/none q", "none: not found"),
    ("ask --model MODEL --index AT/file q", "file: is a file, not the folder of an index"),
    ("ask --model MODEL --index MODEL q", "not an index"),
    (f"{ASK} --backbone /no/such q", "backbone folder '/no/such' does not exist"),
    (f"{ASK} --backbone AT/none.gguf q", "backbone file .*none.gguf' does not exist"),
    (
        "ask --model AT/moved --index INDEX q",
        "'/no/such' does not exist; .* --backbone can name another place",
    ),
    (f"{ASK} --device gpu q", "must be cpu, cuda or cuda:N"),
    (f"{ASK} --top-k 0 q", "--top-k"),
    ("search --model AT/none --index INDEX q", "does not exist"),
    ("search --model MODEL --index AT/none q", "none: not found"),
    (f"{COMPRESS} --model AT/none", "does not exist"),
    (f"{COMPRESS} --corpus AT/none.jsonl", "none.jsonl: No such file"),
    (f"{COMPRESS} --corpus AT/file", "file: is text without a JSON object; a corpus is JSON lines"),
    (f"{COMPRESS} --corpus AT", "is a folder; a corpus is JSON lines"),
    (f"{COMPRESS} --output INDEX", "exists already; add --resume"),
    (f"{COMPRESS} --output AT/full --resume", "full: not an index"),
    (f"{COMPRESS} --output AT/file/new", "file is not a folder"),
    ("init /no/such AT/new", "backbone folder '/no/such' does not exist"),
    ("init AT/empty AT/new", "holds no config.json"),
    ("init BACKBONE AT/full", "exists already"),
    ("init BACKBONE AT/file/new", "file is not a folder"),
    ("init BACKBONE AT/new --compression-rate 7", "does not divide"),
    ("convert AT/none AT/new", "is not a reference checkpoint"),
    ("convert AT/empty AT/new", "is not a reference checkpoint"),
    ("convert MODEL AT/new --backbone /no/such", "'/no/such' does not exist"),
    ("convert MODEL AT/full", "exists already"),
    ("train pretrain --config AT/none.yaml", "none.yaml: No such file"),
    ("train pretrain --config AT/broken.yaml", "not readable as YAML"),
    ("train pretrain --config AT/unknown.yaml", "did you mean 'learning_rate'"),
    ("train pretrain --config AT/good.yaml --max-step 3", "did you mean 'max_steps'"),
    ("train pretrain --config AT/word.yaml", "learning_rate must be a number, got 'fast'"),
    ("train pretrain --config AT/rate.yaml", "compression_rate 7 does not divide"),
    ("train pretrain --config AT/no-data.yaml", "missing.jsonl: no such file"),
    ("train pretrain --config AT/folder.yaml", "is a folder; records are JSON lines"),
    ("train pretrain --config AT/no-backbone.yaml", "'/no/such' does not exist"),
    ("train pretrain --config AT/no-model.yaml", "'/no/such' does not exist"),
    ("train pretrain --config AT/no-clara.yaml", "is not a CLaRa model"),
    ("train pretrain --config AT/taken.yaml", "holds a run already"),
    ("train pretrain --config AT/blocked.yaml", "file is not a folder"),
    ("train everything --config AT/good.yaml", "everything"),
    ("plot AT/none", "is not a training run"),
    (f"{SYNTHESIZE} --corpus AT", "is a folder; a corpus is JSON lines"),
    (f"{SYNTHESIZE} --output /no/such/o", "no such folder"),
    (f"{SYNTHESIZE} --generator local:/no/such", "'/no/such' does not exist"),
    (f"{SYNTHESIZE} --generator gpt", "--generator must be openai:MODEL"),
    ("demo --backbone /no/such", "'/no/such' does not exist"),
    ("info AT/none", "no such folder"),
    ("index upgrade --model MODEL AT/none", "none: not found"),
    ("index upgrade --model AT/none INDEX", "none' does not exist"),
    ("bench report AT/none.json", "No such file"),
    ("data factbook --output AT/file", "is a file, not a folder"),
    ("data factbook --output AT/file/data", "file is not a folder"),
]


@pytest.fixture(scope="module")
def results(named):
    """Exit status, standard error, heavy modules and seconds of every case, in one process.

    Seconds are of processor time, of which a busy machine takes more. So a case may take a second,
    or on a slow machine as long as importing torch.
    """

    def filled(word):
        for name, value in named.items():
            word = word.replace(name, value) if word.startswith(name) else word
        return word

    commands = [[filled(word) for word in case.split()] for case, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(HEAVY)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
    )
    *printed, torch_seconds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(printed) == len(CASES), (CASES[len(printed) - 1], printed[-1], done.stderr)
    return printed, max(1, torch_seconds)


@pytest.mark.parametrize(("number", "command", "message"), [(i, *c) for i, c in enumerate(CASES)])
def test_a_mistake_is_reported_at_once(results, number, command, message):
    printed, limit = results
    status, errors, loaded, seconds = printed[number]
    assert status in (1, 2), errors
    assert loaded == []
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert seconds < limit


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_cuda_is_refused_without_importing_torch(environment, named):
    code = f"""
import sys
from typer.testing import CliRunner
from clara.cli.app import app
arguments = ["ask", "--model", {named["MODEL"]!r}, "--index", {named["INDEX"]!r}]
result = CliRunner().invoke(app, [*arguments, "--device", "cuda", "q"])
print("torch" in sys.modules, result.stderr, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == (
        f"False error: device 'cuda': this PyTorch ({torch.__version__}) is CPU-only\n"
    )
