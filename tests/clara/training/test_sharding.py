"""A model whose parameters FSDP2 has spread over two processes."""

import os
import subprocess

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.data.examples import ExampleFile, pretraining_example
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder

from .conftest import random_model
from .runs import weights

PROGRAM = """
import os
import sys
from collections import Counter
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from clara import Clara
from clara.data.examples import ExampleFile, pretraining_example
from clara.backbone.sharding import whole
from clara.model import checkpoint
from clara.training.batches import EmptyBatch
from clara.training.collators import CompressionCollator
from clara.training.encoder import Encoder
from clara.training.compression import CompressionObjective

torch.set_num_threads(1)
model_folder, data, *outputs = sys.argv[1:]
dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = init_device_mesh("cpu", (2,))
for output, train_backbone in zip(outputs, (False, True), strict=True):
    model = Clara.from_pretrained(model_folder).to(torch.float64)
    objective = CompressionObjective(model, train_backbone=train_backbone)
    objective.activation_checkpointing_enable()
    for layer in model.backbone.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    model.adapters.collect(model.backbone)
    trained = [p for _, group in objective.groups() for p in group]
    assert all(hasattr(p, "full_tensor") for p in trained)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    collate = CompressionCollator(Encoder(model.tokenizer, model.config, None))
    examples = ExampleFile(data, pretraining_example)
    objective.train()
    for step in range(3):
        if step < 2:
            batch = collate([examples[8 * step + 2 * i + rank] for i in range(4)])
        else:  # nothing is left for the second process
            batch = EmptyBatch(Counter()) if rank else collate([examples[i] for i in range(8)])
        counts = torch.tensor([batch.counts.get(name, 0) for name in ("tokens", "documents")])
        dist.all_reduce(counts)
        sums = objective(batch)
        loss = 2 * (sums["ce"] / counts[0] + 0.1 * sums["mse"] / counts[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(output) if rank == 0 else checkpoint.take_part(model)
    dist.barrier()
    before = {n: whole(v).clone() for n, v in model.adapters.state("generator").items()}
    for value in model.adapters.parameters("generator").values():
        value.data.zero_()
    model.load_weights(Path(output))
    after = {n: whole(v) for n, v in model.adapters.state("generator").items()}
    assert all(torch.equal(before[n], after[n]) for n in before)
    dist.barrier()
dist.destroy_process_group()
# Without the rest of the interpreter's end: a thread that is not joined aborted it there once.
sys.stdout.flush()
os._exit(0)
"""


def trained_alone(folder, data, output, *, train_backbone):
    model = Clara.from_pretrained(folder).to(torch.float64)
    objective = CompressionObjective(model, train_backbone=train_backbone)
    trained = [p for _, group in objective.groups() for p in group]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    collate = CompressionCollator(Encoder(model.tokenizer, model.config, None))
    examples = ExampleFile(data, pretraining_example)
    objective.train()
    for first in (0, 8, 0):
        batch = collate(examples[first : first + 8])
        sums = objective(batch)
        loss = sums["ce"] / batch.counts["tokens"] + 0.1 * sums["mse"] / batch.counts["documents"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(output)


@pytest.fixture(scope="module")
def trained(tiny_backbone, training_data, warm, tmp_path_factory):
    """Folder with the model `start` and what two processes made of it, `adapters` and `backbone`.

    They are started once for both.
    """
    folder, data = tmp_path_factory.mktemp("sharding"), training_data / "pretrain.jsonl"
    random_model(tiny_backbone("llama")).save_pretrained(folder / "start")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", folder / "program.py"]
    arguments = [folder / "start", data, folder / "adapters", folder / "backbone"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    python = warm(environment).python
    done = subprocess.run(
        [python, *map(str, launcher), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "PYTHON_EXEC": python},  # also for the launcher's own processes
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def check(folder, data, alone, name):
    """Compare with one process; what has changed."""
    trained_alone(folder / "start", data, alone, train_backbone=name == "backbone")
    start, one, two = (weights(each) for each in (folder / "start", alone, folder / name))
    assert one.keys() == two.keys()
    for parameter, value in one.items():
        torch.testing.assert_close(two[parameter], value, rtol=1e-4, atol=1e-6, msg=parameter)
    changed = {key for key, v in two.items() if key not in start or not v.equal(start[key])}
    return {key.split("/")[0].split(":")[0] for key in changed}


@pytest.mark.slow
def test_adapters(trained, training_data, tmp_path):
    changed = check(trained, training_data / "pretrain.jsonl", tmp_path / "one", "adapters")
    assert changed == {COMPRESSOR, GENERATOR, "memory_tokens.safetensors"}


@pytest.mark.slow
def test_the_backbone_too(trained, training_data, tmp_path):
    changed = check(trained, training_data / "pretrain.jsonl", tmp_path / "one", "backbone")
    assert changed == {COMPRESSOR, GENERATOR, "memory_tokens.safetensors", "backbone"}
    assert Clara.from_pretrained(trained / "backbone").owns_backbone
