"""Runs of small models: their settings, processes that do them, and what they leave."""

import json
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from clara.training.folder import read_log

# Runs stages with settings given as JSON; sleeps in every step so that it can be killed.
PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from clara.training.settings import RunSettings
from clara.training.run import run
from clara.training.objectives import Objective
assert "bitsandbytes" not in sys.modules
pause, runs = json.loads(sys.argv[1])
forward = Objective.forward
def slow(self, batch):
    time.sleep(pause)
    return forward(self, batch)
Objective.forward = slow
for stage, values in runs:
    run(stage, RunSettings(**values))
"""


def settings(backbone, data, folder, *, config=None, model=None, **arguments):
    small = {"compression_rate": 16, "document_length": 64, "lora_rank": 4, "top_k": 2}
    return {
        "model": model,
        "backbone": None if model else str(backbone),
        "config": {**({} if model else small), **(config or {})},
        "train_data": str(data),
        "eval_data": None,
        "train_split": "train",
        "eval_split": "validation",
        "arguments": {
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 3,
            "report_to": "none",
            "disable_tqdm": True,
            **arguments,
        },
    }


def command(folder, runs, python, *launcher, pause=0.0):
    """Arguments of a Python that runs `runs`, each a stage and its settings."""
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    return [python, *launcher, str(program), json.dumps([pause, runs])]


def launched(folder, runs, warm):
    """Run with two processes over gloo."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    python = warm(environment).python
    environment["PYTHON_EXEC"] = python  # for the launcher's own processes
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        command(folder, runs, python, *launcher),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder):
    """All that a model folder holds, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": value
        for file in sorted(Path(folder).rglob("*.safetensors"))
        if "optimizer" not in file.name and "random" not in file.name
        for name, value in load_file(file).items()
    }


def assert_same(one, other, *, rtol=0.0, atol=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=name)


def losses(folder):
    """The loss of each step that was logged."""
    return {r["step"]: r["loss"] for r in read_log(Path(folder) / "log.jsonl") if "loss" in r}
